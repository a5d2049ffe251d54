"""Checks of users' input, each written once."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Collection
from numbers import Integral, Number
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd
from scipy import sparse

from stimg import _keys

if TYPE_CHECKING:
    from anndata import AnnData

PACKAGE = str(Path(__file__).parents[1])
P = ParamSpec("P")
R = TypeVar("R")

LARGEST_LOG = 50  # logarithms of counts stay far below this, for every base and target sum in use
LARGEST_FLOAT = float(np.finfo(np.float32).max)

KEYS = ("key", "key_added", "layer", "library", "library_id", "image_key_added", "gene_key_added", "name", "title")
IDENTIFIERS = ("study", "revision", "sha256")
PATHS = ("path", "root", "source", "map_path", "checkpoint_dir", "resume")
COUNTS = ("stride", "batch_size", "max_steps", "early_stopping")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of a public function whose meaning follows from their name, before the function runs.

    Keys must be strings, seeds integers or generators, paths strings or paths, some counts positive integers, and
    switches (annotated as `bool`) `True` or `False`. A key must not be the name of another step, whose record would be
    overwritten. The default is always accepted. Otherwise a `TypeError` or `ValueError` names the argument.
    """
    signature = inspect.signature(function)
    taken = set(_keys.STEPS) - {function.__name__}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # Python's own message says which argument is missing or unexpected
            return function(*args, **kwargs)
        for name, value in given.items():
            parameter = signature.parameters[name]
            if value is not parameter.default:
                _check_argument(name, value, parameter.annotation in ("bool", "bool | None"))
                if name.endswith("key_added") and value in taken and value != parameter.default:
                    msg = f"Expected another `{name}` than {value!r}, under which the record of a step is kept."
                    raise ValueError(msg)
        return function(*args, **kwargs)

    return call


def _check_argument(name: str, value: object, switch: bool) -> None:
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else -1
    if name in KEYS + IDENTIFIERS or name.endswith(("_key", "_layer")):
        wanted, right = "a string", isinstance(value, str) and value != ""
    elif name in PATHS:
        wanted, right = "a path", isinstance(value, str | os.PathLike) and value != ""
    elif name == "seed":
        wanted, right = "a non-negative integer", number >= 0
    elif name == "rng":
        wanted = "a non-negative integer, a numpy Generator or None"
        right = number >= 0 or value is None or isinstance(value, np.random.Generator)
    elif name in COUNTS:
        wanted, right = "an integer above 0", number > 0
    else:
        wanted, right = "True or False", not switch or isinstance(value, bool | np.bool_)
    if not right:
        msg = f"Expected `{name}` to be {wanted}, found {value!r}."
        raise ValueError(msg) if isinstance(value, str | Number) else TypeError(msg)


def warn(message: str) -> None:
    """Issue a warning that points to the line of the user's code that called stimg."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Refuse a value that is not one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        msg = f"Expected `{name}` to be one of {list(choices)}, found {value!r}."
        raise ValueError(msg)


def check_positive_int(name: str, value: object, minimum: int = 1, maximum: float = np.inf) -> None:
    """Refuse anything but an integer from `minimum` to `maximum`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not minimum <= int(value) <= maximum:
        limits = f"of at least {minimum}" if maximum == np.inf else f"from {minimum} to {maximum}"
        msg = f"Expected `{name}` to be an integer {limits}, found {value!r}."
        raise ValueError(msg)


def check_positive(name: str, value: Any) -> None:
    """Refuse anything but a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
        msg = f"Expected `{name}` to be a positive number, found {value!r}."
        raise ValueError(msg)


def check_gene_list(genes: Any) -> None:
    """Refuse anything but a list of names, a single string included."""
    if isinstance(genes, str):
        msg = f"Expected `genes` to be a list of gene names, found the string {genes!r}. Pass `genes=[{genes!r}]`."
        raise TypeError(msg)
    if not np.iterable(genes) or isinstance(genes, dict) or not all(isinstance(gene, str) for gene in genes):
        msg = f"Expected `genes` to be a list of gene names, found {genes!r}."
        raise TypeError(msg)


def check_strings(name: str, values: Any) -> list[str]:
    """Return one or several strings as a list; refuse anything else."""
    found = [values] if isinstance(values, str) else list(values) if np.iterable(values) else [values]
    if isinstance(values, dict) or not all(isinstance(value, str) for value in found):
        msg = f"Expected `{name}` to be a string or a list of strings, found {values!r}."
        raise TypeError(msg)
    return found


def check_names(name: str, values: Any, count: int) -> None:
    """Refuse anything but one name for each of `count` slides."""
    named = isinstance(values, list | tuple | np.ndarray | pd.Index | pd.Series)
    if not named or len(values) != count or not all(isinstance(value, str) for value in values):
        msg = f"Expected one name per slide in `{name}` ({count} slides), found {values!r}."
        raise ValueError(msg)


def check_made_by(name: str, value: Any, kind: type, maker: str) -> None:
    """Refuse anything but an object of the kind that `maker` returns."""
    if not isinstance(value, kind):
        msg = f"Expected `{name}` from `{maker}`, found {type(value).__name__}."
        raise TypeError(msg)


def _check_key(key: str, slot: str, available: Collection[str], *, argument: str = "", advice: str = "") -> None:
    if not isinstance(key, str) or key not in available:
        named = f"{key!r} (`{argument}`)" if argument else repr(key)
        msg = f"Key {named} not found in `adata.{slot}`. Available keys: {list(available)}. {advice}".rstrip()
        raise KeyError(msg)


def check_obsm(table: AnnData, key: str, *, advice: str = "") -> None:
    """Refuse a key that is not in `.obsm`."""
    _check_key(key, "obsm", table.obsm, advice=advice)


def check_obs_key(table: AnnData, key: str, *, argument: str = "key", advice: str = "") -> None:
    """Refuse a key that is not in `.obs`."""
    _check_key(key, "obs", table.obs.columns, argument=argument, advice=advice)


def check_embedding(table: AnnData, key: str) -> np.ndarray:
    """Return the embedding in `.obsm[key]`, float64 (n_obs, d); refuse one that is missing or not finite."""
    check_obsm(table, key, advice="Run `stimg.tl.embed(adata, model)` first.")
    found = table.obsm[key]
    values = np.asarray(found.toarray() if sparse.issparse(found) else found)
    if values.ndim != 2 or not values.shape[1] or values.dtype.kind not in "buif":
        msg = (
            f"Expected numbers of shape (n_obs, d) in `adata.obsm[{key!r}]`, found {values.dtype} of shape "
            f"{values.shape}. Run `stimg.tl.embed(adata, model)` or name another `use_rep`."
        )
        raise ValueError(msg)
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        msg = (
            f"`adata.obsm[{key!r}]` has {int((~np.isfinite(values)).any(1).sum())} rows with NaN or infinite values. "
            "Embed these observations again, or remove them first."
        )
        raise ValueError(msg)
    return values


def check_finite(name: str, values: np.ndarray) -> None:
    """Refuse results with NaN or infinite values before they are written."""
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).reshape(len(values), -1).any(1).sum())
        msg = (
            f"{name[0].upper()}{name[1:]} came out with NaN or infinite values in {bad:,} of {len(values):,} rows. "
            "Check the expression for extreme values, and the model's weights."
        )
        raise ValueError(msg)


def check_library_key(table: AnnData, library_key: str | None) -> None:
    """Refuse a `library_key` that is not in `.obs` or has missing values."""
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
    """Return the coordinates in `.obsm[key]`, float64 (n_obs, 2); refuse them if missing or not finite."""
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
    """Return the layer, or `.X` if `layer` is `None`."""
    if layer is None:
        if table.X is None:
            msg = f"`adata.X` is empty. Name a `layer`; available: {list(table.layers)}."
            raise KeyError(msg)
        return table.X
    _check_key(layer, "layers", table.layers, argument="layer")
    return table.layers[layer]


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
    """Check a block of rows of expression and return it as CSR float32.

    Also return whether all of its values are integers, and the largest: `check_log` judges these for all rows together.
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
            f"`adata.{name}` has {int((data < 0).sum())} negative values (lowest {data.min():g}); expression must not "
            "be scaled or centred. Give raw counts or log-normalised values, e.g. with `layer=`."
        )
        raise ValueError(msg)
    largest = float(data.max()) if data.size else 0.0
    if largest > LARGEST_FLOAT:
        msg = f"`adata.{name}` has values up to {largest:g}, too large for float32. Correct or rescale them."
        raise ValueError(msg)
    integer = bool(np.issubdtype(data.dtype, np.integer) or (data == np.rint(data)).all())
    if scale == "counts" and not integer:
        msg = (
            f"Expected raw counts in `adata.{name}` for `scale='counts'`, found non-integer values (largest "
            f"{largest:g}). Pass `scale='log'` for log-normalised data, or name the `layer` with counts."
        )
        raise ValueError(msg)
    return sparse.csr_array(matrix, dtype=np.float32) if matrix.dtype != np.float32 else matrix, integer, largest


def check_log(integer: bool, largest: float, *, name: str) -> None:
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


def read_counts(table: AnnData, layer: str | None) -> sparse.csr_array:
    """Return the raw counts in `.X`, or in the layer asked for, checked by `check_expression`."""
    return check_expression(get_layer(table, layer), "counts", name=_keys.matrix_name(layer))
