"""The area that each observation stands for, as polygons that fit together without gaps or overlaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stimg._slide._geometry import default_pitch, site_positions

if TYPE_CHECKING:
    from shapely import Geometry

# Corners from the middle of a site: in halves of its width and, of a hexagon, in thirds of the height of a row.
HEXAGON = np.array([[0, 2], [1, 1], [1, -1], [0, -2], [-1, -1], [-1, 1]])
SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
MOST_OFF = 0.5  # of the pitch, the median between a site and its observation
REACH = 1.5  # of the pitch: gaps into which no circle of this radius fits are tissue, too, where coordinates are free
MARGIN = 0.5  # of the pitch: the tissue around a free observation
FAR = 10.0
PLACE_DIGITS = 3  # of a pitch: free observations that are nearer to each other are in one place
CORNER_DIGITS = 6  # corners that differ less are one, so that cells that meet there do not cross


@dataclass(frozen=True)
class Cells:
    """The cells of one section."""

    polygons: np.ndarray  # shapely polygons (n_cells,), of which neighbours share corners exactly
    first: np.ndarray  # int64 (n_cells,): the first observation in each
    tissue: Geometry | None  # what of the cells counts; `None` if all of them does

    def merge(self, chosen: np.ndarray) -> Geometry:
        """Return the area of the chosen cells, bool (n_cells,), as one polygon or multipolygon."""
        import shapely

        try:
            whole = shapely.coverage_union_all(self.polygons[chosen])
        except shapely.errors.GEOSException:  # corners that differ by rounding, as of points on a circle
            whole = shapely.union_all(self.polygons[chosen])
        if self.tissue is None:
            return whole
        area = shapely.intersection(whole, self.tissue)
        parts = shapely.get_parts(area)
        return shapely.union_all(parts[shapely.get_type_id(parts) == 3])  # no lines along which areas touch


def site_cells(sites: np.ndarray, kind: str, parity: int, points: np.ndarray) -> Cells:
    """Return the hexagons or squares of a section's sites (n_obs, 2), in the coordinates of its `points` (n_obs, 2).

    Points that do not lie on the lattice, or are too few or in a line so that its place is unknown, are a `ValueError`.
    """
    import shapely

    places = np.column_stack([site_positions(sites, kind, parity), np.ones(len(sites))])
    affine, _, rank, _ = np.linalg.lstsq(places, points, rcond=None)
    if rank < 3:
        msg = f"Expected three or more observations of a section, not in a line, found {len(sites)}."
        raise ValueError(msg)
    pitch = float(np.linalg.norm(affine[:2], axis=1).mean())
    off = float(np.median(np.abs(places @ affine - points).max(1)))
    if not off <= MOST_OFF * pitch:
        msg = (
            f"The elements that the table annotates lie {off / pitch:.2g} pitches from their sites (median): the "
            "lattice is that of other coordinates. Run `stimg.pp.to_lattice(sdata)` again."
        )
        raise ValueError(msg)
    unique, first = np.unique(sites, axis=0, return_index=True)
    row, col = unique.astype(np.int64).T
    # Whole numbers, so that neighbours have the same corners to the last digit.
    if kind == "hex":
        corners = np.column_stack([2 * col + (row + parity) % 2, 3 * row])[:, None] + HEXAGON
        scaled = corners / [2, 2 * np.sqrt(3)]
    else:
        corners = 2 * np.column_stack([col, row])[:, None] + SQUARE
        scaled = corners / 2
    x, y = scaled[..., 0, None], scaled[..., 1, None]
    return Cells(shapely.polygons(x * affine[0] + y * affine[1] + affine[2]), first, None)


def nearest_cells(points: np.ndarray) -> Cells:
    """Return the Voronoi cells of points (n_obs, 2): the tissue that is nearer to each than to any other.

    The tissue is the area around the points, with gaps up to three pitches wide closed; holes that are wider stay.
    """
    import shapely
    from scipy.spatial import Voronoi

    pitch = default_pitch(np.unique(points, axis=0))
    middle = (points.min(0) + points.max(0)) / 2
    local, first = np.unique(np.round((points - middle) / pitch, PLACE_DIGITS), axis=0, return_index=True)
    reach = np.abs(local).max() + REACH
    around = FAR * reach * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])  # so that all other cells are bounded
    diagram = Voronoi(np.concatenate([local, around]))
    regions = [diagram.regions[number] for number in diagram.point_region[: len(local)]]
    cell = np.repeat(np.arange(len(local)), [len(region) for region in regions])
    corners = np.round(diagram.vertices, CORNER_DIGITS)[np.concatenate(regions)]
    away = corners - local[cell]
    order = np.lexsort((np.arctan2(away[:, 1], away[:, 0]), cell))
    rings = shapely.linearrings(corners[order], indices=cell)
    near = shapely.union_all(shapely.buffer(shapely.points(local), REACH, quad_segs=4))
    tissue = shapely.buffer(near, MARGIN - REACH, quad_segs=4)
    placed = [shapely.transform(one, lambda xy: xy * pitch + middle) for one in (shapely.polygons(rings), tissue)]
    return Cells(placed[0], first, placed[1])
