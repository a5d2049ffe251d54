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

KEYS = (
    "key",
    "key_added",
    "like",
    "layer",
    "library",
    "library_id",
    "image_key_added",
    "gene_key_added",
    "name",
    "title",
)
IDENTIFIERS = ("gene_symbols", "study", "revision", "sha256")
PATHS = ("path", "root", "source", "map_path", "checkpoint_dir", "resume")
MAYBE_PATHS = ("model", "spatial_model", "init", "image", "images", *PATHS)
COUNTS = ("stride", "batch_size", "max_steps", "early_stopping")
AS_SELECTED = "If `stimg.pp.select_genes` recorded it, run that again."


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of a public function whose meaning follows from their name, before the function runs.

    Keys must be strings, seeds integers or generators, paths strings or paths (where `~` becomes the user's home
    folder), some counts positive integers, and switches (annotated as `bool`) `True` or `False`. A key must not be the
    name of another step, whose record would be overwritten. The default is always accepted. Otherwise a `TypeError` or
    `ValueError` names the argument.
    """
    signature = inspect.signature(function)
    taken = set(_keys.STEPS) - {function.__name__}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # Python's own message says which argument is missing or unexpected
            return function(*args, **kwargs)
        for name, value in list(bound.arguments.items()):
            parameter = signature.parameters[name]
            if value is not parameter.default:
                _check_argument(name, value, parameter.annotation in ("bool", "bool | None"))
                if name.endswith("key_added") and value in taken and value != parameter.default:
                    msg = f"Expected another `{name}` than {value!r}, under which the record of a step is kept."
                    raise ValueError(msg)
            if name in MAYBE_PATHS:
                bound.arguments[name] = _at_home(value)
        return function(*bound.args, **bound.kwargs)

    return call


def _at_home(value: Any) -> Any:
    """Replace `~` at the start of a path, or of each in a list, by the user's home folder; leave all else as it is."""
    if type(value) in (list, tuple):
        return type(value)(map(_at_home, value))
    if isinstance(value, os.PathLike):
        return Path(os.path.expanduser(value))
    return os.path.expanduser(value) if isinstance(value, str) else value


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


def is_no_label(name: str) -> bool:
    """Tell whether a label says that there is none: it is empty, or `"unknown"`, in capitals or not."""
    return name.lower() in ("", _keys.UNKNOWN)


def check_obs_key(table: AnnData, key: str, *, argument: str = "key", advice: str = "") -> None:
    """Refuse a key that is not in `.obs`."""
    _check_key(key, "obs", table.obs.columns, argument=argument, advice=advice)


def check_embedding(table: AnnData, key: str) -> np.ndarray:
    """Return the embedding in `.obsm[key]`, float64 (n_obs, d); refuse one that is missing or not finite."""
    check_obsm(table, key, advice="Run `stimg.tl.embed(adata, model)` first.")
    found = table.obsm[key]
    values = np.asarray(found.toarray() if sparse.issparse(found) else found)
    if values.ndim != 2 or len(values) != table.n_obs or not values.shape[1] or values.dtype.kind not in "buif":
        msg = (
            f"Expected numbers of shape ({table.n_obs}, d) in `adata.obsm[{key!r}]`, found {values.dtype} of shape "
            f"{values.shape}. Run `stimg.tl.embed(adata, model)` or name another `use_rep`."
        )
        raise ValueError(msg)
    values = values.astype(np.float64)
    if bad := int((~np.isfinite(values)).any(1).sum()):
        cure = "Embed these observations again, or remove them first."
        if bad == len(values):
            cure = "Run `stimg.tl.embed(adata, model)` again, or name another `use_rep`."
        msg = f"`adata.obsm[{key!r}]` has NaN or infinite values in {bad:,} of {len(values):,} rows. {cure}"
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
    again = (
        "It tells sections apart, here or in `stimg.pp.to_lattice`: run that again, or name the column as it is now."
    )
    check_obs_key(table, library_key, argument="library_key", advice=again)
    if missing := int(table.obs[library_key].isna().sum()):
        msg = f"`adata.obs[{library_key!r}]` (`library_key`) has {missing} missing values. Give every observation one."
        raise ValueError(msg)


def check_var_unique(table: AnnData) -> None:
    """Refuse duplicated gene names."""
    if not table.var_names.is_unique:
        twice = list(table.var_names[table.var_names.duplicated()].unique()[:3])
        msg = f"Gene names in `adata.var_names` are duplicated ({twice}, ...). Run `adata.var_names_make_unique()`."
        raise ValueError(msg)


def check_gene_symbols(table: AnnData, gene_symbols: str | None) -> None:
    """Refuse a `gene_symbols` that is not in `.var`."""
    if gene_symbols is not None:
        _check_key(gene_symbols, "var", list(map(str, table.var.columns)), argument="gene_symbols", advice=AS_SELECTED)


def warn_of_glass(table: AnnData) -> None:
    """Warn of observations that Space Ranger found to lie beside the tissue, as in a raw matrix."""
    if _keys.IN_TISSUE not in table.obs:
        return
    column = table.obs[_keys.IN_TISSUE]
    outside = column.astype(str).str.lower().isin(("0", "0.0", "false")).to_numpy()
    if outside.any():
        inside = next(iter(column[~outside].dropna().unique().tolist()), None)
        cure = f"Remove them first: `adata = adata[adata.obs[{_keys.IN_TISSUE!r}] == {inside!r}].copy()`."
        if inside is None:
            cure = "None would be left without them: correct the column, or remove it."
        warn(
            f"`adata.obs[{_keys.IN_TISSUE!r}]` says that {outside.sum():,} of {table.n_obs:,} observations lie beside "
            f"the tissue, where they become domains of their own. {cure}"
        )


def get_layer(table: AnnData, layer: str | None) -> Any:
    """Return the layer, or `.X` if `layer` is `None`."""
    if layer is None:
        if table.X is None:
            msg = f"`adata.X` is empty. Name a `layer`; available: {list(table.layers)}."
            raise KeyError(msg)
        return table.X
    _check_key(layer, "layers", table.layers, argument="layer", advice=AS_SELECTED)
    return table.layers[layer]
