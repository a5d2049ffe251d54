"""What should be hidden, and what the paper's recipe gives.

    STIMG_DATA_DIR=../shared/data python benchmarks/masking.py [--steps 200] [--seeds 3]

Hidden are genes inside spots as in the paper, single sites, regions, or regions and genes inside the spots that stay
(the default). "Paper" is its recipe on our network sizes: value and gene embeddings added separately, log values, genes
hidden, random tables, no error in gene programs; "bound" multiplies value and gene embedding instead. "Paper k-NN" is
the paper's own protocol: random splits, whose test spots have neighbours in training.
"""

from dataclasses import replace

from compare import Variant, compare

from stimg.nn import Config

PAPER = Config(token="additive", scaling="log", mask="genes", n_programs=0, program_loss=0.0)
VARIANTS = {
    "genes": Variant(Config(mask="genes")),
    "sites": Variant(Config(mask="sites")),
    "regions": Variant(Config(mask="regions")),
    "mixture": Variant(),
    "mixture, additive": Variant(Config(token="additive")),
    "paper": Variant(PAPER),
    "paper, bound": Variant(replace(PAPER, token="bound")),
    "paper, bound, z-scored": Variant(replace(PAPER, token="bound", scaling="zscore")),
}

if __name__ == "__main__":
    compare("masking", __doc__, VARIANTS)
