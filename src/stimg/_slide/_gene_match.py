"""Which genes of a table a model knows: by which names, and how many."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata.utils import make_index_unique

from stimg._input._checks import check_gene_symbols, check_var_unique, warn
from stimg._input._records import said_genes
from stimg._slide._genes import known_symbols, translated_rows, usual_case, vocabulary_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

logger = logging.getLogger("stimg")

LEAST_SHARED = 20
LOW_SHARE = 0.4  # of the slides that stimg was tried on, all share more of what could be shared
FEW = 0.01
CLEARLY = 1.05
SMALL_PANEL = 500


@dataclass(frozen=True)
class GeneMatch:
    """The genes of a table in a vocabulary."""

    rows: np.ndarray  # int64 (n_vars,): row of each column in the vocabulary, -1 for none; no row comes twice
    into: np.ndarray | None  # int64 (n_vars,): column to which each one's counts are added; None if all are their own
    n_genes: int  # size of the vocabulary
    record: dict[str, Any]  # what to record of it in `.uns`

    @property
    def columns(self) -> np.ndarray:
        """Columns of the genes that are in the vocabulary, int64 (n_shared,)."""
        return np.flatnonzero(self.rows >= 0)

    @property
    def column_of(self) -> np.ndarray:
        """Column of each gene of the vocabulary, int64 (n_genes,), -1 for those that the table lacks."""
        columns = np.full(self.n_genes, -1, dtype=np.int64)
        columns[self.rows[self.columns]] = self.columns
        return columns


def match_genes(table: AnnData, genes: np.ndarray, gene_symbols: str | None, *, least: int = LEAST_SHARED) -> GeneMatch:
    """Find the genes of a table in the vocabulary `genes` of a model, and report how many.

    Names are those in the column `gene_symbols` of `.var`, by default that given to an earlier step, else those in
    `.var_names` or in the text column of `.var` that has clearly more of the model's genes. Columns of one gene are
    merged. Fewer than `least` genes in common (or half of a smaller vocabulary) are a `ValueError`.
    """
    found, told = _best_match(table, genes, gene_symbols), said_genes(table, gene_symbols)
    rows, into = _merge(found)
    shared = int((rows >= 0).sum())
    where = f"adata.var[{found.source!r}]" if found.source else "adata.var_names"
    least = min(least, -(-len(genes) // 2))
    if shared < least:
        columns = f" (there are {list(map(str, table.var.columns))})" if len(table.var.columns) else ""
        msg = (
            f"Expected at least {least} of the model's {len(genes):,} genes ({', '.join(genes[:3])}, ...) in the "
            f"slide, found {shared or 'none'} among the {table.n_vars:,} names in `{where}` "
            f"({', '.join(found.names[:3])}, ...). Usual causes: (1) Gene identifiers. If symbols or Ensembl ids stand "
            f"in a column of `adata.var`{columns}, name it as `gene_symbols`. (2) Species. Human and "
            "mouse genes find each other, others do not. (3) The wrong table (`table_key`): proteins, for instance."
        )
        raise ValueError(msg)
    most = min(table.n_vars, len(genes))
    counted = f"{shared:,} of the slide's {table.n_vars:,} genes ({shared / table.n_vars:.0%})"
    if shared < LOW_SHARE * most:
        warn(
            f"Only {counted}, by `{where}`, are among the model's {len(genes):,}; the result will be less accurate. "
            "Check species and gene identifiers, or name the column of `adata.var` with others as `gene_symbols`."
        )
    notes = [f"Genes by `{where}`: {counted} are among the model's {len(genes):,}."]
    if found.translated:
        notes.append(f"{found.translated:,} are Ensembl ids or other spellings of its names.")
    if into is not None:
        notes.append(f"{int((into != np.arange(table.n_vars)).sum()):,} columns were added to others of the same gene.")
    if shared < min(SMALL_PANEL, len(genes)):
        notes.append("A small panel gives less accurate results than a whole transcriptome.")
    logger.info(" ".join(notes))
    record = {
        "n_genes_shared": shared,
        "gene_share": shared / table.n_vars,
        "model_share": shared / len(genes),
        "gene_symbols": told or "",
        "genes_from": found.source or "var_names",
    }
    return GeneMatch(rows, into, len(genes), record)


def gene_names(table: AnnData, gene_symbols: str | None) -> np.ndarray:
    """Return a unique name of every gene, str (n_vars,), by the column `gene_symbols` or that told to an earlier step.

    Without one, these are the names in `.var_names`; where these are Ensembl ids, or have prefixes, the symbols of
    known genes are used instead. A name that is missing, or comes twice, is that in `.var_names`.
    """
    own = table.var_names.to_numpy().astype(str)
    told = said_genes(table, gene_symbols)
    if told:
        names = _column(table, told)
    else:
        symbols = known_symbols()
        found = _best_match(table, symbols, None)
        if not found.source and 2 * found.translated <= (found.rows >= 0).sum():
            return own
        names = np.where(found.rows >= 0, symbols[found.rows], "")
    unnamed = (names == "") | pd.Series(names).duplicated().to_numpy()
    return make_index_unique(pd.Index(np.where(unnamed, own, names))).to_numpy().astype(str)


def columns_of(
    table: AnnData, genes: Sequence[str], gene_symbols: str | None = None, *, also: np.ndarray | None = None
) -> np.ndarray:
    """Return the columns of genes, int64 (n,), by their names in `.var_names`, else by those of `gene_names` or `also`.

    Those that the table lacks have -1. Two names of one gene are a `ValueError`. `also` are names of every column, str
    (n_vars,), such as those that a model has for it, empty for none.
    """
    check_var_unique(table)
    wanted = pd.Index(genes)
    columns = table.var_names.get_indexer(wanted)
    if (columns < 0).any():
        columns = np.where(columns < 0, pd.Index(gene_names(table, gene_symbols)).get_indexer(wanted), columns)
    if also is not None and (columns < 0).any():
        column_of = {name: column for column, name in enumerate(also.tolist()) if name}
        columns = np.where(columns < 0, [column_of.get(str(gene), -1) for gene in genes], columns)
    there = pd.DataFrame({"column": columns, "name": list(map(str, genes))})[columns >= 0].drop_duplicates()
    if (twice := there["column"].duplicated(keep=False)).any():
        msg = f"Expected one name of each gene in `genes`, found {there['name'][twice].tolist()[:5]} for the same."
        raise ValueError(msg)
    return columns


@dataclass(frozen=True)
class _Found:
    """The rows of the names of one source in a vocabulary."""

    source: str  # column of `.var`, empty for `.var_names`
    names: np.ndarray
    rows: np.ndarray
    direct: np.ndarray  # bool (n_vars,): found by the name as it is, or by that of its ortholog

    @property
    def translated(self) -> int:
        """Number of names that were found in another way."""
        return int(((self.rows >= 0) & ~self.direct).sum())

    @property
    def score(self) -> float:
        """Number of genes found, of which those that were found in another way alone count half."""
        return (_n_distinct(self.rows) + _n_distinct(self.rows[self.direct])) / 2


def _best_match(table: AnnData, genes: np.ndarray, gene_symbols: str | None) -> _Found:
    """Return the rows in a vocabulary by the column that was told, or by the names that match best."""
    check_var_unique(table)
    told = said_genes(table, gene_symbols)
    if told:
        return _rows_by(told, _column(table, told), genes)
    own = _rows_by("", table.var_names.to_numpy().astype(str), genes)
    columns = [name for name, column in _columns(table).items() if _is_text(column)]
    others = [_rows_by(name, _column(table, name), genes) for name in columns]
    best = max(others, key=lambda found: found.score, default=own)
    return best if best.score > CLEARLY * own.score else own


def _rows_by(source: str, names: np.ndarray, genes: np.ndarray) -> _Found:
    usual = usual_case(names, genes)
    rows = vocabulary_rows(usual, genes)
    direct = rows >= 0
    if not direct.all():
        translated = np.where(direct, rows, translated_rows(usual, genes))
        if (translated >= 0).sum() > (1 + FEW) * direct.sum():
            rows = translated
    return _Found(source, names, rows, direct & (usual == names))


def _n_distinct(rows: np.ndarray) -> int:
    return len(np.unique(rows[rows >= 0]))


def _merge(found: _Found) -> tuple[np.ndarray, np.ndarray | None]:
    """Keep one column of each gene, the first that has its name, and return to which column each one is added."""
    order = np.lexsort([np.arange(len(found.rows)), ~found.direct])
    order = order[found.rows[order] >= 0]
    kept = order[np.unique(found.rows[order], return_index=True)[1]]
    if len(kept) == len(order):
        return found.rows, None
    column_of = np.full(found.rows.max() + 1, -1)
    column_of[found.rows[kept]] = kept
    into = np.where(found.rows >= 0, column_of[found.rows], np.arange(len(found.rows)))
    return np.where(into == np.arange(len(into)), found.rows, -1), into


def _is_text(column: pd.Series) -> bool:
    """Tell whether a column can hold names of genes: text, most of it different."""
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    return (values.dtype == object or pd.api.types.is_string_dtype(values)) and column.nunique() > len(column) / 4


def _columns(table: AnnData) -> dict[str, pd.Series]:
    """Return the columns of `.var` by their names as text (files without a header give numbers)."""
    return {str(name): table.var.iloc[:, i] for i, name in reversed(list(enumerate(table.var.columns)))}


def _column(table: AnnData, name: str) -> np.ndarray:
    """Return a column of `.var` as text, str (n_vars,), empty where it is missing."""
    check_gene_symbols(table, name)
    column = _columns(table)[name]
    return np.where(column.isna(), "", column.astype(str)).astype(str)
