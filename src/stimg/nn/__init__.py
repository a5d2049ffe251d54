"""Plain torch: the gene-indexed masked autoencoder, networks for H&E, their configurations and masks."""

from stimg.nn._align import AlignConfig, AlignNetwork
from stimg.nn._config import CONFIGS, Config, get_config
from stimg.nn._dense import DenseConfig, DenseNetwork
from stimg.nn._encoder import ConvEncoder, ForeignEncoder, get_encoder
from stimg.nn._masking import draw_hidden
from stimg.nn._vit import GeneMAE, Output

__all__ = [
    "CONFIGS",
    "AlignConfig",
    "AlignNetwork",
    "Config",
    "ConvEncoder",
    "DenseConfig",
    "DenseNetwork",
    "ForeignEncoder",
    "GeneMAE",
    "Output",
    "draw_hidden",
    "get_config",
    "get_encoder",
]
