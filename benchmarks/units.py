"""What one sample of pretraining should be: a spot, a whole slide or a patch.

    STIMG_DATA_DIR=../shared/data python benchmarks/units.py [--steps 200] [--seeds 3]

The same network and loss see single spots, 16 x 16 windows, or whole sections. Where a single spot is the sample, only
its genes can be hidden. "Labels": the network also learned the expert labels of the two training sections. The two
cheap blurs and plain components stand beside them.
"""

from compare import Variant, compare

from stimg.nn import Config

VARIANTS = {
    "spot": Variant(Config(mask="genes"), unit="spot"),
    "patch, genes hidden": Variant(Config(mask="genes")),
    "patch": Variant(),
    "slide": Variant(unit="slide"),
    "spot, labels": Variant(Config(mask="genes"), unit="spot", patches={"label_key": "domain"}),
    "patch, labels": Variant(patches={"label_key": "domain"}),
}

if __name__ == "__main__":
    compare("units", __doc__, VARIANTS, baselines=True)
