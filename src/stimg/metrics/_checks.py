"""Checks of the arrays that metrics take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse


def as_labels(values: Any, name: str, n_obs: int | None = None, *, complete: bool = False) -> np.ndarray:
    """Return labels as an object array of strings, with `None` where they are missing, or refuse `complete` ones."""
    if np.ndim(values) != 1 or not len(values):
        msg = f"Expected `{name}` to be one label for each observation, found an array of shape {np.shape(values)}."
        raise ValueError(msg)
    if n_obs is not None and len(values) != n_obs:
        msg = f"Expected one label in `{name}` for each of {n_obs} observations, found {len(values)}."
        raise ValueError(msg)
    series = pd.Series(np.asarray(values, dtype=object) if not isinstance(values, pd.Series) else values.astype(object))
    labels = series.astype(str).to_numpy(dtype=object)
    labels[series.isna().to_numpy()] = None
    if complete and (missing := int(series.isna().sum())):
        msg = f"Expected a label for every observation in `{name}`, found {missing} missing. Leave these out."
        raise ValueError(msg)
    return labels


def labelled_rows(labels: np.ndarray, name: str) -> np.ndarray:
    """Return the numbers of the observations that have a label, or refuse labels that are all missing."""
    rows = np.flatnonzero(pd.notna(labels))
    if not len(rows):
        msg = f"Expected labelled observations in `{name}`, found only missing labels."
        raise ValueError(msg)
    return rows


def as_points(values: Any, name: str, n_obs: int | None = None, n_columns: int | None = None) -> np.ndarray:
    """Return a finite float64 array (n_obs, n_columns), or refuse the values."""
    points = np.asarray(values, dtype=np.float64)
    wrong = points.ndim != 2 or not points.size or (n_columns is not None and points.shape[1] != n_columns)
    if wrong or (n_obs is not None and len(points) != n_obs):
        rows = "n_obs" if n_obs is None else n_obs
        msg = f"Expected `{name}` of shape ({rows}, {n_columns or 'n_features'}), found {points.shape}."
        raise ValueError(msg)
    if bad := int((~np.isfinite(points)).any(1).sum()):
        msg = f"`{name}` has NaN or infinite values in {bad} of {len(points)} rows. Remove these observations first."
        raise ValueError(msg)
    return points


def as_sites(values: Any, name: str) -> np.ndarray:
    """Return the row and column of every observation as an int64 array (n_obs, 2), or refuse the values."""
    sites = np.asarray(values)
    if sites.ndim != 2 or sites.shape[1] != 2 or not len(sites) or not np.issubdtype(sites.dtype, np.integer):
        msg = f"Expected `{name}` as integers of shape (n_obs, 2), found {sites.dtype} of {sites.shape}."
        msg += " Run `stimg.pp.to_lattice(adata)` and pass `adata.obsm['lattice']`."
        raise ValueError(msg)
    return sites.astype(np.int64)


def as_mask(values: Any, name: str, *shapes: tuple[int, ...]) -> np.ndarray:
    """Return a bool array of one of these shapes with at least one True, or refuse the values."""
    mask = np.asarray(values)
    if mask.dtype != bool or mask.shape not in shapes:
        msg = f"Expected `{name}` as bool of shape {' or '.join(map(str, shapes))}, found {mask.dtype} of {mask.shape}."
        raise ValueError(msg)
    if not mask.any():
        msg = f"Expected `{name}` with at least one True, found none."
        raise ValueError(msg)
    return mask


def as_matrix(values: Any, name: str) -> Any:
    """Return expression as a 2-D array or as CSC, from both of which rows and columns can be taken."""
    matrix = sparse.csc_array(values) if sparse.issparse(values) else np.asarray(values)
    if matrix.ndim != 2 or 0 in matrix.shape:
        msg = f"Expected `{name}` of shape (n_obs, n_genes), found {matrix.shape}."
        raise ValueError(msg)
    return matrix


def as_pair(true: Any, predicted: Any) -> tuple[Any, Any]:
    """Return measured (finite) and predicted expression of one shape, as `as_matrix` does, or refuse them."""
    if isinstance(true, pd.DataFrame) and isinstance(predicted, pd.DataFrame):
        for axis in ("index", "columns"):
            if not getattr(true, axis).equals(getattr(predicted, axis)):
                msg = (
                    f"Expected `true` and `predicted` with the same {axis} in the same order, found "
                    f"{list(getattr(true, axis)[:3])}, ... and {list(getattr(predicted, axis)[:3])}, ... Pass "
                    "`predicted.loc[true.index, true.columns]`."
                )
                raise ValueError(msg)
    measured, guess = as_matrix(true, "true"), as_matrix(predicted, "predicted")
    if measured.shape != guess.shape:
        msg = f"Expected `predicted` of the shape of `true`, {measured.shape}, found {guess.shape}."
        raise ValueError(msg)
    refuse_non_finite(measured, "`true`")
    return measured, guess


def refuse_non_finite(matrix: Any, what: str) -> None:
    """Refuse NaN and infinite values."""
    if bad := int((~np.isfinite(matrix.data if sparse.issparse(matrix) else matrix)).sum()):
        msg = f"{what} has {bad} NaN or infinite values. Remove or replace them."
        raise ValueError(msg)
