"""Windows on a lattice."""

from __future__ import annotations

import numpy as np


def window_starts(grid: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Return the top-left sites, int32 (n, 2), of `size x size` windows `stride` apart that cover the whole grid.

    The last window of each axis is moved back to the edge, so that no window extends beyond the grid unless the grid is
    smaller than a window. Windows without an occupied site are left out.
    """
    starts = [np.unique(np.r_[np.arange(0, max(n - size, 0), stride), max(n - size, 0)]) for n in grid.shape]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int32)
    return corners[count_occupied(grid, corners, size) > 0]


def count_occupied(grid: np.ndarray, corners: np.ndarray, size: int) -> np.ndarray:
    """Return the number of occupied sites in each window, int64 (n,), by an integral image."""
    table = np.zeros((grid.shape[0] + 1, grid.shape[1] + 1), dtype=np.int64)
    table[1:, 1:] = (grid >= 0).cumsum(0).cumsum(1)
    low = np.clip(corners, 0, grid.shape)
    high = np.clip(corners + size, 0, grid.shape)
    return (
        table[high[:, 0], high[:, 1]]
        - table[low[:, 0], high[:, 1]]
        - table[high[:, 0], low[:, 1]]
        + table[low[:, 0], low[:, 1]]
    )


def crop(grid: np.ndarray, corner: tuple[int, int] | np.ndarray, size: int) -> np.ndarray:
    """Return the site indices of one window, int32 (size, size), -1 if empty or outside the grid."""
    window = np.full((size, size), -1, dtype=np.int32)
    row, col = int(corner[0]), int(corner[1])
    r0, c0 = max(row, 0), max(col, 0)
    r1, c1 = min(row + size, grid.shape[0]), min(col + size, grid.shape[1])
    if r1 > r0 and c1 > c0:
        window[r0 - row : r1 - row, c0 - col : c1 - col] = grid[r0:r1, c0:c1]
    return window
