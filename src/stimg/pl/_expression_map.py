"""Draw H&E beside measured and predicted expression."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import zarr
from scipy import sparse

from stimg import _keys
from stimg._image._place import get_library, image_file
from stimg._image._slide_image import open_image
from stimg._input._checks import checked
from stimg._input._predictions import read_prediction
from stimg._input._records import read_record, said
from stimg._input._rows import read_expression
from stimg._input._tables import libraries_of, resolve_table
from stimg._slide._values import log_normalise
from stimg.pl._canvas import (
    LARGEST_SIDE,
    Section,
    add_colour_bar,
    add_scale_bar,
    check_drawn_genes,
    draw_raster,
    draw_spots,
    frame,
    measured_columns,
    predicted_values,
    read_section,
    section_image,
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
    key: str = _keys.IMAGE_EXPRESSION,
    measured_layer: str | None = None,
    image: np.ndarray | None = None,
    image_scale: float = 1.0,
    spatial_key: str | None = None,
    library_id: str | None = None,
    table_key: str | None = None,
) -> np.ndarray:
    """Draw H&E, measured expression, predicted expression and the dense map of genes side by side.

    Parameters
    ----------
    adata
        A slide after :func:`stimg.tl.predict_expression`.
    genes
        Genes, one per row.
    key
        Key under which `predict_expression` wrote, its `key_added`.
    measured_layer
        Layer with raw counts; `.X` by default.
    image, image_scale
        H&E to draw, (height, width, 3), and its pixels per unit of the coordinates; by default the larger image in
        `.uns["spatial"]`, or the file named there.
    library_id
        The section to draw, if there are several.
    spatial_key, table_key
        Coordinates in `.obsm`, and the table of a `SpatialData`.

    Returns
    -------
    ndarray
        Axes, shape (number of genes, number of panels): H&E, measured, predicted, map; without the panel "measured"
        for a slide without counts, and without the panel "map" if none of the genes has a dense map. All panels of a
        gene share one colour scale, in log-normalised counts.

    Raises
    ------
    KeyError
        The prediction, its record in `.uns` or the coordinates are missing, or a gene is not in the slide or not
        predicted.
    ValueError
        No gene to draw, a gene without values in the section, measured values that are not raw counts, or several
        sections and no `library_id`.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic_histology(n_rows=6, n_cols=6), "st", copy=True)
    >>> model = stimg.tl.train_expression(stimg.pp.to_image_patches(slide, mpp=4, size=128), max_steps=2)
    >>> stimg.tl.predict_expression(slide, model, dense=["Gene0"], symmetric=False)
    >>> [ax.get_title() for ax in stimg.pl.expression_map(slide, "Gene0").flat]
    ['H&E', 'Gene0, measured', 'Gene0, predicted', 'Gene0, map']
    """
    table = resolve_table(adata, table_key)
    found = read_prediction(table, _keys.STEP_PREDICT, key)
    record = found.record
    divided = said(table, "library_key", None) is not None
    section = read_section(table, spatial_key, None, library_id if divided else None, argument="library_id")
    section = section if divided else replace(section, name=library_id)
    rows, coordinates = section.rows, section.coordinates
    genes = check_drawn_genes(genes)
    columns = measured_columns(table, genes)
    predicted = predicted_values(found, list(table.var_names[columns]), rows)
    dense = read_record(table, _keys.map_key(key))
    measured = _measured(table, measured_layer, columns, float(record["target_sum"]))
    shown = {"measured": measured[rows]} if measured is not None else {}
    shown["predicted"] = predicted
    histology = _image_of(table, section, library_id) if image is None else (np.asarray(image), image_scale)
    diameter = FILL * section.pitch
    mapped = set(dense["genes"]) if "transform" in dense else set()
    has_map = not mapped.isdisjoint(genes)
    shape = (len(genes), 1 + len(shown) + has_map)
    size = (3.3 * shape[1] + 1, 3.2 * shape[0])
    axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")[1]
    for i, (panels, gene) in enumerate(zip(axes, genes, strict=True)):
        top = float(np.nanquantile(np.concatenate([values[:, i] for values in shown.values()]), 0.99)) or 1.0
        style: dict[str, Any] = {"cmap": "viridis", "clim": (0.0, top)}
        if histology is not None:
            draw_raster(panels[0], *histology)
        frame(panels[0], coordinates, diameter)
        panels[0].set_title("H&E")
        for ax, (what, values) in zip(panels[1:], shown.items(), strict=False):
            spots = draw_spots(ax, coordinates, diameter, array=values[:, i], linewidths=0, **style)
            ax.set_title(f"{gene}, {what}")
        if gene in mapped:
            _draw_map(panels[-1], dense, gene, **style)
            panels[-1].set_title(f"{gene}, map")
        if has_map:
            frame(panels[-1], coordinates, diameter)
        add_colour_bar(spots, panels[-1], str(record["unit"]))
    add_scale_bar(axes[-1, 0], section)
    return axes


def _measured(table: AnnData, layer: str | None, columns: np.ndarray, target_sum: float) -> np.ndarray | None:
    """Return log-normalised expression of the genes at `columns`; `None` for a slide without counts."""
    if layer is None and (table.X is None or not sparse.csr_array(table.X).nnz):
        return None
    return log_normalise(read_expression(table, layer, "counts"), target_sum, columns).toarray()


def _image_of(table: AnnData, section: Section, library_id: str | None) -> tuple[np.ndarray, float] | None:
    """Return the section's H&E and its pixels per unit of the coordinates, from `.uns["spatial"]` or its file."""
    if (found := section_image(table, section, ("hires", "lowres"))) is not None:
        return found
    known = library_id in libraries_of(table)
    if not known and len(section.rows) < table.n_obs:
        return None
    path = image_file(get_library(table, library_id if known else None))
    if path is None:
        return None
    opened = open_image(path, 1.0, "image")  # coordinates are in pixels of the file
    step = -(-max(opened.shape) // LARGEST_SIDE)
    return opened.overview(step), 1 / step


def _draw_map(ax: Any, dense: dict[str, Any], gene: str, **style: Any) -> None:
    """Draw one gene's dense map in the units of the coordinates."""
    maps = zarr.open_array(dense["map_path"], mode="r") if "map_path" in dense else dense["map"]
    values = np.asarray(maps[int(np.flatnonzero(np.asarray(dense["genes"]) == gene)[0])])
    if "tissue" in dense:
        values = np.where(dense["tissue"], values, np.nan)
    scale, left, top = dense["transform"][0, 0], dense["transform"][0, 2], dense["transform"][1, 2]
    height, width = values.shape
    ax.imshow(values, extent=(left, left + width * scale, top + height * scale, top), **style)
