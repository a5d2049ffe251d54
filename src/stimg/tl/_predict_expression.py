"""Predict expression of spots, cells or a whole slide from H&E."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from stimg import _keys
from stimg._apply._dense import map_pixel_um, read_shapes
from stimg._apply._dense_map import as_image, dense_map
from stimg._image._crops import slide_statistics
from stimg._image._place import ImageSource, place_on_image, rows_on_image
from stimg._image._shapes import Disks, Polygons
from stimg._input._checks import check_positive, checked
from stimg._input._device import resolve_device
from stimg._input._predictions import write_prediction
from stimg._input._records import remove_record, write_record
from stimg._input._tables import prepare, resolve_table
from stimg._slide._gene_match import match_genes
from stimg.models import ExpressionModel
from stimg.models._given import given_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

logger = logging.getLogger("stimg")

LARGEST_SPOT_UM = 10_000


@checked
def predict_expression(
    adata: AnnData | SpatialData,
    model: ExpressionModel | str | Path,
    image: Any = None,
    *,
    diameter_um: float | None = None,
    shapes: Any = None,
    dense: Sequence[str] = (),
    map_path: str | Path | None = None,
    symmetric: bool = True,
    image_mpp: float | None = None,
    device: str = "auto",
    gene_symbols: str | None = None,
    key_added: str = _keys.IMAGE_EXPRESSION,
    spatial_key: str | None = None,
    library_id: str | None = None,
    image_key: str | None = None,
    table_key: str | None = None,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Predict the expression of every observation, and on request of every place, from H&E.

    The image is read block by block at the model's resolution, each block with a margin of context. For each block a
    dense map at a quarter of that resolution is computed and averaged inside each spot with exact areas. Spots may
    have any size, including sizes that the model was not trained on.

    Parameters
    ----------
    adata
        A slide. Its own expression is not used.
    model
        From :func:`stimg.tl.train_expression`, or the path of a file that its `save` wrote.
    image
        Path or array whose pixels are the units of `.obsm[spatial_key]`, as in :func:`stimg.pp.to_image_patches`; by
        default the image in `adata`.
    diameter_um
        Diameter of the circles in which expression is predicted, in micrometres; by default that of the spots.
    shapes
        Use these instead of circles: one shapely polygon per observation (a sequence or a GeoSeries), in the
        coordinates of `.obsm[spatial_key]`.
    dense
        Genes that are mapped as well, over the rectangle around all observations.
    map_path
        New folder for the dense map. It is a chunked zarr array written block by block, so that maps of whole slides
        and many genes do not need to fit in memory; a `SpatialData` reads it lazily. It appears when it is complete.
        By default the map is kept in memory.
    symmetric
        Average over the eight flips and quarter turns of the image; eight times slower, measured better.
    image_mpp
        Micrometres per pixel of the image, if `adata` and the file do not state them.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"`.
    gene_symbols
        Column of `.var` with the names of the genes, as in :func:`stimg.tl.embed`.
    key_added
        Key of the result.
    spatial_key, library_id, image_key, table_key
        Coordinates in `.obsm`, section in `.uns["spatial"]`, and the image and table of a `SpatialData`.
    copy
        Return a changed copy and leave `adata` as it is.

    Returns
    -------
    `None` (or the copy), with
    `.obsm[key_added]` : DataFrame, float32 (n_obs, n_genes), log-normalised expression, with a column for each gene of
    `adata.var_names` that the model predicts; NaN for observations outside the image.
    `.uns["stimg"]["predict_expression"]` : parameters, resolution, the model's name and the sha256 of its file.
    `.uns["stimg"]["expression_map"]` : with `dense` (for another `key_added`, `key_added + "_map"`): `map` float32
    (n_genes, height, width), or `map_path`, the folder; `genes`; `transform`, 3 x 3, from the map's pixels (column,
    row, 1) to the coordinates (x, y, 1); and `tissue`, bool (height, width), outside which values have no meaning
    (:func:`stimg.pl.expression_map` leaves these places white). A `SpatialData` gets the map as the image `key_added`
    instead, with genes as channels, scale levels, and the coordinate systems of its own image.

    Raises
    ------
    FileExistsError
        `map_path` already exists.
    KeyError
        Coordinates, image or genes are missing.
    ValueError
        A bad argument, no gene of the model in the slide, or image and spots that do not fit each other.

    Warns
    -----
    UserWarning
        Observations lie outside the image, the spots would fit its tissue somewhat better if they were turned, flipped
        or moved, or the file states a resolution other than `image_mpp`.

    References
    ----------
    PixNet, arXiv 2503.01347.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic_histology(n_rows=6, n_cols=6), "st", copy=True)
    >>> model = stimg.tl.train_expression(stimg.pp.to_image_patches(slide, mpp=4, size=128), max_steps=2)
    >>> stimg.tl.predict_expression(slide, model, symmetric=False)
    >>> slide.obsm["stimg_image"].shape
    (36, 30)
    """
    device = resolve_device(device)
    model = given_model(ExpressionModel, model)
    table = resolve_table(adata, table_key, copy=copy)
    columns = match_genes(table, model.genes, gene_symbols, least=1).column_of
    _check_options(model, dense, map_path, diameter_um, shapes)
    if not isinstance(adata, AnnData) and image is None and image_key is None:
        image_key = _only_image(adata, key_added)
    wanted_um = 0.0 if shapes is not None else diameter_um
    source = ImageSource(image, image_mpp, wanted_um, spatial_key, library_id, image_key, table_key)
    mpp, pixel = float(model.card["mpp"]), map_pixel_um(model)
    place = place_on_image(adata, source, mpp=mpp)
    read: Disks | Polygons
    if shapes is None:
        read = Disks(place.centres / pixel, np.full(table.n_obs, place.diameter_um / 2 / pixel))
    else:
        read = Polygons.read(shapes, table.n_obs, place.um_per_unit / pixel)
    inside, known = rows_on_image(place.image, read.centres * pixel), np.flatnonzero(columns >= 0)
    normalise = bool(model.card["stain_normalise"])
    statistics = slide_statistics(place.image, place.centres[inside], mpp, stain_normalise=normalise)
    options: dict[str, Any] = {"statistics": statistics, "symmetric": symmetric, "device": device}
    values = np.full((table.n_obs, len(known)), np.nan, dtype=np.float32)
    values[inside] = read_shapes(model, place.image, read.take(inside), known, **options)
    path = None if map_path is None else Path(map_path)
    mapped = dense_map(model, place, dense, path, **options) if len(dense) else None
    table, result = prepare(adata, table_key, copy)
    record = {
        "mpp": mpp,
        "diameter_um": place.diameter_um,
        "symmetric": bool(symmetric),
        "target_sum": float(model.card["target_sum"]),
        "unit": f"log1p(counts per {model.card['target_sum']:,.0f})",
        "model": model.card["name"],
        "sha256": model.sha256,
    }
    write_prediction(table, _keys.STEP_PREDICT, key_added, values, table.var_names[columns[known]], record)
    map_key = _keys.map_key(key_added)
    remove_record(table, map_key, map_key)  # an earlier map may be another model's
    if mapped is not None and isinstance(adata, AnnData):
        write_record(table, map_key, map_key, mapped)
    elif mapped is not None:
        target: Any = adata if result is None else result
        target.images[key_added] = as_image(mapped, target, image_key if image is None else None)
    logger.info("Added .obsm[%r]: %d genes of %d observations.", key_added, len(known), len(inside))
    return result


def _check_options(
    model: ExpressionModel,
    dense: Sequence[str],
    map_path: str | Path | None,
    diameter_um: float | None,
    shapes: Any,
) -> None:
    """Refuse maps of unknown genes or to a path that exists, and diameters that cannot be used."""
    if isinstance(dense, str) or (absent := [gene for gene in dense if gene not in model.genes]):
        found = dense if isinstance(dense, str) else absent[:3]
        msg = f"Expected `dense` to be a list of genes that the model predicts, found {found!r}."
        raise KeyError(msg)
    if map_path is not None and not len(dense):
        msg = "Expected genes in `dense` for the map at `map_path`, found none."
        raise ValueError(msg)
    if map_path is not None and Path(map_path).exists():
        msg = f"`map_path`={str(map_path)!r} already exists. Remove it or choose another folder."
        raise FileExistsError(msg)
    if diameter_um is not None:
        check_positive("diameter_um", diameter_um)
        if shapes is not None or diameter_um > LARGEST_SPOT_UM:
            msg = f"Expected `diameter_um` of at most {LARGEST_SPOT_UM:,} and without `shapes`, found {diameter_um}."
            raise ValueError(msg)


def _only_image(sdata: SpatialData, key_added: str) -> str | None:
    """Return the key of the only image besides the map that an earlier call wrote, if there is only one."""
    keys = [key for key in sdata.images if key != key_added]
    return keys[0] if len(keys) == 1 else None
