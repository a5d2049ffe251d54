"""Checks of the arrays that metrics take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def as_labels(values: Any, name: str) -> np.ndarray:
    """Return labels as an object array of strings, with `None` where they are missing."""
    if np.ndim(values) != 1 or not len(values):
        msg = f"Expected `{name}` to be one label for each observation, found an array of shape {np.shape(values)}."
        raise ValueError(msg)
    series = pd.Series(np.asarray(values, dtype=object) if not isinstance(values, pd.Series) else values.astype(object))
    missing = series.isna().to_numpy()
    labels = series.astype(str).to_numpy(dtype=object)
    labels[missing] = None
    return labels


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


def check_same_length(first: np.ndarray, second: np.ndarray, names: str) -> None:
    """Refuse arrays that describe different numbers of observations."""
    if len(first) != len(second):
        msg = f"Expected {names} of the same length, found {len(first)} and {len(second)}."
        raise ValueError(msg)
