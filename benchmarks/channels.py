"""Which genes a patch should show, how many, and how large it should be.

    STIMG_DATA_DIR=../shared/data python benchmarks/channels.py [--steps 200] [--seeds 3]

Channels drawn by variance (the default, 512 in patches of 16 x 16), uniformly, or always the most variable ones; 64 to
all 2,000 of them; patches of 4 to 32 sites.
"""

from compare import Variant, compare

VARIANTS = {
    "variance, 512, 16 x 16": Variant(),
    "uniform": Variant(patches={"channel_rule": "uniform"}),
    "top": Variant(patches={"channel_rule": "top"}),
    "64 channels": Variant(patches={"n_channels": 64}),
    "128 channels": Variant(patches={"n_channels": 128}),
    "1,024 channels": Variant(patches={"n_channels": 1024}),
    "all 2,000 channels": Variant(patches={"n_channels": 2000}),
    "4 x 4": Variant(patches={"size": 4}),
    "8 x 8": Variant(patches={"size": 8}),
    "32 x 32": Variant(patches={"size": 32}),
}

if __name__ == "__main__":
    compare("channels", __doc__, VARIANTS)
