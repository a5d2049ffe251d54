"""The shapes in which expression is read from a map: disks or polygons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._image._footprints import disk_footprints, polygon_footprints

if TYPE_CHECKING:
    from scipy import sparse


@dataclass(frozen=True)
class Disks:
    """Disks on the map: centres (n, 2), row and column, and radii `reach` (n,), in pixels of the map."""

    centres: np.ndarray
    reach: np.ndarray

    def take(self, chosen: np.ndarray) -> Disks:
        """Return the chosen disks."""
        return Disks(self.centres[chosen], self.reach[chosen])

    def footprints(self, origin: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
        """Return the areas of the pixels of a block whose upper-left corner is `origin`."""
        return disk_footprints(self.centres - origin, self.reach, shape)


@dataclass(frozen=True)
class Polygons:
    """Cells or regions on the map: shapely geometries with x as the column and y as the row, in pixels of the map.

    The centres (n, 2) are those of their bounding boxes, and `reach` (n,) is half the longer side of each box.
    """

    geometries: np.ndarray
    centres: np.ndarray
    reach: np.ndarray

    @classmethod
    def read(cls, shapes: Any, n_obs: int, scale: float) -> Polygons:
        """Check the user's polygons, one per observation, whose coordinates times `scale` are pixels of the map."""
        import shapely

        given = np.asarray(list(shapes), dtype=object)
        kinds = shapely.get_type_id(given) if len(given) == n_obs else np.array([])
        if len(given) != n_obs or not np.isin(kinds, [3, 6]).all():
            msg = f"Expected one shapely polygon per observation in `shapes` ({n_obs}), found {len(given)} objects."
            raise ValueError(msg)
        if bad := int((~shapely.is_valid(given) | shapely.is_empty(given)).sum()):
            msg = f"{bad} of {n_obs} `shapes` are empty or cross themselves. Repair them with `shapely.make_valid`."
            raise ValueError(msg)
        geometries = shapely.transform(given, lambda xy: xy * scale)
        x0, y0, x1, y1 = shapely.bounds(geometries).T
        centres = np.stack([(y0 + y1) / 2, (x0 + x1) / 2], 1)
        return cls(geometries, centres, np.maximum(x1 - x0, y1 - y0) / 2)

    def take(self, chosen: np.ndarray) -> Polygons:
        """Return the chosen polygons."""
        return Polygons(self.geometries[chosen], self.centres[chosen], self.reach[chosen])

    def footprints(self, origin: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
        """Return the areas of the pixels of a block whose upper-left corner is `origin`."""
        import shapely

        return polygon_footprints(shapely.transform(self.geometries, lambda xy: xy - origin[::-1]), shape)
