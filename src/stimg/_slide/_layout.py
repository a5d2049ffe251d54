"""Integer lattice positions from array indices or coordinates; arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stimg._slide._geometry import site_positions

# A far outlier or a wrong unit gives many more sites than that. Cores or FOVs far apart give fewer; sites take memory
# (28 bytes each while windows are counted) but, if empty, hardly any time.
MOST_SITES_AN_OBSERVATION = 1000
MOST_SITES = 2**25
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


def lay(
    kind: str, array: np.ndarray | None, coordinates: np.ndarray | None, pitch: float | None, advice: str = ""
) -> Layout:
    """Lay out one section: bins of its coordinates if it is free, or else its array positions.

    `advice` says what to do, apart from the usual, if the lattice would be all but empty.
    """
    if array is None:
        if coordinates is None or pitch is None:
            msg = "Expected coordinates for a free lattice, found none."
            raise ValueError(msg)
        shape = np.ptp(coordinates, axis=0) / pitch + 1
        _check_size(shape, len(coordinates), f"Pass a larger `pitch` (in units of the coordinates){advice}")
        return lay_free(coordinates, pitch)
    rows, cols = array.T
    if kind == "square":
        layout = lay_square(rows, cols)
        _check_size(np.ptp(array, axis=0) / layout.step + 1, len(array), f"Correct the array positions{advice}")
        return layout
    if not has_one_parity(rows, cols):
        msg = (
            "Expected a hexagonal array, in which `array_row + array_col` is even for all spots or odd for all, found "
            "both. Pass `platform='square'` for a square array, or `library_key` for sections with different frames."
        )
        raise ValueError(msg)
    _check_size(np.ptp(array, axis=0) / [1, 2] + 1, len(array), f"Correct the array positions{advice}")
    return lay_hex(rows, cols, coordinates)


def _check_size(shape: np.ndarray, n_obs: int, advice: str) -> None:
    """Refuse a lattice that is almost empty, because of a far outlier or a wrong unit."""
    if np.prod(shape) > max(MOST_SITES_AN_OBSERVATION * n_obs, MOST_SITES):
        msg = (
            f"The lattice would have {np.prod(shape):.3g} sites for {n_obs} observations. {advice}, or remove far "
            "outliers."
        )
        raise ValueError(msg)
