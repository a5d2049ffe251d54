"""Draw measured beside reconstructed expression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stimg import _keys
from stimg._resolve import resolve_table
from stimg._slide import log_normalise
from stimg._validators import check_choice, check_coordinates, check_expression, get_layer
from stimg.pl._canvas import add_colour_bar, add_scale_bar, draw_spots, pitch_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData


def reconstruction(
    adata: AnnData | SpatialData,
    genes: Sequence[str] | None = None,
    *,
    layer: str = _keys.RECONSTRUCTION,
    n_genes: int = 3,
    spatial_key: str = _keys.SPATIAL,
    table_key: str | None = None,
) -> np.ndarray:
    """Draw genes as measured (left) and as the model predicts them (right).

    Parameters
    ----------
    adata
        A slide with :func:`stimg.tl.reconstruct` done.
    genes
        Genes, one a row; by default the `n_genes` whose reconstruction varies most.
    layer
        Layer that `reconstruct` wrote.
    n_genes
        Number of genes drawn where none are named.
    spatial_key
        Coordinates in `.obsm`.
    table_key
        Table of a `SpatialData`.

    Returns
    -------
    ndarray
        Axes, shape (number of genes, 2). Both panels of a gene share one colour scale.

    Raises
    ------
    KeyError
        The layer, the coordinates or a gene is missing.
    """
    import matplotlib.pyplot as plt

    table = resolve_table(adata, table_key)
    if layer not in table.layers:
        msg = (
            f"Key {layer!r} (`layer`) not found in `adata.layers`. Available keys: {list(table.layers)}. "
            "Run `stimg.tl.reconstruct(adata, model)` first."
        )
        raise KeyError(msg)
    coordinates = check_coordinates(table, spatial_key)
    record = table.uns[_keys.UNS][_keys.STEP_RECONSTRUCT]
    check_choice("scale", record["scale"], ("counts", "log"))
    predicted = np.asarray(table.layers[layer])
    if genes is None:
        known = np.isfinite(predicted).all(0)
        order = np.argsort(-np.where(known, predicted.var(0), -1), kind="stable")
        genes = list(table.var_names[order[:n_genes]])
    if unknown := [gene for gene in genes if gene not in table.var_names]:
        msg = f"`genes` not in `adata.var_names`: {unknown[:5]}."
        raise KeyError(msg)
    measured = check_expression(get_layer(table, record["layer"] or None), record["scale"])
    if record["scale"] == "counts":
        measured = log_normalise(measured, float(record["target_sum"]))
    diameter = pitch_of(table, coordinates)
    figure, axes = plt.subplots(len(genes), 2, figsize=(9, 3.6 * len(genes)), squeeze=False, layout="constrained")
    for row, gene in zip(axes, genes, strict=True):
        column = table.var_names.get_loc(gene)
        pair = (measured[:, [column]].toarray().ravel(), predicted[:, column])
        limits = (0, float(np.nanquantile(pair[0], 0.99)) or float(np.nanmax(pair[1])) or 1.0)
        for ax, values, name in zip(row, pair, ("measured", "reconstructed"), strict=True):
            spots = draw_spots(ax, coordinates, diameter, array=values, cmap="viridis", clim=limits, linewidths=0)
            ax.set_title(f"{gene}, {name}")
        add_colour_bar(spots, row[1], str(record["unit"]))
    add_scale_bar(axes[-1, 0], table)
    return axes
