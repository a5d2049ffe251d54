"""The genes to predict, and their expression in slides that may lack some of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import rankdata

from stimg._slide._values import log_normalise, moments

if TYPE_CHECKING:
    from collections.abc import Sequence

TARGET_SUM = 1e4
GeneRule = Literal["mean", "variable", "variable_in_each"]
GENE_RULES = get_args(GeneRule)


def choose_genes(
    names: list[pd.Index], counts: list[sparse.csr_array], genes: Sequence[str] | None, n_genes: int, rule: GeneRule
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Choose the genes of several slides as :func:`stimg.pp.to_image_patches` describes.

    Returns their names, str (n,), and for each slide their columns, int64 (n,): -1 for genes that it lacks or, with
    `"variable_in_each"`, did not choose.
    """
    if genes is None and rule == "variable_in_each":
        own = [_most_variable(*slide, n_genes) for slide in zip(names, counts, strict=True)]
        chosen = np.unique(np.concatenate(own))
        kept = [np.isin(chosen, mine) for mine in own]
        return chosen, [np.where(k, n.get_indexer(pd.Index(chosen)), -1) for n, k in zip(names, kept, strict=True)]
    chosen = _shared_genes(names, counts, n_genes, rule) if genes is None else _given_genes(names, genes)
    return chosen, [one.get_indexer(pd.Index(chosen)) for one in names]


def counts_of(counts: sparse.csr_array, columns: np.ndarray) -> sparse.csr_array:
    """Return raw counts of the genes at `columns`, CSR float32; zero for those at -1."""
    n_rows, n_columns = counts.shape
    widened = sparse.csr_array((counts.data, counts.indices, counts.indptr), shape=(n_rows, n_columns + 1))
    return sparse.csr_array(widened[:, columns], dtype=np.float32)  # -1 is the empty last column


def expression_of(counts: sparse.csr_array, columns: np.ndarray, target_sum: float) -> np.ndarray:
    """Return log-normalised expression of the genes at `columns`, dense float32; NaN for those at -1."""
    known = np.flatnonzero(columns >= 0)
    found = np.full((counts.shape[0], len(columns)), np.nan, dtype=np.float32)
    found[:, known] = log_normalise(counts, target_sum, columns[known]).toarray()
    return found


def _given_genes(names: list[pd.Index], genes: Sequence[str]) -> np.ndarray:
    """Check the genes that the user named: each must be in at least one slide."""
    chosen = np.asarray(list(genes), dtype=str)
    if len(set(chosen)) < len(chosen) or not len(chosen):
        msg = f"Expected `genes` without duplicates, found {len(chosen)} names, {len(set(chosen))} of them different."
        raise ValueError(msg)
    known = set().union(*names)
    if absent := [gene for gene in chosen if gene not in known]:
        msg = f"{len(absent)} of `genes` are not in any slide ({absent[:3]}, ...). Check species and gene identifiers."
        raise KeyError(msg)
    return chosen


def _shared_genes(names: list[pd.Index], counts: list[sparse.csr_array], n_genes: int, rule: GeneRule) -> np.ndarray:
    """Choose among the genes of all slides those with the highest mean, or the best median rank of the variance."""
    shared = names[0]
    for one in names[1:]:
        shared = shared[shared.isin(one)]
    if not len(shared):
        msg = "No gene is in all `slides`. Name the `genes` to predict."
        raise KeyError(msg)
    columns = [one.get_indexer(shared) for one in names]
    values = [log_normalise(matrix, TARGET_SUM, index) for matrix, index in zip(counts, columns, strict=True)]
    if rule == "mean":
        score = np.sum([np.asarray(one.sum(0)).ravel() for one in values], axis=0)
    else:
        score = -np.median([rankdata(-moments([one])[1]) for one in values], axis=0)
    return shared.to_numpy().astype(str)[np.argsort(-score, kind="stable")[:n_genes]]


def _most_variable(names: pd.Index, counts: sparse.csr_array, n_genes: int) -> np.ndarray:
    """Return the genes whose log-normalised expression varies most in one slide."""
    deviation = moments([log_normalise(counts, TARGET_SUM)])[1]
    order = np.argsort(-deviation, kind="stable")[:n_genes]
    return names.to_numpy().astype(str)[order[deviation[order] > 0]]
