"""Integer lattice positions from array indices or from coordinates; arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

REGULAR_SPREAD = 0.05
SAMPLE = 4000
DENSITY_NEIGHBOURS = 8


@dataclass(frozen=True)
class Layout:
    """One library on its lattice.

    `lattice` int32 (n, 2): row and column, from 0. `kind`: `"hex"`, `"square"`, `"free"`. `origin`: array index, or
    coordinate for `"free"`, of site (0, 0)'s corner. `parity`: of a hex lattice, see `Slide`. `transposed`: the array's
    columns became the rows.
    """

    lattice: np.ndarray
    kind: str
    origin: tuple[float, float]
    parity: int = 0
    transposed: bool = False


def true_positions(layout: Layout) -> np.ndarray:
    """Return float64 (n, 2): x and y in units of the pitch."""
    row, col = layout.lattice.T.astype(np.float64)
    if layout.kind != "hex":
        return np.column_stack([col, row])
    return np.column_stack([col + 0.5 * ((row + layout.parity) % 2), row * np.sqrt(0.75)])


def fit_affine(layout: Layout, coordinates: np.ndarray | None) -> np.ndarray:
    """Least-squares map float64 (3, 2) from true positions (x, y, 1) to coordinates; NaN where it is undetermined."""
    if coordinates is None or layout.kind == "free" or len(coordinates) < 3:
        return np.full((3, 2), np.nan)
    design = np.column_stack([true_positions(layout), np.ones(len(coordinates))])
    if np.linalg.matrix_rank(design) < 3:
        return np.full((3, 2), np.nan)
    return np.linalg.lstsq(design, coordinates, rcond=None)[0]


def is_checkerboard(rows: np.ndarray, cols: np.ndarray) -> bool:
    """Tell whether every second position of the array is used, as on hexagonal arrays."""
    return len(rows) > 1 and len(np.unique((rows + cols) % 2)) == 1


def lay_hex(rows: np.ndarray, cols: np.ndarray, coordinates: np.ndarray | None = None) -> Layout:
    """Lay a checkerboard array without holes: (row, col // 2), the doubled axis found from the coordinates."""
    transposed = False
    if coordinates is not None and len(rows) > 3:
        steps = np.linalg.lstsq(np.column_stack([rows, cols, np.ones(len(rows))]), coordinates, rcond=None)[0]
        row_step, col_step = np.linalg.norm(steps[:2], axis=1)
        transposed = bool(col_step > 1.2 * row_step)
    if transposed:
        rows, cols = cols, rows
    first_row, first_col = int(rows.min()), int(cols.min())
    row, col = rows - first_row, cols - first_col
    lattice = np.column_stack([row, col // 2]).astype(np.int32)
    parity = int((row[0] + col[0]) % 2)
    return Layout(lattice, "hex", (first_row, first_col), parity, transposed)


def lay_square(rows: np.ndarray, cols: np.ndarray) -> Layout:
    """Lay an array as it is, from 0."""
    first_row, first_col = int(rows.min()), int(cols.min())
    lattice = np.column_stack([rows - first_row, cols - first_col]).astype(np.int32)
    return Layout(lattice, "square", (first_row, first_col))


def lay_free(coordinates: np.ndarray, pitch: float) -> Layout:
    """Lay coordinates in square bins centred on their bounding box, so that turning the slide only turns the bins."""
    low, high = coordinates.min(0), coordinates.max(0)
    bins = np.maximum(np.ceil((high - low) / pitch), 1)
    origin = (low + high) / 2 - bins * pitch / 2
    index = np.clip(np.floor((coordinates - origin) / pitch), 0, bins - 1).astype(np.int64)
    first = index.min(0)
    lattice = (index - first)[:, ::-1].astype(np.int32)
    corner = origin + first * pitch
    return Layout(lattice, "free", (float(corner[1]), float(corner[0])))


def default_pitch(coordinates: np.ndarray) -> float:
    """Pitch of about one observation a site: one over the root of the median local density.

    The density at an observation is that of the circle to its eighth neighbour, so that holes in the tissue do not
    count. Returns 0 where more than half of the observations lie on each other.
    """
    count = min(DENSITY_NEIGHBOURS, len(coordinates) - 1)
    if count < 1:
        return 1.0
    distances = cKDTree(coordinates).query(_sample(coordinates), k=[count + 1])[0][:, 0]
    return float(np.median(distances) * np.sqrt(np.pi / count))


def regular_grid(coordinates: np.ndarray) -> str | None:
    """Tell whether coordinates lie on a regular `"hex"` or `"square"` grid, by equal nearest distances."""
    if len(coordinates) < 16:
        return None
    distances = cKDTree(coordinates).query(_sample(coordinates), k=7)[0][:, 1:]
    nearest = np.median(distances[:, 0])
    if nearest == 0 or np.mean(np.abs(distances[:, 0] / nearest - 1) > REGULAR_SPREAD) > 0.1:
        return None
    ratio = np.median(distances / nearest, axis=0)
    if ratio[5] < 1 + 2 * REGULAR_SPREAD:
        return "hex"
    if ratio[3] < 1 + 2 * REGULAR_SPREAD and abs(ratio[4] - np.sqrt(2)) < 0.1:
        return "square"
    return None


def grid_indices(coordinates: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Array indices (rows, cols) of coordinates on a regular grid at any angle, or `None` where they don't fit one.

    The angle comes from the directions to the nearest neighbours; indices are rounded, an affine map is fitted to
    them, and both are repeated.
    """
    fold = 6 if kind == "hex" else 4
    tree = cKDTree(coordinates)
    distances, neighbours = tree.query(coordinates, k=fold + 1)
    pitch = float(np.median(distances[:, 1]))
    near = np.abs(distances[:, 1:] / pitch - 1) < 0.15
    offsets = coordinates[neighbours[:, 1:]][near] - np.repeat(coordinates, near.sum(1), axis=0)
    angles = np.arctan2(offsets[:, 1], offsets[:, 0])
    angle = np.angle(np.exp(1j * fold * angles).mean()) / fold
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = coordinates[np.argmin(((coordinates - coordinates.mean(0)) ** 2).sum(1))]
    units = (coordinates - centre) @ turn / pitch
    for _ in range(5):
        if kind == "hex":
            rows = np.rint(units[:, 1] / np.sqrt(0.75))
            cols = rows + 2 * np.rint(units[:, 0] - 0.5 * rows)
            positions = np.column_stack([cols / 2, rows * np.sqrt(0.75)])
        else:
            rows, cols = np.rint(units[:, 1]), np.rint(units[:, 0])
            positions = np.column_stack([cols, rows])
        design = np.column_stack([units, np.ones(len(units))])
        fitted = design @ np.linalg.lstsq(design, positions, rcond=None)[0]
        residual = np.abs(fitted - positions).max()
        units = fitted
    if residual > 0.4:
        return None
    return rows.astype(np.int64), cols.astype(np.int64)


def _sample(coordinates: np.ndarray) -> np.ndarray:
    """Evenly spaced observations in order of position, at most `SAMPLE`, whatever the order of rows."""
    if len(coordinates) <= SAMPLE:
        return coordinates
    order = np.lexsort(coordinates.T)
    return coordinates[order[np.linspace(0, len(order) - 1, SAMPLE).astype(int)]]
