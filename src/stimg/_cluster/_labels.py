"""The labels of observations: domains, cell types and other categories in `.obs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg._input._checks import check_obs_key, is_no_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

MOST_LABELS = 1000
DOMAINS_FIRST = "Run `stimg.tl.domains(adata, n_domains)` first."


def read_labels(table: AnnData, key: str, *, argument: str = "key", advice: str = DOMAINS_FIRST) -> pd.Categorical:
    """Return the labels in `.obs[key]` with names as strings, in their order, and without those that do not occur.

    Observations that are labelled `"unknown"`, in capitals or not, or with an empty name, have no label, like those
    with missing values. A missing column is a `KeyError`; decimal numbers, a name for almost every observation, and a
    column without any label a `ValueError`.
    """
    check_obs_key(table, key, argument=argument, advice=advice)
    column = table.obs[key]
    if isinstance(column, pd.DataFrame):
        msg = f"`adata.obs` has several columns {key!r} (`{argument}`). Give each column a name of its own."
        raise ValueError(msg)
    try:
        n_names = column.nunique()
    except TypeError as e:  # lists and the like
        msg = f"Expected labels in `adata.obs[{key!r}]` (`{argument}`), found objects without names ({e})."
        raise ValueError(msg) from None
    if column.dtype.kind == "f" or n_names > MOST_LABELS:
        found = column.dtype if column.dtype.kind == "f" else f"{n_names:,} different values"
        msg = (
            f"Expected categories in `adata.obs[{key!r}]` (`{argument}`), found {found}. Name a column of labels; "
            "numbers of clusters must be strings, integers or categories."
        )
        raise ValueError(msg)
    given = pd.Categorical(column)
    names = [str(name) for name in given.categories]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        msg = f"`adata.obs[{key!r}]` (`{argument}`) has labels that read alike: {twice[:5]}. Rename them."
        raise ValueError(msg)
    labels = given.rename_categories(names)
    labels = labels.remove_categories([name for name in names if is_no_label(name)])
    labels = labels.remove_unused_categories().as_unordered()
    if not len(labels.categories):
        msg = f"Expected labels in `adata.obs[{key!r}]` (`{argument}`), found only missing values. {advice}"
        raise ValueError(msg)
    return labels


def joined_labels(
    tables: Sequence[AnnData], key: str, *, argument: str = "key", advice: str = DOMAINS_FIRST
) -> pd.Categorical:
    """Return the labels of all tables after each other, by `read_labels`; names are in the order of the first table."""
    found = [read_labels(table, key, argument=argument, advice=advice) for table in tables]
    present = {name for labels in found for name in labels.categories}
    order = dict.fromkeys(str(name) for table in tables for name in pd.Categorical(table.obs[key]).categories)
    names = [name for name in order if name in present]
    codes = [labels.set_categories(names).codes for labels in found]
    return pd.Categorical.from_codes(np.concatenate(codes), names)


def spaced_rows(codes: np.ndarray, most: int, fewest: int) -> np.ndarray:
    """Return the rows, int64, of labelled observations (those with codes of at least 0), or of about `most` of them.

    Every label keeps its share, but at least `fewest` of its observations, spaced evenly along the rows.
    """
    labelled = np.flatnonzero(codes >= 0)
    if len(labelled) <= most:
        return labelled
    kept = []
    for code in np.unique(codes[labelled]):
        rows = np.flatnonzero(codes == code)
        count = min(len(rows), max(fewest, round(len(rows) * most / len(labelled))))
        kept.append(rows[np.linspace(0, len(rows) - 1, count).astype(int)])
    return np.sort(np.concatenate(kept))
