"""Measured and predicted expression, compared gene by gene."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

GENES_AT_ONCE = 512


def as_dense(block: Any) -> np.ndarray:
    """Return a few columns as a dense float64 array."""
    return np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64)


def correlate(x: np.ndarray, y: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlation of each column over its judged rows, NaN where undefined."""
    number = judged.sum(0)
    varies = number > 1
    centred = []
    for values in (x, y):
        varies &= np.where(judged, values, -np.inf).max(0) > np.where(judged, values, np.inf).min(0)
        mean = np.where(judged, values, 0).sum(0) / np.maximum(number, 1)
        centred.append(np.where(judged, values - mean, 0))
    product = (centred[0] * centred[1]).sum(0)
    scale = np.sqrt((centred[0] ** 2).sum(0) * (centred[1] ** 2).sum(0))
    return np.where(varies & (scale > 0), product / np.where(scale > 0, scale, 1), np.nan)
