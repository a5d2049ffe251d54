"""Exact areas of pixels inside spots, bins and cells, as sparse matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shapely import Geometry
    from torch import Tensor


def disk_footprints(centres: np.ndarray, radii: np.ndarray | float, shape: tuple[int, int]) -> sparse.csr_array:
    """Return the area (0 to 1) of each pixel inside each disk, float64 (n, height * width).

    Centres (n, 2), row and column, and radii, one or (n,), are in pixels; pixel (i, j) is the square from (i, j) to
    (i + 1, j + 1). Whatever lies outside the grid of this `shape` (height, width) is left out: each row sums to the
    area of its disk within the grid.
    """
    radii = np.broadcast_to(np.asarray(radii, dtype=np.float64), len(centres))
    rows, first, grid = _windows(centres - radii[:, None], centres + radii[:, None], shape)
    corner = (grid - centres[rows][:, None]) / radii[rows, None, None]  # (pixels, 2 ends, 2 axes), in radii
    low, high = corner[:, 0], corner[:, 1]
    area = (
        _quadrant(high[:, 0], high[:, 1])
        - _quadrant(low[:, 0], high[:, 1])
        - _quadrant(high[:, 0], low[:, 1])
        + _quadrant(low[:, 0], low[:, 1])
    )
    return _assemble(area * radii[rows] ** 2, rows, first, len(centres), shape)


def polygon_footprints(polygons: Sequence[Geometry], shape: tuple[int, int]) -> sparse.csr_array:
    """Return the area of each pixel inside each polygon, as `disk_footprints` does for disks.

    Valid shapely polygons or multipolygons are expected, with x as the column and y as the row, in pixels.
    """
    import shapely

    geometries = np.asarray(polygons, dtype=object)
    bounds = shapely.bounds(geometries)
    rows, first, grid = _windows(bounds[:, [1, 0]], bounds[:, [3, 2]], shape)
    pixels = shapely.box(grid[:, 0, 1], grid[:, 0, 0], grid[:, 1, 1], grid[:, 1, 0])
    return _assemble(shapely.area(shapely.intersection(geometries[rows], pixels)), rows, first, len(geometries), shape)


def pixel_weights(areas: sparse.csr_array, aggregation: str, full_area: np.ndarray | float) -> Tensor:
    """Turn areas of pixels into the weights with which a model's `aggregation` adds them up, a sparse float32 tensor.

    The weights of a `"mean"` sum to 1; those of a `"sum"` are in units of the area of a whole spot, one or (n,).
    """
    scale = 1 / areas.sum(1) if aggregation == "mean" else 1 / np.broadcast_to(full_area, areas.shape[:1])
    return as_tensor(sparse.csr_array(areas.multiply(scale[:, None])))


def as_tensor(matrix: sparse.csr_array) -> Tensor:
    """Return the matrix as a sparse float32 tensor that can be multiplied with what needs a gradient."""
    import torch

    coo = matrix.tocoo()
    place = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
    values = torch.from_numpy(coo.data.astype(np.float32))
    return torch.sparse_coo_tensor(place, values, matrix.shape, check_invariants=False).coalesce()


def wholly_inside(centres: np.ndarray, reach: float, size: np.ndarray | float) -> np.ndarray:
    """Tell which disks or squares with this `reach` around centres (n, 2) lie wholly from 0 to `size`, bool (n,)."""
    return np.all((centres >= reach) & (centres <= size - reach), axis=1)


def _windows(low: np.ndarray, high: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List all pixels of all bounding boxes: the box (n,), upper-left corner (n, 2) and both ends (n, 2 ends, 2)."""
    start = np.clip(np.floor(low), 0, shape).astype(np.int64)
    stop = np.clip(np.ceil(high), 0, shape).astype(np.int64)
    extent = np.maximum(stop - start, 0)
    number = extent.prod(1)
    rows = np.repeat(np.arange(len(low)), number)
    within = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
    width = extent[rows, 1]
    first = start[rows] + np.stack([within // np.maximum(width, 1), within % np.maximum(width, 1)], 1)
    return rows, first, np.stack([first, first + 1], 1).astype(np.float64)


def _quadrant(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the area of the unit disk where x <= a and y <= b."""
    a, b = np.clip(a, -1, 1), np.clip(b, -1, 1)

    def half_strip(t: np.ndarray) -> np.ndarray:
        """Return the area under the upper half circle from 0 to t."""
        return 0.5 * (t * np.sqrt(1 - t**2) + np.arcsin(t))

    corner_inside = np.pi / 4 + half_strip(a) + half_strip(b) + a * b
    caps_cut = 2 * (half_strip(np.maximum(a, 0)) + half_strip(np.maximum(b, 0)))
    left_or_lower = np.pi / 2 + 2 * half_strip(np.minimum(a, b))
    corner_outside = np.where((a <= 0) & (b <= 0), 0, np.where((a > 0) & (b > 0), caps_cut, left_or_lower))
    return np.where(a**2 + b**2 < 1, corner_inside, corner_outside)


def _assemble(
    area: np.ndarray, rows: np.ndarray, first: np.ndarray, n_shapes: int, shape: tuple[int, int]
) -> sparse.csr_array:
    """Put the areas of pixels into one sparse row per shape."""
    columns = first[:, 0] * shape[1] + first[:, 1]
    kept = area > 1e-12
    return sparse.csr_array(
        (np.minimum(area[kept], 1.0), (rows[kept], columns[kept])), shape=(n_shapes, shape[0] * shape[1])
    )
