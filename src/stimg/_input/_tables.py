"""From the object that the user passed to the table that is read and written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stimg import _keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData


LIBRARY_PARTS = ("images", "scalefactors", "metadata")
READERS = {
    ".h5ad": "`adata = anndata.read_h5ad(path)`",
    ".zarr": "`sdata = spatialdata.read_zarr(path)` or `adata = anndata.read_zarr(path)`",
}


def resolve_table(adata: AnnData | SpatialData, table_key: str | None = None, *, copy: bool = False) -> AnnData:
    """Return the AnnData itself, or the table of a SpatialData; `copy` says whether the user asked for a copy.

    Raises
    ------
    TypeError
        `adata` is neither.
    KeyError
        There is no table `table_key`.
    ValueError
        There are several tables and no `table_key`, no observations or genes, annotations that are not in memory, or an
        AnnData that is backed by a file and is a view or to be copied.
    """
    if isinstance(adata, AnnData):
        table = adata
    elif hasattr(adata, "tables") and hasattr(adata, "shapes"):
        table = _table_of(adata, table_key)
    else:
        msg = f"Expected an AnnData or SpatialData, found {type(adata).__name__}{_cure(adata)}."
        raise TypeError(msg)
    if table.isbacked and (copy or table.is_view):
        what = "use a view of" if table.is_view else "copy"
        msg = f"Cannot {what} an AnnData that is backed by a file. Call `adata = adata.to_memory()` first."
        raise ValueError(msg)
    if not isinstance(table.obs, pd.DataFrame) or not isinstance(table.var, pd.DataFrame):
        msg = (
            f"Expected `adata.obs` and `adata.var` in memory, found a lazy {type(table.obs).__name__}. Load them "
            "first (`anndata.AnnData(X=adata.X, obs=adata.obs.to_memory(), var=adata.var.to_memory(), ...)`); "
            "expression may stay lazy."
        )
        raise ValueError(msg)
    if table.n_obs == 0 or table.n_vars == 0:
        msg = f"Expected a slide with observations and genes, found {table.n_obs} x {table.n_vars}."
        raise ValueError(msg)
    return table


def libraries_of(table: AnnData) -> dict[str, dict[str, Any]]:
    """Return the libraries in `.uns["spatial"]` by name, their missing parts empty; CELLxGENE's `is_single` is none."""
    entries = table.uns.get(_keys.SPATIAL)
    if not isinstance(entries, Mapping):  # some files have coordinates there
        return {}
    found = {str(name): dict(entry) for name, entry in entries.items() if isinstance(entry, Mapping)}
    for entry in found.values():
        entry |= {part: entry[part] if isinstance(entry.get(part), Mapping) else {} for part in LIBRARY_PARTS}
    return found


def scale_factor(library: Mapping[str, Any], key: str) -> float | None:
    """Return a scale factor of an entry of `.uns["spatial"]`; `None` if it is missing or NaN.

    Anything else than a positive number is a `ValueError`.
    """
    stored = library.get("scalefactors", {}).get(key)
    try:
        found = np.nan if stored is None else float(np.asarray(stored).item())
    except (TypeError, ValueError):
        found = 0.0
    if np.isnan(found):
        return None
    if not 0 < found < np.inf:
        msg = (
            f"Expected `{key}` in `adata.uns['spatial'][...]['scalefactors']` to be a positive number, found "
            f"{str(stored)[:50]!r}. Correct it."
        )
        raise ValueError(msg)
    return found


def distinct_tables(
    given: Sequence[AnnData | SpatialData], table_key: str | None, *, copy: bool = False, argument: str = "adata"
) -> list[AnnData]:
    """Return the tables of several slides by `resolve_table`; refuse an empty list and a slide given twice."""
    if not given:
        msg = f"Expected at least one slide in `{argument}`, found an empty list."
        raise ValueError(msg)
    tables = [resolve_table(slide, table_key, copy=copy) for slide in given]
    if len({id(table) for table in tables}) < len(tables):
        msg = f"Expected {len(tables)} different slides in `{argument}`, found one of them twice. Give each slide once."
        raise ValueError(msg)
    return tables


def _cure(given: Any) -> str:
    """Return how the object that was given becomes a slide, to go after its type."""
    if isinstance(given, str | os.PathLike):
        path = os.fsdecode(given)
        reader = READERS.get(Path(path).suffix, "the reader of its format in `squidpy.read` or `spatialdata_io`")
        return f" ({path!r}), not the slide itself. Read it first, with {reader}"
    if isinstance(given, list | tuple):
        return (
            f" of {len(given)}. Give one slide at a time, or join them: `anndata.concat(slides, label='section', "
            "index_unique='-')`, with `library_key='section'`"
        )
    if isinstance(given, Mapping):
        names = list(map(str, given))[:5]
        return f" with {names}. Give one of its slides" + (f", such as `[{names[0]!r}]`" if names else "")
    if hasattr(given, "mod") and hasattr(given, "obsm"):
        names = list(given.mod)
        return f" with the modalities {names}. Give that with expression, such as `.mod[{names[0]!r}]`" if names else ""
    return ""


def _table_of(sdata: SpatialData, table_key: str | None) -> AnnData:
    names = list(sdata.tables)
    if table_key is not None and table_key not in names:
        msg = f"No table {table_key!r} (`table_key`) in the SpatialData. Available tables: {names}."
        raise KeyError(msg)
    if not names:
        msg = (
            "The SpatialData has no table. Add one with the expression of its spots or cells, "
            "`sdata['table'] = spatialdata.models.TableModel.parse(...)`; from images or points, for example with "
            "`sdata.aggregate(values=..., by=...)`."
        )
        raise ValueError(msg)
    if table_key is None and len(names) != 1:
        msg = f"Expected one table in the SpatialData or a `table_key`, found tables {names}."
        raise ValueError(msg)
    return sdata.tables[names[0] if table_key is None else table_key]


def prepare(
    adata: AnnData | SpatialData, table_key: str | None, copy: bool
) -> tuple[AnnData, AnnData | SpatialData | None]:
    """Return the table to write to, and what the public function returns: `None`, or the changed copy.

    Call this once everything is computed. A view becomes an object of its own, as in scanpy, so that its parent is not
    changed.
    """
    if not copy:
        table = resolve_table(adata, table_key)
        if table.is_view:
            table.uns = table.uns.copy()  # any write turns a view into an object of its own
        return table, None
    if isinstance(adata, AnnData):
        result: Any = adata.copy()
    else:
        import spatialdata

        result = spatialdata.deepcopy(adata)
    return resolve_table(result, table_key), result
