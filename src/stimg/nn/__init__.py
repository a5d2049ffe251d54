"""Plain torch: the gene-indexed masked autoencoder, its configurations and its masks."""

from stimg.nn._config import CONFIGS, Config, get_config
from stimg.nn._masking import draw_hidden
from stimg.nn._vit import GeneMAE, Output

__all__ = ["CONFIGS", "Config", "GeneMAE", "Output", "draw_hidden", "get_config"]
