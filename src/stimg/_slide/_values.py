"""Expression values: moments, columns, log-normalisation, without making anything dense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterable


def moments(blocks: Iterable[sparse.csr_array]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation, float32, of each column over all blocks, without making them dense."""
    n_rows: int = 0
    total: Any = 0.0
    squares: Any = 0.0
    for block in blocks:
        n_rows += block.shape[0]
        total = total + np.bincount(block.indices, block.data, block.shape[1])
        squares = squares + np.bincount(block.indices, np.square(block.data, dtype=np.float64), block.shape[1])
    mean = total / max(n_rows, 1)
    variance = np.maximum(squares / max(n_rows, 1) - mean**2, 0)
    variance[variance < 1e-10] = 0
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def take_columns(matrix: sparse.csr_array, columns: np.ndarray | None) -> sparse.csr_array:
    """Return the matrix at `columns`; the matrix itself, not a copy, if these are `None` or all in order."""
    if columns is None or np.array_equal(columns, np.arange(matrix.shape[1])):
        return matrix
    return sparse.csr_array(matrix[:, columns])


def log_normalise(counts: sparse.csr_array, target_sum: float, columns: np.ndarray | None = None) -> sparse.csr_array:
    """Return float32 `log1p(counts / row total * target_sum)` of the genes at `columns`, by default all.

    Totals are those of all genes; rows without counts stay zero.
    """
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    factors = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0).astype(np.float32)
    kept = take_columns(counts, columns)
    data = np.log1p(kept.data * np.repeat(factors, np.diff(kept.indptr)))
    # The result shares no array with `counts`, so that either can be changed in place.
    where = (kept.indices.copy(), kept.indptr.copy()) if kept is counts else (kept.indices, kept.indptr)
    return sparse.csr_array((data, *where), shape=kept.shape)
