"""The names of all slots that stimg reads or writes, each written once."""

from __future__ import annotations

from typing import Final

UNS: Final = "stimg"
SPATIAL: Final = "spatial"
LATTICE: Final = "lattice"
WEIGHT: Final = "stimg_weight"
EMBEDDING: Final = "X_stimg"
SLIDE_SUFFIX: Final = "_slide"
JOINT_SUFFIX: Final = "_joint"
DOMAIN: Final = "stimg_domain"
LABEL: Final = "stimg_label"
CONFIDENCE_SUFFIX: Final = "_confidence"
LEVELS_SUFFIX: Final = "_levels"
RECONSTRUCTION: Final = "stimg"
IMAGE_EXPRESSION: Final = "stimg_image"
IMAGE_EMBEDDING: Final = "X_stimg_image"
GENE_EMBEDDING: Final = "X_stimg_gene"
RETRIEVED: Final = "stimg_retrieved"
CHANNELS: Final = "stimg_rank_channels"
RANKED: Final = "stimg_rank_genes"
POLYGONS_SUFFIX: Final = "_polygons"
UNKNOWN: Final = "unknown"
ARRAY_ROW: Final = "array_row"
ARRAY_COL: Final = "array_col"
IN_TISSUE: Final = "in_tissue"

STEP_LATTICE: Final = "lattice"
STEP_GENES: Final = "select_genes"
STEP_EMBED: Final = "embed"
STEP_DOMAINS: Final = "domains"
STEP_ANNOTATE: Final = "annotate"
STEP_RECONSTRUCT: Final = "reconstruct"
STEP_PREDICT: Final = "predict_expression"
STEP_ALIGN: Final = "embed_pairs"
STEP_RETRIEVE: Final = "retrieve_expression"
STEP_CHANNELS: Final = "rank_channels"
STEP_RANK: Final = "rank_genes"
STEP_POLYGONS: Final = "domain_polygons"
EXPRESSION_MAP: Final = "expression_map"
STEPS: Final = (
    *(STEP_LATTICE, STEP_GENES, STEP_EMBED, STEP_DOMAINS, STEP_ANNOTATE, STEP_RECONSTRUCT),
    *(STEP_PREDICT, STEP_ALIGN, STEP_RETRIEVE, STEP_CHANNELS, STEP_RANK, STEP_POLYGONS, EXPRESSION_MAP),
)


def map_key(key: str) -> str:
    """Return the key of the dense map that was predicted together with the expression under `key`."""
    return EXPRESSION_MAP if key == IMAGE_EXPRESSION else f"{key}_map"


def level_key(key: str, number: int) -> str:
    """Return the key of one level of the nested domains under `key`."""
    return f"{key}_{number}"


def matrix_name(layer: str | None) -> str:
    """Return how messages call the matrix of a layer, or `.X` if `layer` is `None`."""
    return f"layers[{layer!r}]" if layer else "X"
