"""Predicted expression: a table in `.obsm` with a column for each predicted gene, and its record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg._input._checks import check_gene_list, warn
from stimg._input._records import read_record, write_record

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from anndata import AnnData

MOST_COLUMNS = 4000


@dataclass(frozen=True)
class Prediction:
    """What one of the functions that predict expression wrote under a key."""

    values: Any  # a DataFrame in memory, or a layer that is computed when it is read
    genes: pd.Index
    record: dict[str, Any]

    def read(self, genes: Sequence[str], rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the values of some genes, float32 (n_rows, n_genes); a `KeyError` names those not predicted."""
        columns = self.genes.get_indexer(pd.Index(genes))
        if absent := [str(gene) for gene, column in zip(genes, columns, strict=True) if column < 0]:
            msg = f"`genes` without a prediction: {absent[:5]}. Choose from {list(self.genes[:5])}, ..."
            raise KeyError(msg)
        if isinstance(self.values, pd.DataFrame):
            return self.values.iloc[rows, columns].to_numpy(dtype=np.float32)
        return np.asarray(self.values[rows][:, columns], dtype=np.float32)


def write_prediction(
    table: AnnData, step: str, key: str, values: Any, genes: Collection[str] | np.ndarray, record: dict[str, Any]
) -> str:
    """Write predictions, float32 (n_obs, n_genes), to `.obsm[key]` as a DataFrame, and their record.

    Values that are computed when they are read, of all genes of the table, become a layer. What the same step wrote
    under the key before is replaced, wherever it lies. Return the slot, `"obsm"` or `"layers"`.
    """
    earlier = read_record(table, step, key).get("slot")
    if earlier is not None:
        getattr(table, earlier).pop(key, None)
    slot = "layers" if hasattr(values, "dask") else "obsm"
    if slot == "layers":
        table.layers[key] = values
    else:
        table.obsm[key] = pd.DataFrame(values, index=table.obs_names, columns=pd.Index(genes, dtype=object))
        if len(genes) > MOST_COLUMNS:
            warn(
                f"`adata.obsm[{key!r}]` has {len(genes):,} genes. Each becomes a column of its own in a file, which is "
                "slow, and HDF5 refuses some numbers above 4,000. Before saving, keep what you need: "
                f"`adata.obsm[{key!r}] = adata.obsm[{key!r}][genes]`."
            )
        if slashed := [str(gene) for gene in genes if "/" in gene]:
            warn(
                f"`adata.obsm[{key!r}]` has genes with a slash in their names ({slashed[:3]}), which become columns of "
                "a file that zarr refuses. Before saving, rename them: "
                f"`adata.obsm[{key!r}].columns = adata.obsm[{key!r}].columns.str.replace('/', '_')`."
            )
    write_record(table, step, key, record | {"slot": slot, "n_genes": len(genes)})
    return slot


def read_prediction(table: AnnData, step: str, key: str) -> Prediction:
    """Return what a step wrote under a key, wherever it lies; a `KeyError` if it or its record is missing."""
    record = read_record(table, step, key)
    if record.get("slot") == "layers" and key in table.layers:
        return Prediction(table.layers[key], table.var_names, record)
    values = table.obsm[key] if key in table.obsm else None
    if not record or not isinstance(values, pd.DataFrame):
        tables = [name for name, value in table.obsm.items() if isinstance(value, pd.DataFrame)]
        msg = (
            f"Key {key!r} not found as a table of predicted genes in `adata.obsm` with a record in "
            f"`adata.uns['stimg']`. Available tables: {tables}. Run `stimg.tl.{step}(adata, ...)` first."
        )
        raise KeyError(msg)
    return Prediction(values, values.columns, record)


def distinct_genes(genes: Sequence[str]) -> list[str]:
    """Return the genes to predict as a list; refuse anything else, none, and repeated ones."""
    check_gene_list(genes)
    found = list(genes)
    if not found or len(set(found)) < len(found):
        msg = f"Expected distinct names in `genes`, found {len(found)}, {len(set(found))} of them distinct."
        raise ValueError(msg)
    return found
