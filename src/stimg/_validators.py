"""Checks of users' input, each written once."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

# No logarithm of a count, to whatever base and target sum in use, comes near.
LARGEST_LOG = 50


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Refuse a value that is none of `choices`."""
    if value not in choices:
        msg = f"Expected `{name}` to be one of {list(choices)}, found {value!r}."
        raise ValueError(msg)


def check_positive_int(name: str, value: object, minimum: int = 1) -> None:
    """Refuse what is no integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        msg = f"Expected `{name}` to be an integer of at least {minimum}, found {value!r}."
        raise ValueError(msg)


def check_positive(name: str, value: Any) -> None:
    """Raise unless `value` is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
        msg = f"Expected `{name}` to be a positive number, found {value!r}."
        raise ValueError(msg)


def check_training(device: str, max_epochs: int, val_fraction: float, resume: str | Path | None) -> None:
    """Raise unless these arguments of a training function can be used."""
    check_choice("device", device, ("auto", "cpu", "cuda", "gpu", "mps"))
    check_positive_int("max_epochs", max_epochs)
    if not 0 <= val_fraction < 1:
        msg = f"Expected `val_fraction` in [0, 1), found {val_fraction}."
        raise ValueError(msg)
    if resume is not None and not Path(resume).is_file():
        msg = f"No checkpoint at `resume`={str(resume)!r}. Give the path of a `last.ckpt` from `checkpoint_dir`."
        raise FileNotFoundError(msg)


def check_obsm(table: AnnData, key: str, *, advice: str = "") -> None:
    """Refuse a key that is not in `.obsm`."""
    if key not in table.obsm:
        msg = f"Key {key!r} not found in `adata.obsm`. Available keys: {list(table.obsm)}. {advice}".rstrip()
        raise KeyError(msg)


def check_obs_key(table: AnnData, key: str, *, argument: str = "key", advice: str = "") -> None:
    """Refuse a key that is not in `.obs`."""
    if key not in table.obs:
        msg = (
            f"Key {key!r} (`{argument}`) not found in `adata.obs`. Available keys: {list(table.obs.columns)}. {advice}"
        ).rstrip()
        raise KeyError(msg)


def check_library_key(table: AnnData, library_key: str | None) -> None:
    """Refuse a library column that is not there or has missing values."""
    if library_key is None:
        return
    check_obs_key(table, library_key, argument="library_key")
    if missing := int(table.obs[library_key].isna().sum()):
        msg = f"`adata.obs[{library_key!r}]` (`library_key`) has {missing} missing values. Give every observation one."
        raise ValueError(msg)


def check_var_unique(table: AnnData) -> None:
    """Refuse duplicated gene names."""
    if not table.var_names.is_unique:
        twice = list(table.var_names[table.var_names.duplicated()].unique()[:3])
        msg = f"Gene names in `adata.var_names` are duplicated ({twice}, ...). Run `adata.var_names_make_unique()`."
        raise ValueError(msg)


def check_coordinates(table: AnnData, key: str) -> np.ndarray:
    """Return finite coordinates float64 (n_obs, 2) from `.obsm[key]`, or refuse them."""
    check_obsm(table, key, advice="Give the coordinates' key as `spatial_key`.")
    values = np.asarray(table.obsm[key])
    if values.ndim != 2 or values.shape[1] < 2:
        msg = f"Expected `adata.obsm[{key!r}]` of shape (n_obs, 2), found {values.shape}."
        raise ValueError(msg)
    values = values[:, :2].astype(np.float64)
    if bad := int((~np.isfinite(values)).any(1).sum()):
        msg = (
            f"`adata.obsm[{key!r}]` has NaN or infinite coordinates in {bad} of {len(values)} observations. "
            "Remove these observations first."
        )
        raise ValueError(msg)
    return values


def get_layer(table: AnnData, layer: str | None) -> Any:
    """Return `.X`, or the layer asked for."""
    if layer is None:
        if table.X is None:
            msg = f"`adata.X` is empty. Name a `layer`; available: {list(table.layers)}."
            raise KeyError(msg)
        return table.X
    if layer not in table.layers:
        msg = f"Key {layer!r} (`layer`) not found in `adata.layers`. Available keys: {list(table.layers)}."
        raise KeyError(msg)
    return table.layers[layer]


def check_expression(values: Any, scale: str, *, name: str = "X") -> sparse.csr_array:
    """Check that expression fits the scale that the user named, and return it as CSR float32.

    Parameters
    ----------
    values
        Dense, CSR or CSC, of any real dtype; not modified.
    scale
        `"counts"`: non-negative integers (of any dtype). `"log"`: non-negative log-normalised values, not all integer.
    name
        Where the values come from, for messages.

    Raises
    ------
    TypeError
        Values that are no real numbers, or not in memory.
    ValueError
        NaN, infinite or negative values; log data named counts, or counts or values without logarithm named log.
    """
    check_choice("scale", scale, ("counts", "log"))
    if not sparse.issparse(values) and not isinstance(values, np.ndarray) and not isinstance(values, list):
        msg = (
            f"Expected `adata.{name}` in memory, found a {type(values).__name__}. Call `adata.to_memory()`, or "
            "`.compute()` on it, first."
        )
        raise TypeError(msg)
    matrix, integer, largest = check_block(values, scale, name=name)
    if scale == "log":
        check_log(integer, largest, name=name)
    return matrix


def check_block(values: Any, scale: str, *, name: str) -> tuple[sparse.csr_array, bool, float]:
    """Check some rows of expression, as far as these tell, and return them as CSR float32.

    Returns
    -------
    tuple
        The rows, whether all values are integers, and the largest; `check_log` judges these two of all rows together.
    """
    if not sparse.issparse(values):
        values = np.asarray(values)
    if values.dtype.kind not in "buif":
        msg = f"Expected real numbers in `adata.{name}`, found dtype {values.dtype}. Convert them, e.g. to float32."
        raise TypeError(msg)
    matrix = sparse.csr_array(values)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    data = matrix.data
    if not np.isfinite(data).all():
        msg = f"`adata.{name}` has {int((~np.isfinite(data)).sum())} NaN or infinite values. Remove or replace them."
        raise ValueError(msg)
    if (data < 0).any():
        msg = (
            f"`adata.{name}` has {int((data < 0).sum())} negative values (least {data.min():g}); expression must not "
            "be scaled or centred. Give raw counts or log-normalised values, e.g. by `layer=`."
        )
        raise ValueError(msg)
    integer = bool(np.issubdtype(data.dtype, np.integer) or (data == np.rint(data)).all())
    largest = float(data.max()) if data.size else 0.0
    if scale == "counts" and not integer:
        msg = (
            f"Expected raw counts in `adata.{name}` for `scale='counts'`, found values that are no integers "
            f"(largest {largest:g}). Pass `scale='log'` for log-normalised data, or name the `layer` with counts."
        )
        raise ValueError(msg)
    return sparse.csr_array(matrix, dtype=np.float32) if matrix.dtype != np.float32 else matrix, integer, largest


def check_log(integer: bool, largest: float, *, name: str) -> None:
    """Refuse log-normalised values that are all integers, or larger than logarithms are."""
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
