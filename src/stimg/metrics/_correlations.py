"""Measured and predicted expression, compared gene by gene."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

GENES_AT_ONCE = 512


def as_pair(true: Any, predicted: Any) -> tuple[Any, Any]:
    """Return measured and predicted expression of one shape, each a 2-D array or CSC, or refuse them."""
    measured, guess = as_matrix(true, "true"), as_matrix(predicted, "predicted")
    if measured.shape != guess.shape:
        msg = f"Expected `predicted` of the shape of `true`, {measured.shape}, found {guess.shape}."
        raise ValueError(msg)
    check_finite(measured, "true")
    return measured, guess


def as_matrix(values: Any, name: str) -> Any:
    """Return the values as a 2-D array, or as CSC, whose columns and rows can be taken."""
    matrix = sparse.csc_array(values) if sparse.issparse(values) else np.asarray(values)
    if matrix.ndim != 2 or 0 in matrix.shape:
        msg = f"Expected `{name}` of shape (n_obs, n_genes), found {matrix.shape}."
        raise ValueError(msg)
    return matrix


def check_finite(matrix: Any, name: str) -> None:
    """Refuse NaN and infinite values."""
    if bad := int((~np.isfinite(matrix.data if sparse.issparse(matrix) else matrix)).sum()):
        msg = f"`{name}` has {bad} NaN or infinite values. Remove or replace them."
        raise ValueError(msg)


def as_dense(block: Any) -> np.ndarray:
    """Return some columns as a dense float64 array."""
    return np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64)


def correlate(x: np.ndarray, y: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each column over its judged rows, NaN where undefined."""
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
