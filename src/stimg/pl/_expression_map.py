"""Draw H&E beside measured and predicted expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stimg import _keys
from stimg._input._checks import (
    check_coordinates,
    check_expression,
    check_gene_list,
    check_var_unique,
    checked,
    get_layer,
)
from stimg._input._tables import resolve_table
from stimg._slide._values import log_normalise
from stimg.pl._canvas import (
    add_colour_bar,
    add_scale_bar,
    draw_raster,
    draw_spots,
    frame,
    pitch_of,
    section_image,
    section_rows,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

FILL = 0.7  # of the pitch: the H&E panel shows where spots are, the others their values


@checked
def expression_map(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str],
    *,
    layer: str = _keys.IMAGE_EXPRESSION,
    measured_layer: str | None = None,
    image: np.ndarray | None = None,
    image_scale: float = 1.0,
    spatial_key: str = _keys.SPATIAL,
    library_id: str | None = None,
    table_key: str | None = None,
) -> np.ndarray:
    """Draw H&E, measured expression, its prediction and the dense map of genes side by side.

    Parameters
    ----------
    adata
        A slide with :func:`stimg.tl.predict_expression` done.
    genes
        Genes, one a row.
    layer
        Layer that `predict_expression` wrote.
    measured_layer
        Layer with raw counts; `.X` by default.
    image, image_scale
        H&E to draw, (height, width, 3), and its pixels per unit of the coordinates; by default the larger image in
        `.uns["spatial"]`.
    spatial_key, library_id, table_key
        Where coordinates, the image and the table are.

    Returns
    -------
    ndarray
        Axes, shape (number of genes, 3), or with a dense map of any of the genes (number of genes, 4): H&E, measured,
        predicted, map. All panels of a gene share one colour scale, in log-normalised counts.

    Raises
    ------
    KeyError
        The layer, its record in `.uns`, the coordinates or a gene is missing.
    ValueError
        No gene to draw, measured values that are no raw counts, or a gene without a prediction.
    """
    import matplotlib.pyplot as plt

    table = resolve_table(adata, table_key)
    records = table.uns.get(_keys.UNS, {})
    if layer not in table.layers or _keys.STEP_PREDICT not in records:
        msg = (
            f"Key {layer!r} (`layer`) not found in `adata.layers`, or not how it was made in `adata.uns['stimg']`. "
            f"Available layers: {list(table.layers)}. Run `stimg.tl.predict_expression(adata, model)` first."
        )
        raise KeyError(msg)
    coordinates = check_coordinates(table, spatial_key)
    check_var_unique(table)
    genes = [genes] if isinstance(genes, str) else list(genes)
    check_gene_list(genes)
    if not genes:
        msg = "Expected at least one gene to draw in `genes`, found none."
        raise ValueError(msg)
    if unknown := [gene for gene in genes if gene not in table.var_names]:
        msg = f"`genes` not in `adata.var_names`: {unknown[:5]}. Take some of {list(table.var_names[:5])}, ..."
        raise KeyError(msg)
    columns = table.var_names.get_indexer(genes)
    predicted = np.asarray(table.layers[layer][:, columns])
    if absent := [gene for gene, values in zip(genes, predicted.T, strict=True) if not np.isfinite(values).any()]:
        msg = f"`genes` that the model does not predict: {absent[:5]}."
        raise ValueError(msg)
    record = records[_keys.STEP_PREDICT]
    name = f"layers[{measured_layer!r}]" if measured_layer else "X"
    counts = check_expression(get_layer(table, measured_layer), "counts", name=name)
    measured = log_normalise(counts, float(record["target_sum"]), columns).toarray()
    rows = section_rows(table, None, None)
    found = (
        (np.asarray(image), image_scale)
        if image is not None
        else section_image(table, rows, library_id, ("hires", "lowres"))
    )
    dense = records.get(_keys.EXPRESSION_MAP, {"genes": []})
    diameter = FILL * pitch_of(table, coordinates, spatial_key)
    n_panels = 4 if any(gene in dense["genes"] for gene in genes) else 3
    shape = (len(genes), n_panels)
    size = (3.3 * n_panels + 1, 3.2 * len(genes))
    axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")[1]
    for panels, gene, true, guess in zip(axes, genes, measured.T, predicted.T, strict=True):
        top = float(np.nanquantile(np.concatenate([true, guess]), 0.99)) or 1.0
        style: dict[str, Any] = {"cmap": "viridis", "clim": (0.0, top)}
        if found is not None:
            draw_raster(panels[0], *found)
        frame(panels[0], coordinates, diameter)
        panels[0].set_title("H&E")
        for ax, values, what in ((panels[1], true, "measured"), (panels[2], guess, "predicted")):
            spots = draw_spots(ax, coordinates, diameter, array=values, linewidths=0, **style)
            ax.set_title(f"{gene}, {what}")
        if n_panels == 4 and gene in dense["genes"]:
            _draw_map(panels[3], dense, gene, **style)
            panels[3].set_title(f"{gene}, map")
        if n_panels == 4:
            frame(panels[3], coordinates, diameter)
        add_colour_bar(spots, panels[-1], str(record["unit"]))
    add_scale_bar(axes[-1, 0], table, spatial_key)
    return axes


def _draw_map(ax: Any, dense: dict[str, Any], gene: str, **style: Any) -> None:
    """Draw one gene's dense map in the units of the coordinates."""
    import zarr

    maps = zarr.open_array(dense["map_path"], mode="r") if "map_path" in dense else dense["map"]
    values = np.asarray(maps[int(np.flatnonzero(np.asarray(dense["genes"]) == gene)[0])])
    if "tissue" in dense:
        values = np.where(dense["tissue"], values, np.nan)
    scale, left, top = dense["transform"][0, 0], dense["transform"][0, 2], dense["transform"][1, 2]
    height, width = values.shape
    ax.imshow(values, extent=(left, left + width * scale, top + height * scale, top), **style)
