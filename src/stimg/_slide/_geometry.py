"""Where sites lie and which points are near: the geometry of lattices, written once."""

from __future__ import annotations

import numpy as np

ROW_HEIGHT = np.sqrt(0.75)  # of a hexagonal lattice, in units of the pitch


def site_positions(sites: np.ndarray, kind: str, parity: int = 0) -> np.ndarray:
    """Return float64 (n, 2): true x and y of sites (n, 2), rows and columns, in units of the pitch.

    On a hexagonal lattice, rows with an odd `row + parity` are shifted by half a pitch.
    """
    row, col = np.asarray(sites, dtype=np.float64).T
    if kind != "hex":
        return np.column_stack([col, row])
    return np.column_stack([col + 0.5 * ((row + parity) % 2), row * ROW_HEIGHT])


def nearest_others(points: np.ndarray, count: int) -> np.ndarray:
    """Return int64 (n, k): the nearest other points of each, `count` of them or all where there are fewer.

    A point is never its own neighbour, also where several coincide.
    """
    from scipy.spatial import cKDTree

    count = min(count, len(points) - 1)
    if count < 1:
        return np.zeros((len(points), 0), dtype=np.int64)
    near = cKDTree(points).query(points, k=count + 1)[1]
    itself = near == np.arange(len(points))[:, None]
    itself[~itself.any(1), -1] = True  # of coinciding points, the query may list only the others
    return near[~itself].reshape(len(points), count)


def spacing(points: np.ndarray) -> float:
    """Median distance to the nearest other point; NaN of fewer than two."""
    from scipy.spatial import cKDTree

    if len(points) < 2:
        return float("nan")
    return float(np.median(cKDTree(points).query(points, k=2)[0][:, 1]))


def n_distinct(sites: np.ndarray) -> int:
    """Count different sites among sites (n, 2) of rows and columns of at least 0."""
    rows, cols = sites.astype(np.int64).T
    return len(np.unique(rows * (cols.max(initial=0) + 1) + cols))
