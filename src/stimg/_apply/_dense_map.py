"""Maps of genes over a whole slide, in memory or on disk."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._apply._dense import CORE, dense_blocks, map_pixel_um
from stimg._files import written_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from spatialdata import SpatialData

    from stimg._image._place import ImagePlace
    from stimg.models import ExpressionModel

SMALLEST_LEVEL = 256  # side of the coarsest level of a map in pixels


def dense_map(
    model: ExpressionModel, place: ImagePlace, genes: Sequence[str], path: Path | None, **options: Any
) -> dict[str, Any]:
    """Map genes over the area of the observations, as :func:`stimg.tl.predict_expression` describes."""
    pixel = map_pixel_um(model)
    rows = np.array([int(np.flatnonzero(model.genes == gene)[0]) for gene in genes])
    edge = place.diameter_um / 2
    low = np.floor(np.maximum((place.centres.min(0) - edge) / pixel, 0) / CORE).astype(int)
    size = np.array(place.image.shape) * place.image.mpp
    high = np.ceil(np.minimum(place.centres.max(0) + edge, size) / pixel / CORE).astype(int)
    blocks = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1).reshape(-1, 2)
    extent = (high - low) * CORE
    with _new_array(path, (len(rows), int(extent[0]), int(extent[1]))) as found:
        parts = dense_blocks(model, place.image, blocks, rows, **options)
        for (top, left), part in zip((blocks - low) * CORE, parts, strict=True):
            found[:, top : top + CORE, left : left + CORE] = part
    scale = pixel / place.um_per_unit
    mask, mask_mpp = place.image.tissue
    axes = [(first * CORE + np.arange(n) + 0.5) * pixel for first, n in zip(low, extent, strict=True)]
    inside = [axis < end for axis, end in zip(axes, size, strict=True)]
    seen = [
        np.minimum((axis / mask_mpp).astype(int), length - 1) for axis, length in zip(axes, mask.shape, strict=True)
    ]
    return {
        **({"map": found} if path is None else {"map_path": str(path.resolve())}),
        "genes": np.asarray(genes, dtype=str),
        "transform": np.array([[scale, 0, low[1] * CORE * scale], [0, scale, low[0] * CORE * scale], [0, 0, 1]]),
        "tissue": mask[np.ix_(*seen)] & np.logical_and.outer(*inside),
    }


def as_image(expression_map: dict[str, Any], sdata: SpatialData, source_key: str | None) -> Any:
    """Turn a map into an image of genes with scale levels, in the coordinate systems of the image `source_key`."""
    import dask.array
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine, Sequence, get_transformation

    to_pixels = Affine(expression_map["transform"], input_axes=("x", "y"), output_axes=("x", "y"))
    systems: dict[str, Any] = {"global": to_pixels}
    if source_key is not None:
        source: Any = sdata.images[source_key]
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


@contextmanager
def _new_array(path: Path | None, shape: tuple[int, ...]) -> Iterator[Any]:
    """Yield a new float32 array in memory, or a zarr that appears at `path` only if it is finished.

    In a zarr, values that were never written read as NaN.
    """
    if path is None:
        yield np.empty(shape, dtype=np.float32)
        return
    import zarr

    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path, overwrite=False) as unfinished:
        options: dict[str, Any] = {"chunks": (1, CORE, CORE), "dtype": "float32", "fill_value": np.nan}
        yield zarr.create_array(store=str(unfinished), shape=shape, **options)
