"""Draw measured and reconstructed expression side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

from stimg import _keys
from stimg._input._checks import check_choice, check_positive_int, checked
from stimg._input._predictions import read_prediction
from stimg._input._rows import expression_blocks
from stimg._input._tables import resolve_table
from stimg._slide._values import log_normalise
from stimg.pl._canvas import (
    FILL,
    add_colour_bar,
    add_scale_bar,
    check_drawn_genes,
    draw_spots,
    measured_columns,
    predicted_values,
    read_section,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

MOST_JUDGED = 5000


@checked
def reconstruction(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    key: str = _keys.RECONSTRUCTION,
    n_genes: int = 3,
    spatial_key: str | None = None,
    library_key: str | None = None,
    library: str | None = None,
    table_key: str | None = None,
) -> np.ndarray:
    """Draw genes as measured (left) and as the model predicts them (right).

    Parameters
    ----------
    adata
        A slide after :func:`stimg.tl.reconstruct`.
    genes
        Genes, one per row; by default the `n_genes` whose reconstruction varies most over the slide.
    key
        Key under which `reconstruct` wrote, its `key_added`.
    n_genes
        Number of genes to draw if `genes` is not given.
    spatial_key, library_key, library, table_key
        As in :func:`stimg.pl.domains`.

    Returns
    -------
    ndarray
        Axes, shape (number of genes, 2). Both panels of a gene share one colour scale.

    Raises
    ------
    KeyError
        The reconstruction, its record in `.uns` or the coordinates are missing, or a gene is not in the slide or not
        reconstructed.
    ValueError
        No gene to draw, a gene without values in the section, or several sections and no `library`.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic(n_obs=300), copy=True)
    >>> stimg.pp.select_genes(slide)
    >>> model = stimg.tl.pretrain(stimg.pp.to_patches(slide, size=8), max_steps=2)
    >>> stimg.tl.reconstruct(slide, model)
    >>> stimg.pl.reconstruction(slide, n_genes=2).shape
    (2, 2)
    """
    table = resolve_table(adata, table_key)
    found = read_prediction(table, _keys.STEP_RECONSTRUCT, key)
    record = found.record
    section = read_section(table, spatial_key, library_key, library)
    check_choice("scale", record["scale"], ("counts", "log"))
    check_positive_int("n_genes", n_genes)
    if genes is None:
        seen = np.linspace(0, table.n_obs - 1, min(table.n_obs, MOST_JUDGED)).astype(int)
        there = found.genes[found.genes.isin(table.var_names)]
        genes = _default_genes(found.read(there, seen), there, n_genes)
    genes = check_drawn_genes(genes)
    columns = measured_columns(table, genes)
    predicted = predicted_values(found, list(table.var_names[columns]), section.rows)
    measured = []
    for block in expression_blocks(table, record["layer"] or None, record["scale"]):
        counts = record["scale"] == "counts"
        values = log_normalise(block, float(record["target_sum"]), columns) if counts else block[:, columns]
        measured.append(values.toarray())
    true = np.concatenate(measured)[section.rows]
    style: dict[str, Any] = {"cmap": "viridis", "linewidths": 0}
    axes = plt.subplots(len(genes), 2, figsize=(9, 3.6 * len(genes)), squeeze=False, layout="constrained")[1]
    for panels, gene, *pair in zip(axes, genes, true.T, predicted.T, strict=True):
        limits = (0, float(np.quantile(pair[0], 0.99)) or float(np.nan_to_num(pair[1]).max()) or 1.0)
        for ax, values, name in zip(panels, pair, ("measured", "reconstructed"), strict=True):
            spots = draw_spots(ax, section.coordinates, FILL * section.pitch, array=values, clim=limits, **style)
            ax.set_title(f"{gene}, {name}")
        add_colour_bar(spots, panels[1], str(record["unit"]))
    add_scale_bar(axes[-1, 0], section)
    return axes


def _default_genes(predicted: np.ndarray, names: pd.Index, n_genes: int) -> list[str]:
    """Return the genes whose reconstruction varies most over the slide."""
    variance = np.where(np.isfinite(predicted).all(0), predicted.var(0), -1)
    order = np.argsort(-variance, kind="stable")
    return [str(gene) for gene in names[order[variance[order] >= 0][:n_genes]]]
