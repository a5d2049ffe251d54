"""Predict expression of spots, cells or a whole slide from H&E."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from stimg import _keys
from stimg._input._checks import check_positive, check_var_unique, checked, warn
from stimg._input._tables import prepare, resolve_table, write_uns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

    from stimg._image._place import ImagePlace
    from stimg.models import ExpressionModel

logger = logging.getLogger("stimg")

LARGEST_SPOT_UM = 10_000

SMALLEST_LEVEL = 256  # side of the coarsest level of a map in pixels


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
    key_added: str = _keys.IMAGE_EXPRESSION,
    spatial_key: str = _keys.SPATIAL,
    library_id: str | None = None,
    image_key: str | None = None,
    table_key: str | None = None,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Predict the expression of every observation, and on request of every place, from H&E.

    The image is read block by block at the model's resolution, each with a margin of context; a dense map at a quarter
    of that resolution is computed for the block and read inside each spot with exact areas. Spots may be of any size,
    also ones that were never trained on.

    Parameters
    ----------
    adata
        A slide. Its own expression is not looked at.
    model
        From :func:`stimg.tl.train_expression`, or the path of a file that its `save` wrote.
    image
        As `images` of :func:`stimg.pp.to_image_patches`: path or array in the pixels of `.obsm[spatial_key]`; by
        default the image in `adata`.
    diameter_um
        Diameter of the circles that are read, in micrometres; by default the spots' own.
    shapes
        Read these instead of circles: one shapely polygon an observation (a sequence or a GeoSeries), in the
        coordinates of `.obsm[spatial_key]`.
    dense
        Genes whose map of all places between the outermost observations is kept as well.
    map_path
        New folder for the dense map, a chunked zarr array written block by block, so that maps of whole slides and many
        genes need no memory; a `SpatialData` reads it lazily. By default the map is in memory.
    symmetric
        Average over the eight flips and quarter turns of the image; eight times slower, measured better.
    image_mpp
        Micrometres per pixel of the image, where they are unknown.
    device
        `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
    key_added
        Key of the layer.
    spatial_key, library_id, image_key, table_key
        Where coordinates, the image and the table are.
    copy
        Return a changed copy and leave `adata` as it is.

    Returns
    -------
    `None` (or the copy), with
    `.layers[key_added]` : float32, dense (n_obs, n_vars), log-normalised expression; NaN in genes that the model does
    not know and in observations outside of the image.
    `.uns["stimg"]["predict_expression"]` : parameters, resolution, the model's name and the sha256 of its file.
    `.uns["stimg"]["expression_map"]` : with `dense`: `map` float32 (n_genes, height, width), or `map_path`, the folder;
    `genes`; `transform`, 3 x 3, from the map's pixels (column, row, 1) to the coordinates (x, y, 1); and `tissue`, bool
    (height, width), without which values mean nothing (:func:`stimg.pl.expression_map` leaves them white). A
    `SpatialData` gets the map as the image `key_added` instead, with genes as channels, scale levels, and the
    coordinate systems of its own image.

    Raises
    ------
    FileExistsError
        There is something at `map_path`.
    KeyError
        Coordinates, image or genes are missing.
    ValueError
        A bad argument, no gene of the model in `adata.var_names`, or image and spots that do not fit each other.

    Warns
    -----
    UserWarning
        Observations outside of the image.

    References
    ----------
    PixNet, arXiv 2503.01347.
    """
    from stimg import __version__
    from stimg._apply._dense import Disks, Polygons, map_pixel_um, read_shapes
    from stimg._apply._run_windows import get_device
    from stimg._image._place import read_image_slide
    from stimg._image._statistics import slide_statistics

    device = get_device(device)
    model = _get_model(model)
    table = resolve_table(adata, table_key, copy=copy)
    check_var_unique(table)
    columns = table.var_names.get_indexer(model.genes)
    known = np.flatnonzero(columns >= 0)
    if not len(known):
        msg = (
            f"None of the model's {len(model.genes)} genes ({', '.join(model.genes[:3])}, ...) is in `adata.var_names` "
            f"({', '.join(table.var_names[:3])}, ...). Check species and gene identifiers."
        )
        raise ValueError(msg)
    if isinstance(dense, str) or (absent := [gene for gene in dense if gene not in model.genes]):
        found = dense if isinstance(dense, str) else absent[:3]
        msg = f"Expected `dense` to be a list of genes that the model predicts, found {found!r}."
        raise KeyError(msg)
    if diameter_um is not None:
        check_positive("diameter_um", diameter_um)
        if shapes is not None or diameter_um > LARGEST_SPOT_UM:
            msg = f"Expected `diameter_um` of at most {LARGEST_SPOT_UM}, and not beside `shapes`, found {diameter_um}."
            raise ValueError(msg)
    if map_path is not None and (not len(dense) or Path(map_path).exists()):
        if not len(dense):
            msg = "Expected genes in `dense` for the map at `map_path`, found none."
            raise ValueError(msg)
        msg = f"There is something at `map_path`={str(map_path)!r}. Remove it or choose another folder."
        raise FileExistsError(msg)
    if not isinstance(adata, AnnData) and image is None and image_key is None:
        image_key = _only_image(adata, key_added)
    place = read_image_slide(
        adata,
        image,
        mpp=float(model.card["mpp"]),
        spatial_key=spatial_key,
        library_id=library_id,
        image_key=image_key,
        table_key=table_key,
        image_mpp=image_mpp,
        diameter_um=0.0 if shapes is not None else diameter_um,
        name="adata",
    )
    pixel = map_pixel_um(model)
    read: Disks | Polygons
    if shapes is None:
        read = Disks(place.centres / pixel, place.diameter_um / 2 / pixel)
    else:
        read = Polygons(_check_shapes(shapes, table.n_obs, place.um_per_unit / pixel))
    size = np.array(place.image.shape) * place.image.mpp / pixel
    inside = np.flatnonzero(((read.centres >= 0) & (read.centres < size)).all(1))
    if len(inside) < table.n_obs:
        warn(
            f"{table.n_obs - len(inside):,} of {table.n_obs:,} observations lie outside of the image; their values are "
            "NaN."
        )
    stain = place.image.stain if model.card["stain_normalise"] else None
    statistics = slide_statistics(place.image, float(model.card["mpp"]), stain, place.centres[inside])
    options: dict[str, Any] = {"statistics": statistics, "symmetric": symmetric, "device": device}
    values = np.full((table.n_obs, table.n_vars), np.nan, dtype=np.float32)
    values[np.ix_(inside, columns[known])] = read_shapes(model, place.image, read.take(inside), known, **options)
    expression_map = None
    if len(dense):
        expression_map = _dense_map(model, place, list(dense), map_path, **options)
    table, result = prepare(adata, table_key, copy)
    table.layers[key_added] = values
    record = {
        "key_added": key_added,
        "mpp": float(model.card["mpp"]),
        "diameter_um": place.diameter_um,
        "symmetric": bool(symmetric),
        "target_sum": float(model.card["target_sum"]),
        "unit": f"log1p(counts per {model.card['target_sum']:,.0f})",
        "model": model.card["name"],
        "sha256": model.sha256,
        "version": __version__,
    }
    write_uns(table, _keys.STEP_PREDICT, record)
    if expression_map is not None and isinstance(adata, AnnData):
        write_uns(table, _keys.EXPRESSION_MAP, expression_map)
    elif expression_map is not None:
        target: Any = adata if result is None else result
        target.images[key_added] = _as_image(expression_map, adata, image_key, from_own=image is None)
    logger.info("Added .layers[%r]: %d genes of %d observations.", key_added, len(known), len(inside))
    return result


def _only_image(sdata: SpatialData, key_added: str) -> str | None:
    """Key of the only image besides the map that an earlier call wrote."""
    keys = [key for key in sdata.images if key != key_added]
    return keys[0] if len(keys) == 1 else None


def _as_image(expression_map: dict[str, Any], sdata: SpatialData, image_key: str | None, *, from_own: bool) -> Any:
    """Make the dense map an image of genes with scale levels, in the coordinate systems of its source."""
    import dask.array
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine, Sequence, get_transformation

    to_pixels = Affine(expression_map["transform"], input_axes=("x", "y"), output_axes=("x", "y"))
    systems: dict[str, Any] = {"global": to_pixels}
    if from_own:
        source: Any = sdata.images[image_key]
        known: Any = get_transformation(source, get_all=True)
        systems = {system: Sequence([to_pixels, further]) for system, further in known.items()}
    values: Any = expression_map.get("map")
    if values is None:
        values = dask.array.from_zarr(expression_map["map_path"])
    levels = max(0, int(np.log2(max(values.shape[1:]) / SMALLEST_LEVEL)))
    return Image2DModel.parse(
        values,
        dims=("c", "y", "x"),
        c_coords=[str(gene) for gene in expression_map["genes"]],
        transformations=systems,
        scale_factors=[2] * levels or None,
    )


def _get_model(model: ExpressionModel | str | Path) -> ExpressionModel:
    """Pass a model through, or read it from a file."""
    from stimg.models import ExpressionModel

    if isinstance(model, ExpressionModel):
        return model
    if isinstance(model, str | Path):
        return ExpressionModel.load(model)
    msg = f"Expected `model` to be a `stimg.models.ExpressionModel` or a path, found {type(model).__name__}."
    raise TypeError(msg)


def _check_shapes(shapes: Any, n_obs: int, scale: float) -> np.ndarray:
    """Polygons in pixels of the map, (n_obs,)."""
    import shapely

    geometries = np.asarray(list(shapes), dtype=object)
    kinds = shapely.get_type_id(geometries) if len(geometries) == n_obs else np.array([])
    if len(geometries) != n_obs or not np.isin(kinds, [3, 6]).all():
        msg = f"Expected `shapes` to be one shapely polygon an observation, {n_obs}, found {len(geometries)} objects."
        raise ValueError(msg)
    if bad := int((~shapely.is_valid(geometries) | shapely.is_empty(geometries)).sum()):
        msg = f"{bad} of {n_obs} `shapes` are empty or cross themselves. Repair them, e.g. by `shapely.make_valid`."
        raise ValueError(msg)
    return shapely.transform(geometries, lambda xy: xy * scale)


def _dense_map(
    model: ExpressionModel, place: ImagePlace, genes: Sequence[str], path: str | Path | None, **options: Any
) -> dict[str, Any]:
    """Map genes between the outermost observations: the maps or where they were written, the genes, the transform."""
    import zarr

    from stimg._apply._dense import CORE, dense_blocks, map_pixel_um

    pixel = map_pixel_um(model)
    rows = np.array([int(np.flatnonzero(model.genes == gene)[0]) for gene in genes])
    edge = place.diameter_um / 2
    low = np.floor(np.maximum((place.centres.min(0) - edge) / pixel, 0) / CORE).astype(int)
    size = np.array(place.image.shape) * place.image.mpp
    high = np.ceil(np.minimum(place.centres.max(0) + edge, size) / pixel / CORE).astype(int)
    blocks = np.stack(np.meshgrid(*(np.arange(*ends) for ends in zip(low, high, strict=True)), indexing="ij"), -1)
    extent = (high - low) * CORE
    shape = (len(rows), int(extent[0]), int(extent[1]))
    found: Any = np.empty(shape, dtype=np.float32)
    if path is not None:
        found = zarr.create_array(store=str(path), shape=shape, chunks=(1, CORE, CORE), dtype="float32")
    corners = (blocks.reshape(-1, 2) - low) * CORE
    parts = dense_blocks(model, place.image, blocks.reshape(-1, 2), rows, **options)
    for (top, left), part in zip(corners, parts, strict=True):
        found[:, top : top + CORE, left : left + CORE] = part
    scale = pixel / place.um_per_unit
    transform = np.array([[scale, 0, low[1] * CORE * scale], [0, scale, low[0] * CORE * scale], [0, 0, 1]])
    kept = {"map": found} if path is None else {"map_path": str(Path(path).resolve())}
    mask, mask_mpp = place.image.tissue
    axes = [
        np.minimum(((first * CORE + np.arange(n) + 0.5) * pixel / mask_mpp).astype(int), length - 1)
        for first, n, length in zip(low, extent, mask.shape, strict=True)
    ]
    return {**kept, "genes": np.asarray(genes, dtype=str), "transform": transform, "tissue": mask[np.ix_(*axes)]}
