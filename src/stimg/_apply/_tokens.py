"""Tokens of a table for a pretrained model: match genes, read sections, take one sparse product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stimg import _keys
from stimg._input._checks import check_choice, check_var_unique, get_layer, warn
from stimg._input._records import said_expression
from stimg._input._rows import read_rows
from stimg._slide._genes import vocabulary_rows
from stimg._slide._read import read_slides

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg._slide._slide import Slide
    from stimg.models import Model

LOW_OVERLAP = 0.8


def match_slides(
    table: AnnData, model: Model, *, layer: str | None, scale: str | None, lattice_key: str
) -> tuple[list[tuple[Slide, np.ndarray]], dict[str, Any]]:
    """Check a table and read its sections; return them, and what to record in `.uns`.

    Each section comes with the rows of its genes in the model's vocabulary, int64 (n_genes,), -1 for unknown genes.
    """
    check_var_unique(table)
    layer, scale = said_expression(table, layer, scale)
    check_choice("scale", scale, ("counts", "log"))
    names = table.var_names.to_numpy().astype(str)
    rows = vocabulary_rows(names, model.genes)
    columns = np.flatnonzero(rows >= 0)
    usual = int(model.card.get("genes_per_slide", len(model.genes)))
    share = min(len(columns) / usual, 1.0)
    if not len(columns):
        msg = (
            f"No gene of `adata.var_names` ({', '.join(names[:3])}, ...) is among the model's {len(model.genes):,} "
            f"genes ({', '.join(model.genes[:3])}, ...). Check species and gene identifiers."
        )
        raise ValueError(msg)
    values = get_layer(table, layer)
    if share < LOW_OVERLAP:
        warn(
            f"Only {len(columns):,} of the model's {len(model.genes):,} genes are in `adata.var_names`, {share:.0%} of "
            f"the {usual:,} that its training slides had; the embedding will be less accurate."
        )
    slides = read_slides(
        table,
        read_rows(values, scale, name=_keys.matrix_name(layer)),
        np.arange(table.n_vars),
        scale=scale,
        target_sum=model.card["target_sum"],
        lattice_key=lattice_key,
    )
    for slide in slides:
        if not slide.mean[columns].any():
            msg = (
                f"Section {slide.name!r} does not express any of the {len(columns):,} genes that the model knows. "
                "Check `layer`, and that it holds counts."
            )
            raise ValueError(msg)
    record = {"scale": scale, "layer": layer or "", "n_genes_shared": len(columns), "gene_share": share}
    return [(slide, rows) for slide in slides], record


def site_tokens(model: Model, slide: Slide, vocabulary: np.ndarray) -> np.ndarray:
    """Return the tokens of a whole slide, float32 (n_sites, d), from the genes that the model knows.

    If there are more than the training slides had, the most variable ones on the slide are used, as in training.
    """
    import torch

    usual = int(model.card.get("genes_per_slide", len(model.genes)))
    known = np.flatnonzero(vocabulary >= 0)
    shown = np.sort(known[np.argsort(-slide.std[known], kind="stable")[:usual]])
    with torch.inference_mode():
        weight, offset = model.network.input_layer(torch.from_numpy(vocabulary[shown]))
        used = slide.std[shown] > 0 if model.config.scaling == "zscore" else np.ones(len(shown), dtype=bool)
        scale = model.network.token_scale(torch.tensor(float(used.sum()))).item()
    tokens = slide.project(weight.numpy(), model.config.scaling, shown)
    if offset is not None:
        tokens += offset.numpy()[used].sum(0)
    return tokens * np.float32(scale)
