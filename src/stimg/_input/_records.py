"""The records of each step in `.uns["stimg"]`, and the defaults that later steps take from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from stimg import _keys
from stimg._input._checks import check_library_key
from stimg._input._sections import check_one_section

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData


def write_record(table: AnnData, step: str, key: str, params: dict[str, Any]) -> None:
    """Record what was written under `key` in `.uns["stimg"][key]`, and as the step's last run in `.uns["stimg"][step]`.

    The records of other keys are kept.
    """
    from stimg import __version__

    record = {**params, "written_by": step, "key_added": key, "version": __version__}
    table.uns[_keys.UNS] = {**table.uns.get(_keys.UNS, {}), step: record, key: dict(record)}


def remove_record(table: AnnData, step: str, key: str) -> None:
    """Remove the record of what a step wrote under `key`, if there is one."""
    records = table.uns.get(_keys.UNS, {})
    if records.get(key, {}).get("written_by") == step:
        table.uns[_keys.UNS] = {name: record for name, record in records.items() if name != key}


def read_record(table: AnnData, step: str, key: str | None = None) -> dict[str, Any]:
    """Return the record of what a step wrote under `key`, or of its last run; empty if there is none."""
    records = table.uns.get(_keys.UNS, {})
    last = records.get(step, {})
    if key is None or key == step:
        return last
    found = records.get(key, {})
    # Another step may have used the key for another slot; the first releases kept the last run's record only.
    if found.get("written_by") == step:
        return found
    return last if last.get("key_added", key) == key else {}


def said(table: AnnData, name: str, given: str | None, default: str | None = None) -> str | None:
    """Return `library_key` or `spatial_key` as given, else as given to :func:`stimg.pp.to_lattice`, else `default`."""
    return given if given is not None else read_record(table, _keys.STEP_LATTICE).get(name) or default


def section_codes(
    tables: Sequence[AnnData],
    library_key: str | None,
    coordinates: np.ndarray | None = None,
    spatial_key: str | None = None,
) -> np.ndarray:
    """Return the number of each observation's section, int64 (n_obs of all tables,), by `library_key` or the lattice.

    Different tables never share a section. A `KeyError` says that the column is missing, a `ValueError` that it has
    missing values. With the `coordinates` of all tables under `spatial_key`, sections that lie over one another in them
    are a `ValueError` too.
    """
    names = []
    start = 0
    for number, table in enumerate(tables):
        key = said(table, "library_key", library_key)
        check_library_key(table, key)
        if coordinates is not None:
            where = str(said(table, "spatial_key", spatial_key, _keys.SPATIAL))
            check_one_section(table, coordinates[start : start + table.n_obs], key, spatial_key=where)
        start += table.n_obs
        own = pd.Series("", index=table.obs_names) if key is None else table.obs[key].astype(str)
        names.append(f"{number}/" + own)
    return pd.factorize(pd.concat(names))[0]


def said_expression(table: AnnData, layer: str | None, scale: str | None) -> tuple[str | None, str]:
    """Return the layer and scale of the expression as given, else as given to :func:`stimg.pp.select_genes`."""
    recorded = read_record(table, _keys.STEP_GENES)
    if scale is None:
        return layer or recorded.get("layer") or None, recorded.get("scale", "counts")
    return layer, scale


def said_genes(table: AnnData, given: str | None) -> str | None:
    """Return the column of `.var` with names of genes as given, else as given to an earlier step."""
    earlier = (read_record(table, step).get("gene_symbols") for step in (_keys.STEP_GENES, _keys.STEP_EMBED))
    return given if given is not None else next((key for key in earlier if key), None)
