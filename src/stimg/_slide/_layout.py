"""Integer lattice positions from array indices or coordinates; arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from stimg._slide._geometry import ROW_HEIGHT, site_positions

# Distances between the sites of a grid, in units of the smallest.
GRID_DISTANCES = {"hex": np.sqrt([1, 3, 4, 7, 9]), "square": np.sqrt([1, 2, 4, 5, 8, 9])}
REGULAR_SPREAD = 0.05
LEAST_REGULAR = 0.9
MOST_OFF_SITE = 0.4
MOST_SAMPLED = 50_000
MOST_SITES_AN_OBSERVATION = 1000
DENSITY_NEIGHBOURS = 8
FEWEST_FOR_STEP = 16
TIE = 1e-6


@dataclass(frozen=True)
class Layout:
    """One section on its lattice."""

    lattice: np.ndarray  # int32 (n, 2): row and column, from 0
    kind: str  # "hex", "square" or "free"
    origin: tuple[float, float]  # array index (row, column) of site (0, 0); if free, its corner (y, x)
    parity: int = 0  # of a hex lattice, see `Slide`
    transposed: bool = False  # the array's columns became the rows
    step: int = 1  # between a square array's indices


def fit_affine(layout: Layout, coordinates: np.ndarray | None, pitch: float | None = None) -> tuple[np.ndarray, float]:
    """Return the map float64 (3, 2) from true positions (x, y, 1) to coordinates, and the largest error along an axis.

    The map is exact for bins, which have a `pitch`, and a least-squares fit for arrays; NaN if it is undetermined.
    """
    unknown = np.full((3, 2), np.nan), float("nan")
    if coordinates is None:
        return unknown
    design = np.column_stack([site_positions(layout.lattice, layout.kind, layout.parity), np.ones(len(coordinates))])
    if layout.kind == "free" and pitch is not None:
        row, col = layout.origin
        affine = np.array([[pitch, 0], [0, pitch], [col + pitch / 2, row + pitch / 2]])
    elif len(coordinates) < 3 or np.linalg.matrix_rank(design) < 3:
        return unknown
    else:
        affine = np.linalg.lstsq(design, coordinates, rcond=None)[0]
    return affine, float(np.abs(design @ affine - coordinates).max())


def has_one_parity(rows: np.ndarray, cols: np.ndarray) -> bool:
    """Tell whether row + column is even for all or odd for all, as on hexagonal arrays."""
    return len(np.unique((rows + cols) % 2)) == 1


def is_checkerboard(rows: np.ndarray, cols: np.ndarray) -> bool:
    """Tell whether every second position of the array is used; not so on a square array with indices in steps of 2."""
    if len(rows) < 2 or not has_one_parity(rows, cols):
        return False
    in_line = len(np.unique(rows)) == 1 or len(np.unique(cols)) == 1
    return in_line or len(rows) < FEWEST_FOR_STEP or len(np.unique(rows % 2)) == 2


def lay_hex(rows: np.ndarray, cols: np.ndarray, coordinates: np.ndarray | None = None) -> Layout:
    """Lay out a checkerboard array as (row, col // 2), after finding the doubled axis from the coordinates."""
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
    return Layout(lattice, "hex", (first_row, first_col), int((row[0] + col[0]) % 2), transposed)


def lay_square(rows: np.ndarray, cols: np.ndarray) -> Layout:
    """Lay out an array from 0, divided by the step of its indices (Stereo-seq names its bins by DNB)."""
    first_row, first_col = int(rows.min()), int(cols.min())
    index = np.column_stack([rows - first_row, cols - first_col])
    step = max(int(np.gcd.reduce(index, axis=None)), 1) if len(rows) >= FEWEST_FOR_STEP else 1
    return Layout((index // step).astype(np.int32), "square", (first_row, first_col), step=step)


def lay_free(coordinates: np.ndarray, pitch: float) -> Layout:
    """Lay out coordinates in square bins centred on their bounding box, so that turning the slide turns the bins.

    An observation on the edge between two bins belongs to the one nearer to the middle. If an observation lies exactly
    in the middle, the number of bins is odd.
    """
    low, high = coordinates.min(0), coordinates.max(0)
    middle = (low + high) / 2
    units = (coordinates - middle) / pitch
    bins = np.floor((high - low) / pitch + TIE) + 1
    bins += (bins % 2 == 0) & (np.abs(units) < TIE).any(0)
    half = np.where(bins % 2 == 1, 0.5, 0.0)
    from_middle = np.maximum(np.ceil(np.abs(units) - half - TIE), 1 - 2 * half)
    index = np.sign(units) * from_middle + (bins - 1) / 2 + np.where(half == 0, -0.5 * np.sign(units), 0)
    index = np.rint(index).astype(np.int64)
    first = index.min(0)
    corner = middle + (first - bins / 2) * pitch
    return Layout((index - first)[:, ::-1].astype(np.int32), "free", (float(corner[1]), float(corner[0])))


def default_pitch(coordinates: np.ndarray) -> float:
    """Return the pitch that gives about one observation per site: one over the root of the median local density.

    The density at an observation is that in the circle to its eighth neighbour, so that holes in the tissue do not
    count. The pitch is 0 if more than half of the observations coincide.
    """
    count = min(DENSITY_NEIGHBOURS, len(coordinates) - 1)
    if count < 1:
        return 1.0
    distances = cKDTree(coordinates).query(_sample(coordinates), k=[count + 1])[0][:, 0]
    return float(np.median(distances) * np.sqrt(np.pi / count))


def regular_grid(coordinates: np.ndarray) -> str | None:
    """Tell whether coordinates lie on a regular `"hex"` or `"square"` grid, with or without gaps.

    They do if almost all distances to the nearest six are distances in that grid, and more of them than in the other.
    """
    if len(coordinates) < FEWEST_FOR_STEP:
        return None
    distances = cKDTree(coordinates).query(_sample(coordinates), k=7)[0][:, 1:]
    nearest = np.median(distances[:, 0])
    if nearest == 0:
        return None
    fit = {
        kind: float(np.mean(np.abs(distances[..., None] / (nearest * shells) - 1).min(-1) < REGULAR_SPREAD))
        for kind, shells in GRID_DISTANCES.items()
    }
    if max(fit.values()) < LEAST_REGULAR or fit["hex"] == fit["square"]:
        return None
    return max(fit, key=lambda kind: fit[kind])


def grid_indices(coordinates: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return array indices (rows, cols) of coordinates on a regular grid at any angle, or `None` if they fit none.

    The angle comes from the directions to the nearest neighbours. Indices are rounded near the middle and an affine map
    is fitted to them; with that map the same is done twice as far out, and so on across the slide.
    """
    fold = 6 if kind == "hex" else 4
    distances, neighbours = cKDTree(coordinates).query(coordinates, k=fold + 1)
    pitch = float(np.median(distances[:, 1]))
    if pitch == 0:
        return None
    near = np.abs(distances[:, 1:] / pitch - 1) < 0.15
    if not near.any():
        return None
    offsets = coordinates[neighbours[:, 1:]][near] - np.repeat(coordinates, near.sum(1), axis=0)
    angle = _grid_angle(np.arctan2(offsets[:, 1], offsets[:, 0]), fold)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = coordinates[np.argmin(((coordinates - coordinates.mean(0)) ** 2).sum(1))]
    units = (coordinates - centre) @ turn / pitch
    design = np.column_stack([units, np.ones(len(units))])
    distance = np.linalg.norm(units, axis=1)
    radius = 6.0
    while True:
        inside = distance <= radius
        positions = _nearest_sites(units, kind)[1]
        if np.linalg.matrix_rank(design[inside]) == 3:
            units = design @ np.linalg.lstsq(design[inside], positions[inside], rcond=None)[0]
        if inside.all():
            break
        radius *= 2
    (rows, cols), positions = _nearest_sites(units, kind)
    if np.abs(units - positions).max() > MOST_OFF_SITE or len(np.unique(positions, axis=0)) < len(positions):
        return None
    return rows, cols


def _grid_angle(directions: np.ndarray, fold: int) -> float:
    """Return the direction of the grid's rows: the axis nearest to x or y, so that turned slides turn their lattice."""
    angle = float(np.angle(np.exp(1j * fold * directions).mean())) / fold
    axes = angle + 2 * np.pi / fold * np.arange(fold // 2)
    off = np.abs((axes + np.pi / 4) % (np.pi / 2) - np.pi / 4)
    return float(axes[np.argmin(np.round(off, 6))])


def _nearest_sites(units: np.ndarray, kind: str) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return the array indices (rows, cols) nearest to positions in units of the pitch, and where these lie."""
    if kind == "hex":
        rows = np.rint(units[:, 1] / ROW_HEIGHT)
        cols = rows + 2 * np.rint(units[:, 0] - 0.5 * rows)
        positions = np.column_stack([cols / 2, rows * ROW_HEIGHT])
    else:
        rows, cols = np.rint(units[:, 1]), np.rint(units[:, 0])
        positions = np.column_stack([cols, rows])
    return (rows.astype(np.int64), cols.astype(np.int64)), positions


def _sample(coordinates: np.ndarray) -> np.ndarray:
    """Return at most `MOST_SAMPLED` observations, evenly by distance from the middle, for any order of the rows."""
    if len(coordinates) <= MOST_SAMPLED:
        return coordinates
    offset = coordinates - (coordinates.min(0) + coordinates.max(0)) / 2
    order = np.lexsort((*offset.T, (offset**2).sum(1)))
    return coordinates[order[np.linspace(0, len(order) - 1, MOST_SAMPLED).astype(int)]]


def lay(kind: str, array: np.ndarray | None, coordinates: np.ndarray | None, pitch: float | None) -> Layout:
    """Lay out one section."""
    if kind == "free":
        if coordinates is None or pitch is None:
            msg = "Expected coordinates for a free lattice, found none."
            raise ValueError(msg)
        shape = np.ptp(coordinates, axis=0) / pitch + 1
        _check_size(shape, len(coordinates), "Pass a larger `pitch` (in units of the coordinates)")
        return lay_free(coordinates, pitch)
    if array is None:
        found = None if coordinates is None or len(coordinates) < 7 else grid_indices(coordinates, kind)
        if found is None:
            msg = (
                f"Expected `adata.obs['array_row']` and `['array_col']`, or coordinates on a regular {kind} grid; "
                "found neither. Pass `platform='free'` to bin the coordinates."
            )
            raise ValueError(msg)
        array = np.column_stack(found)
    rows, cols = array.T
    if kind == "square":
        layout = lay_square(rows, cols)
        _check_size(np.ptp(array, axis=0) / layout.step + 1, len(array), "Correct the array positions")
        return layout
    if not has_one_parity(rows, cols):
        msg = (
            "Expected a hexagonal array, in which `array_row + array_col` is even for all spots or odd for all, found "
            "both. Pass `platform='square'` for a square array, or `library_key` for sections with different frames."
        )
        raise ValueError(msg)
    _check_size(np.ptp(array, axis=0) / [1, 2] + 1, len(array), "Correct the array positions")
    return lay_hex(rows, cols, coordinates)


def _check_size(shape: np.ndarray, n_obs: int, advice: str) -> None:
    """Refuse a lattice that is almost empty, because of a far outlier or a wrong unit."""
    if np.prod(shape) > MOST_SITES_AN_OBSERVATION * n_obs + 10_000:
        msg = (
            f"The lattice would have {np.prod(shape):.3g} sites for {n_obs} observations. {advice}, or remove far "
            "outliers."
        )
        raise ValueError(msg)
