"""Tokens of a table for a pretrained model: match genes, read sections, take one sparse product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._input._checks import check_choice, warn
from stimg._input._records import said_expression
from stimg._input._rows import read_expression, row_blocks
from stimg._slide._gene_match import match_genes
from stimg._slide._read import read_slides

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg._slide._slide import Slide
    from stimg.models import Model

FEW_DETECTED = 5  # thinned to 5 counts per spot, domains of three slides kept 38 %, 7 % and none of their agreement
POOR = 0.1  # of the upper quartile
MANY_POOR = 0.25  # 4 % on the real slides that were tried


def match_slides(
    table: AnnData,
    model: Model,
    *,
    layer: str | None,
    scale: str | None,
    lattice_key: str,
    gene_symbols: str | None = None,
) -> tuple[list[tuple[Slide, np.ndarray]], dict[str, Any]]:
    """Check a table and read its sections; return them, and what to record in `.uns`.

    Each section comes with the rows of its genes in the model's vocabulary, int64 (n_genes,), -1 for unknown genes.
    """
    layer, scale = said_expression(table, layer, scale)
    check_choice("scale", scale, ("counts", "log"))
    match = match_genes(table, model.genes, gene_symbols)
    slides = read_slides(
        table,
        read_expression(table, layer, scale, into=match.into),
        np.arange(table.n_vars),
        scale=scale,
        target_sum=model.card["target_sum"],
        lattice_key=lattice_key,
    )
    for slide in slides:
        _check_detected(slide, match.rows >= 0)
    return [(slide, match.rows) for slide in slides], {"scale": scale, "layer": layer or "", **match.record}


def _check_detected(slide: Slide, known: np.ndarray) -> None:
    """Refuse a section that is almost empty; warn of one with few detected genes or many sites beside the tissue."""
    detected = np.zeros(slide.n_sites, dtype=np.int64)
    for rows, block in row_blocks(slide.expression):
        found = np.concatenate([[0], np.cumsum(known[block.indices] & (block.data > 0))])
        detected[rows] = np.diff(found[block.indptr])
    usual = float(np.median(detected))
    where = f"Section {slide.name!r}: of the {int(known.sum()):,} genes that the model knows,"
    if usual == 0:
        msg = (
            f"{where} {(detected == 0).sum():,} of {slide.n_sites:,} sites have none. Check `layer`, and that it has "
            "counts. Remove observations beside the tissue; make bins larger that are almost empty."
        )
        raise ValueError(msg)
    if usual < FEW_DETECTED:
        warn(
            f"{where} half of the sites have at most {usual:g}. Results of so few counts are mostly noise, however "
            "confident; make the bins larger (for Visium HD, use those of 8 or 16 um)."
        )
    poor = detected < POOR * np.quantile(detected, 0.75)
    if usual >= FEW_DETECTED and poor.mean() > MANY_POOR:
        warn(
            f"{where} {poor.sum():,} of {slide.n_sites:,} sites have less than a tenth of what rich ones have. If they "
            "lie beside the tissue, remove them, or they become domains of their own."
        )


def site_tokens(model: Model, slide: Slide, vocabulary: np.ndarray) -> np.ndarray:
    """Return the tokens of a whole slide, float32 (n_sites, d), from the genes that the model is shown."""
    shown = shown_genes(model, slide, vocabulary)
    weight, offset, scale = token_layer(model, slide, vocabulary, shown)
    tokens = slide.project(weight, model.config.scaling, shown)
    if offset is not None:
        tokens += offset
    return tokens * scale


def shown_genes(model: Model, slide: Slide, vocabulary: np.ndarray) -> np.ndarray:
    """Return the columns of a slide's genes that the model is shown, int64 (n,), in order.

    Those that it knows; if there are more than the training slides had, the most variable ones on the slide.
    """
    usual = int(model.card.get("genes_per_slide", len(model.genes)))
    known = np.flatnonzero(vocabulary >= 0)
    return np.sort(known[np.argsort(-slide.std[known], kind="stable")[:usual]])


def token_layer(
    model: Model, slide: Slide, vocabulary: np.ndarray, shown: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, np.float32]:
    """Return the weights of the `shown` genes, float32 (n, d), and what their sum is offset by, (d,), and scaled by."""
    import torch

    with torch.inference_mode():
        weight, offset = model.network.input_layer(torch.from_numpy(vocabulary[shown]))
        used = slide.std[shown] > 0 if model.config.scaling == "zscore" else np.ones(len(shown), dtype=bool)
        scale = model.network.token_scale(torch.tensor(float(used.sum()))).item()
    rows = weight.detach().numpy()  # of additive tokens, a view of a parameter
    return rows, None if offset is None else offset.numpy()[used].sum(0), np.float32(scale)
