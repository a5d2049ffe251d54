"""The geometry of lattices: where sites lie, and which points are near each other."""

from __future__ import annotations

import numpy as np

ROW_HEIGHT = np.sqrt(0.75)  # of a hexagonal lattice, in units of the pitch
DENSITY_NEIGHBOURS = 8
MOST_SAMPLED = 50_000
EVEN = 1.1


def site_positions(sites: np.ndarray, kind: str, parity: int = 0) -> np.ndarray:
    """Return the true x and y, float64 (n, 2) in units of the pitch, of sites (n, 2) given as rows and columns.

    On a hexagonal lattice, rows with an odd `row + parity` are shifted by half a pitch.
    """
    row, col = np.asarray(sites, dtype=np.float64).T
    if kind != "hex":
        return np.column_stack([col, row])
    return np.column_stack([col + 0.5 * ((row + parity) % 2), row * ROW_HEIGHT])


def nearest_others(points: np.ndarray, count: int) -> np.ndarray:
    """Return the nearest other points of each point, int64 (n, k): `count` of them, or all if there are fewer.

    A point is never its own neighbour, even if several coincide.
    """
    from scipy.spatial import cKDTree

    count = min(count, len(points) - 1)
    if count < 1:
        return np.zeros((len(points), 0), dtype=np.int64)
    near = cKDTree(points).query(points, k=count + 1)[1]
    itself = near == np.arange(len(points))[:, None]
    itself[~itself.any(1), -1] = True  # if many points coincide, the query may list only others
    return near[~itself].reshape(len(points), count)


def spacing(points: np.ndarray) -> float:
    """Return the median distance to the nearest other point; NaN for fewer than two points."""
    from scipy.spatial import cKDTree

    if len(points) < 2:
        return float("nan")
    return float(np.median(cKDTree(points).query(points, k=2)[0][:, 1]))


def n_distinct(sites: np.ndarray) -> int:
    """Count the different sites among sites (n, 2), rows and columns of at least 0."""
    rows, cols = sites.astype(np.int64).T
    return len(np.unique(rows * (cols.max(initial=0) + 1) + cols))


def default_pitch(coordinates: np.ndarray) -> float:
    """Return the pitch that gives about one observation per site: one over the root of the median local density.

    The density at an observation is that in the circle to its eighth neighbour, so that holes in the tissue do not
    count. If all are equally far from their nearest (in a row, or few spots of an array), the pitch is not larger than
    that. It is 0 if more than half of the observations coincide.
    """
    count = min(DENSITY_NEIGHBOURS, len(coordinates) - 1)
    if count < 1:
        return 1.0
    from scipy.spatial import cKDTree

    nearest, last = cKDTree(coordinates).query(_sample(coordinates), k=[2, count + 1])[0].T
    pitch = float(np.median(last) * np.sqrt(np.pi / count))
    return min(pitch, float(np.median(nearest))) if _are_even(nearest) else pitch


def evenly_spaced(coordinates: np.ndarray) -> bool:
    """Tell whether observations are all about equally far from their nearest, as those on an array."""
    from scipy.spatial import cKDTree

    return len(coordinates) > 1 and _are_even(cKDTree(coordinates).query(_sample(coordinates), k=2)[0][:, 1])


def _are_even(distances: np.ndarray) -> bool:
    low, high = np.quantile(distances, [0.1, 0.9])
    return bool(0 < high < EVEN * low)


def _sample(coordinates: np.ndarray) -> np.ndarray:
    """Return at most `MOST_SAMPLED` observations, evenly by distance from the middle, for any order of the rows."""
    if len(coordinates) <= MOST_SAMPLED:
        return coordinates
    offset = coordinates - (coordinates.min(0) + coordinates.max(0)) / 2
    order = np.lexsort((*offset.T, (offset**2).sum(1)))
    return coordinates[order[np.linspace(0, len(order) - 1, MOST_SAMPLED).astype(int)]]
