"""What values of expression are: counts or logarithms, of any type that people store."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from stimg._input._checks import check_choice, warn

LARGEST_LOG_COUNT = 15  # natural logarithms of counts per 10,000 or million stay below
LEAST_JUDGED = 10
MOST_JUDGED = 200
MULTIPLE = 0.02
LARGEST_LOG = 50  # logarithms of counts stay far below this, for every base and target sum in use
LARGEST_FLOAT = float(np.finfo(np.float32).max)


def check_expression(values: Any, scale: str, *, name: str = "X") -> sparse.csr_array:
    """Check that expression has the scale that the user named, and return it as CSR float32.

    `values` may be dense, CSR or CSC of any real dtype, and are not modified. `"counts"` are non-negative integers (of
    any dtype), `"log"` non-negative log-normalised values that are not all integer. `name` says in messages where the
    values come from.

    Raises
    ------
    TypeError
        The values are not real numbers, or not in memory.
    ValueError
        Some values are NaN, infinite, negative or too large for float32, or the scale is not the one named.

    Warns
    -----
    UserWarning
        Counts that are not integers, and too large to be logarithms.
    """
    check_choice("scale", scale, ("counts", "log"))
    if not sparse.issparse(values) and not isinstance(values, np.ndarray) and not isinstance(values, list):
        msg = (
            f"Expected `adata.{name}` in memory, found a {type(values).__name__}. Call `adata.to_memory()`, or "
            "`.compute()` on it, first."
        )
        raise TypeError(msg)
    matrix, integer, largest = check_block(values, scale, name=name)
    check_scale(scale, integer, largest, name=name)
    return matrix


def check_block(values: Any, scale: str, *, name: str) -> tuple[sparse.csr_array, bool, float]:
    """Check a block of rows of expression and return it as CSR float32.

    Also return whether all of its values are integers, and the largest: `check_scale` judges these for all rows
    together.
    """
    if not sparse.issparse(values):
        values = np.asarray(values)
    if values.dtype.kind not in "buif":
        msg = f"Expected real numbers in `adata.{name}`, found dtype {values.dtype}. Convert them, e.g. to float32."
        raise TypeError(msg)
    half = values.dtype.itemsize == 2 and values.dtype.kind == "f"
    if half or not values.dtype.isnative:  # neither scipy nor torch computes with these
        values = values.astype(np.float32 if half else values.dtype.newbyteorder("="))
    matrix = sparse.csr_array(values)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    data = matrix.data
    if not np.isfinite(data).all():
        cure = "Store it as float32: float16 ends at 65,504." if half else "Remove or replace them."
        msg = f"`adata.{name}` has {int((~np.isfinite(data)).sum())} NaN or infinite values. {cure}"
        raise ValueError(msg)
    if (data < 0).any():
        msg = (
            f"`adata.{name}` has {int((data < 0).sum())} negative values (lowest {data.min():g}); expression must not "
            "be scaled or centred. Give raw counts or log-normalised values, e.g. with `layer=`."
        )
        raise ValueError(msg)
    largest = float(data.max()) if data.size else 0.0
    if largest > LARGEST_FLOAT:
        msg = f"`adata.{name}` has values up to {largest:g}, too large for float32. Correct or rescale them."
        raise ValueError(msg)
    integer = bool(np.issubdtype(data.dtype, np.integer) or (data == np.rint(data)).all())
    if scale == "counts" and not integer and _are_logs(matrix):
        msg = (
            f"Expected raw counts in `adata.{name}` for `scale='counts'`, found non-integer values that look "
            f"log-normalised (largest {largest:g}). Pass `scale='log'`, or name the `layer` with counts."
        )
        raise ValueError(msg)
    return sparse.csr_array(matrix, dtype=np.float32) if matrix.dtype != np.float32 else matrix, integer, largest


def _are_logs(matrix: sparse.csr_array) -> bool:
    """Tell whether non-integer values are logarithms of normalised counts.

    Equal counts of an observation then have equal values, which are not multiples of the smallest one. Counts that
    were corrected, e.g. for ambient RNA, all differ; counts that were only normalised are multiples.
    """
    lengths = np.diff(matrix.indptr)
    rows = np.flatnonzero(lengths >= LEAST_JUDGED)
    logs = []
    for row in rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_JUDGED)).astype(int)]:
        values = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]].astype(np.float64)
        values = values[values > 0]
        if len(values):
            ratio = values / values.min()
            multiples = np.abs(ratio - np.rint(ratio)) < MULTIPLE
            logs.append(len(np.unique(values)) <= len(values) / 2 and multiples[ratio > 1 + MULTIPLE].mean() < 0.5)
    return bool(logs) and bool(np.mean(logs) > 0.5)


def check_scale(scale: str, integer: bool, largest: float, *, name: str) -> None:
    """Refuse values that do not fit the scale that the user named; warn of counts that are not integers.

    Log-normalised values must not all be integers, nor be too large to be logarithms. Counts that are not integers must
    be too large to be logarithms of counts.
    """
    if scale == "log":
        _check_log(integer, largest, name=name)
    elif not integer and largest <= LARGEST_LOG_COUNT:
        msg = (
            f"Expected raw counts in `adata.{name}` for `scale='counts'`, found non-integer values up to {largest:g}. "
            "Pass `scale='log'` for log-normalised data, or name the `layer` with counts. Corrected counts (for "
            "ambient RNA, for instance) that are so small must be rounded first (`numpy.rint`)."
        )
        raise ValueError(msg)
    elif not integer:
        warn(
            f"`adata.{name}` has non-integer values (up to {largest:g}), which are taken as counts, corrected or "
            "normalised. If they are logarithms, pass `scale='log'`."
        )


def _check_log(integer: bool, largest: float, *, name: str) -> None:
    """Refuse log-normalised values that are all integers, or too large to be logarithms."""
    if integer and largest > 1:
        msg = (
            f"Expected log-normalised values in `adata.{name}` for `scale='log'`, found integers up to {largest:g}. "
            "Pass `scale='counts'` for raw counts."
        )
        raise ValueError(msg)
    if largest > LARGEST_LOG:
        msg = (
            f"Expected log-normalised values in `adata.{name}` for `scale='log'`, found values up to {largest:g}. "
            "Take the logarithm first (`scanpy.pp.log1p`), or name the `layer` with counts and pass `scale='counts'`."
        )
        raise ValueError(msg)
