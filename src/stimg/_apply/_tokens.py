"""From a table and a pretrained model to tokens: match genes, read slides, one sparse product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

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
    """Check a table and read its slides.

    Returns
    -------
    tuple
        Slides, each with the vocabulary rows int64 (n_genes,) of its genes, -1 for those that the model does not know,
        and what to record of it in `.uns`.
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
            f"No gene of `adata.var_names` ({', '.join(names[:3])}, ...) is among the {len(model.genes):,} genes of "
            f"the model ({', '.join(model.genes[:3])}, ...). Check species and gene identifiers."
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
        read_rows(values, scale, name=f"layers[{layer!r}]" if layer else "X"),
        np.arange(table.n_vars),
        scale=scale,
        target_sum=model.card["target_sum"],
        lattice_key=lattice_key,
    )
    for slide in slides:
        if not slide.mean[columns].any():
            msg = (
                f"Section {slide.name!r} has no expression in any of the {len(columns):,} genes that the model knows. "
                "Check `layer`, and whether the counts are there."
            )
            raise ValueError(msg)
    return [(slide, rows) for slide in slides], {
        "scale": scale,
        "layer": layer or "",
        "n_genes_shared": len(columns),
        "gene_share": share,
    }


def site_tokens(model: Model, slide: Slide, vocabulary: np.ndarray) -> np.ndarray:
    """Tokens float32 (n_sites, d) of a whole slide, from the genes that the model knows: one sparse product.

    Of more genes than training slides had, those with the highest variance on the slide are shown, as in training.
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
