"""How much of each sample every domain takes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._cluster._labels import joined_labels
from stimg._input._checks import check_library_key, check_names, check_obs_key
from stimg._input._coordinates import check_coordinates
from stimg._input._records import read_record, said
from stimg._input._sections import check_one_section
from stimg._input._tables import distinct_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("stimg")


def count_domains(
    adata: AnnData | SpatialData | Sequence[AnnData | SpatialData],
    key: str,
    *,
    library_key: str | None,
    condition_key: str | None,
    names: Sequence[str] | None,
    table_key: str | None,
) -> tuple[pd.DataFrame, list[AnnData]]:
    """Return one row per sample and domain, as :func:`stimg.tl.domain_proportions` does, and the tables.

    Samples are in the order in which they come, grouped by condition.
    """
    given = list(adata) if isinstance(adata, list | tuple) else [adata]
    tables = distinct_tables(given, table_key)
    domains = joined_labels(tables, key)
    _check_joint(tables, domains, key)
    if missing := int((domains.codes < 0).sum()):
        logger.info("%d of %d observations have no label in .obs[%r] and do not count.", missing, len(domains), key)
    samples = _samples(tables, library_key, names)
    conditions = None if condition_key is None else _conditions(tables, condition_key)
    rows = pd.DataFrame({"sample": np.concatenate(samples), "domain": domains})
    counts = rows.groupby(["sample", "domain"], observed=False, sort=False).size().unstack("domain")
    counts = counts.loc[list(dict.fromkeys(rows["sample"])), list(domains.categories)]
    if empty := [str(name) for name in counts.index[counts.sum(1) == 0]]:
        msg = f"Samples without any observation with a label in `adata.obs[{key!r}]`: {empty[:5]}. Remove them first."
        raise ValueError(msg)
    of_sample = None
    if conditions is not None and condition_key is not None:
        of_sample = _one_condition(rows["sample"].to_numpy(), conditions, condition_key)
        order = [name for one in conditions.categories for name in counts.index if of_sample[name] == one]
        counts = counts.loc[order]
    n_obs = counts.to_numpy()
    table = pd.DataFrame(
        {
            "sample": pd.Categorical(np.repeat(counts.index, counts.shape[1]), categories=counts.index),
            "domain": pd.Categorical.from_codes(np.tile(np.arange(counts.shape[1]), len(counts)), domains.categories),
            "n_obs": n_obs.ravel(),
            "share": (n_obs / n_obs.sum(1, keepdims=True)).ravel(),
        }
    )
    if conditions is not None and of_sample is not None:
        values = [of_sample[name] for name in table["sample"]]
        table.insert(1, "condition", pd.Categorical(values, categories=conditions.categories))
    return table, tables


def _check_joint(tables: list[AnnData], domains: pd.Categorical, key: str) -> None:
    """Refuse slides whose domains were found one by one, since domain "1" of one is not that of another."""
    records: list[dict[str, Any]] = [read_record(table, _keys.STEP_DOMAINS, key) for table in tables]
    for record in records:
        if record and record.get("n_slides", 1) < len(tables) and all(name.isdigit() for name in domains.categories):
            msg = (
                f"The domains in `.obs[{key!r}]` were found for each slide by itself, so that domain '1' of one is not "
                f"that of another. Find them together: `stimg.tl.domains([slide, ...], {record['n_domains']})`, or "
                "rename them, so that the same domain has the same name in all slides."
            )
            raise ValueError(msg)


def _samples(tables: list[AnnData], library_key: str | None, names: Sequence[str] | None) -> list[np.ndarray]:
    """Return the sample of each observation of each table, str (n_obs,)."""
    if names is not None:
        check_names("names", names, len(tables))
        if len(set(names)) < len(names):
            msg = f"Expected different `names` of the slides, found {list(names)}."
            raise ValueError(msg)
        if library_key is not None:
            msg = f"Expected either `names` or `library_key`, found {list(names)} and {library_key!r}."
            raise ValueError(msg)
        return [np.full(table.n_obs, name, dtype=object) for table, name in zip(tables, names, strict=True)]
    found = []
    for number, table in enumerate(tables):
        column = said(table, "library_key", library_key)
        check_library_key(table, column)
        if column is None:
            spatial_key = str(said(table, "spatial_key", None, _keys.SPATIAL))
            if spatial_key in table.obsm:
                check_one_section(table, check_coordinates(table, spatial_key), spatial_key=spatial_key)
            found.append(np.full(table.n_obs, f"slide{number}", dtype=object))
        else:
            found.append(table.obs[column].astype(str).to_numpy(dtype=object))
    several = pd.Series([name for own in found for name in set(own)])
    if library_key is None and several.duplicated().any():
        twice = several[several.duplicated()].unique().tolist()
        msg = (
            f"Several slides have sections with the same name: {twice[:5]}. Pass `library_key` if each is one sample, "
            "or `names=`, one per slide."
        )
        raise ValueError(msg)
    return found


def _conditions(tables: list[AnnData], key: str) -> pd.Categorical:
    """Return the condition of each observation of all tables; it must not be missing.

    They are in the order of a table's categories, if one has all of them, or else sorted.
    """
    for table in tables:
        check_obs_key(table, key, argument="condition_key")
        if missing := int(table.obs[key].isna().sum()):
            msg = f"`adata.obs[{key!r}]` (`condition_key`) has {missing} missing values. Give every observation one."
            raise ValueError(msg)
    values = np.concatenate([table.obs[key].astype(str).to_numpy(dtype=object) for table in tables])
    present = set(values)
    orders = [[str(name) for name in pd.Categorical(table.obs[key]).categories] for table in tables]
    order = next((one for one in orders if present <= set(one)), sorted(present))
    return pd.Categorical(values, categories=[name for name in order if name in present])


def _one_condition(samples: np.ndarray, conditions: pd.Categorical, key: str) -> dict[str, str]:
    """Return the condition of each sample; refuse a sample with several."""
    pairs = pd.DataFrame({"sample": samples, "condition": np.asarray(conditions)}).drop_duplicates()
    if (twice := pairs["sample"].duplicated(keep=False)).any():
        name = pairs["sample"][twice].iloc[0]
        several = pairs["condition"][pairs["sample"] == name].tolist()
        msg = (
            f"Expected one value of `adata.obs[{key!r}]` (`condition_key`) in each sample, found {several[:5]} in "
            f"{name!r}. Pass the column that tells samples apart as `library_key`."
        )
        raise ValueError(msg)
    return dict(zip(pairs["sample"], pairs["condition"], strict=True))
