"""How well expression is predicted from images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stimg._input._checks import checked
from stimg.metrics._checks import as_labels, as_matrix, as_pair, as_sites, refuse_non_finite
from stimg.metrics._correlations import GENES_AT_ONCE, as_dense, correlate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

HIGHLY_PREDICTABLE = 50


@checked
def gene_correlations(
    true: Any, predicted: Any, *, genes: Sequence[str] | None = None, folds: ArrayLike | None = None
) -> pd.DataFrame:
    """Compare predicted with measured expression gene by gene.

    Parameters
    ----------
    true
        Measured log-normalised expression, dense or sparse, shape (n_obs, n_genes).
    predicted
        Prediction, dense or sparse, or a table such as `.obsm["stimg_image"]`, same shape. Spots with NaN (outside the
        image) are left out. Two tables must name the same observations and genes in the same order.
    genes
        Names of the genes; by default the columns of `predicted` if it is a table, otherwise their numbers.
    folds
        Section, patient or fold of every spot, shape (n_obs,). Correlations are then computed within each fold and
        averaged over the folds that have one, so that differences between folds do not count. By default they are
        computed over all spots.

    Returns
    -------
    DataFrame
        One row per gene, with `pearson` (NaN where measured or predicted values are constant in every fold), `rank`
        (1 for the highest `pearson`; with folds, the mean of its ranks in them, where genes without a correlation
        share the last ranks; NaN where `pearson` is), `mse`, `mae`, `mean` and `variance` of the measured values,
        and `constant` (bool: there is no `pearson`).

    Raises
    ------
    ValueError
        Shapes differ, measured values are not finite, predicted ones are infinite, no spot has predictions of all
        genes, or names or folds do not fit.

    Notes
    -----
    TRIPLEX (Chung et al. 2024, CVPR) chooses its highly predictable genes by ranks averaged over folds.

    Examples
    --------
    >>> table = stimg.metrics.gene_correlations([[0.0], [1.0]], [[0.2], [0.8]], genes=["ERBB2"])
    >>> table["pearson"].round(3).to_dict()
    {'ERBB2': 1.0}
    """
    if genes is None and isinstance(predicted, pd.DataFrame):
        genes = list(predicted.columns)
    measured, guess, kept = _predicted_spots(true, predicted)
    if genes is not None and len(genes) != measured.shape[1]:
        msg = f"Expected a name in `genes` for each of {measured.shape[1]} genes, found {len(genes)}."
        raise ValueError(msg)
    table = _by_gene(measured, guess, kept, folds)
    return table if genes is None else table.set_axis(pd.Index(genes), axis=0)


@checked
def expression_scores(true: Any, predicted: Any, *, folds: ArrayLike | None = None) -> dict[str, float]:
    """Score expression that was predicted from images by its correlations and errors over genes.

    Parameters
    ----------
    true, predicted, folds
        As in :func:`gene_correlations`. To compare with scores published for smoothed targets, smooth the measured
        values with :func:`smooth_expression` first.

    Returns
    -------
    dict
        `pcc_f`, `pcc_s` and `pcc_m`: first quartile, median and mean over genes of Pearson's correlation (PixNet,
        arXiv 2503.01347). `pcc_h`: its mean over the 50 genes with the best rank (TRIPLEX, Chung et al. 2024, CVPR),
        which is optimistic, since the measured values of the test spots themselves choose these genes. `mse` and `mae`
        over all values, constant genes included. `n_genes`: genes with a correlation. `n_genes_constant`: genes
        without one (measured or predicted values are constant), left out of the four correlations, which are NaN if
        there are no other genes. `n_obs`: spots scored. `n_obs_missing`: spots with NaN in `predicted`, left out.

    Raises
    ------
    ValueError
        As in :func:`gene_correlations`.

    Examples
    --------
    >>> stimg.metrics.expression_scores([[0.0], [1.0]], [[0.25], [0.75]])["mae"]
    0.25
    """
    measured, guess, kept = _predicted_spots(true, predicted)
    table = _by_gene(measured, guess, kept, folds)
    pearson = table["pearson"].dropna()
    return {
        "pcc_f": float(pearson.quantile(0.25)),
        "pcc_s": float(pearson.median()),
        "pcc_m": float(pearson.mean()),
        "pcc_h": float(table.nsmallest(HIGHLY_PREDICTABLE, "rank")["pearson"].mean()),
        "mse": float(table["mse"].mean()),
        "mae": float(table["mae"].mean()),
        "n_genes": int(pearson.size),
        "n_genes_constant": int(table["constant"].sum()),
        "n_obs": int(kept.sum()),
        "n_obs_missing": int((~kept).sum()),
    }


@checked
def smooth_expression(values: Any, lattice: ArrayLike) -> Any:
    """Average expression over the 3 x 3 neighbourhood of each spot on the array.

    Scores published for HER2+ and other legacy ST slides (TRIPLEX and others) often refer to such smoothed targets;
    they are higher than scores on the measured values.

    Parameters
    ----------
    values
        Log-normalised expression of one section, dense or sparse, shape (n_obs, n_genes).
    lattice
        Row and column of every spot on a square array, integer, shape (n_obs, 2): `.obsm["lattice"]`, or the array
        indices.

    Returns
    -------
    numpy.ndarray or scipy.sparse.csr_array
        float32, shape (n_obs, n_genes), sparse if `values` are sparse: the mean over each spot and those of its eight
        neighbours that exist.

    Raises
    ------
    ValueError
        Shapes do not fit, values are not finite, or spots share a site, as they do if there are several sections.

    Examples
    --------
    >>> stimg.metrics.smooth_expression([[0.0], [3.0]], [[0, 0], [0, 1]]).tolist()
    [[1.5], [1.5]]
    """
    matrix, sites = as_matrix(values, "values"), as_sites(lattice, "lattice")
    refuse_non_finite(matrix, "`values`")
    if len(sites) != matrix.shape[0]:
        msg = f"Expected a site in `lattice` for each of {matrix.shape[0]} rows of `values`, found {len(sites)}."
        raise ValueError(msg)
    if shared := len(sites) - len(np.unique(sites, axis=0)):
        msg = (
            f"Expected every spot on a site of its own in `lattice`, found {shared} on the site of another. Smooth one "
            "section at a time, and remove duplicated spots."
        )
        raise ValueError(msg)
    from scipy.spatial import cKDTree

    first, second = cKDTree(sites).query_pairs(1.5, p=np.inf, output_type="ndarray").T
    n_obs = len(sites)
    links = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(n_obs, n_obs)).tocsr()
    links = links + links.T + sparse.eye_array(n_obs)
    smoothed = sparse.diags_array(1 / links.sum(1)) @ links @ matrix
    return sparse.csr_array(smoothed, dtype=np.float32) if sparse.issparse(matrix) else smoothed.astype(np.float32)


def _predicted_spots(true: Any, predicted: Any) -> tuple[Any, Any, np.ndarray]:
    """Return both matrices, and the spots that have predictions of all genes, bool (n_obs,)."""
    measured, guess = as_pair(true, predicted)
    kept = np.ones(measured.shape[0], dtype=bool)
    n_absent = 0
    for start in range(0, measured.shape[1], GENES_AT_ONCE):
        block = as_dense(guess[:, start : start + GENES_AT_ONCE])
        if np.isinf(block).any():
            msg = f"`predicted` has {int(np.isinf(block).sum())} infinite values. Remove or replace them."
            raise ValueError(msg)
        unknown = np.isnan(block)
        kept &= ~unknown.any(1)
        n_absent += int(unknown.all(0).sum())
    if not kept.any():
        msg = f"Expected spots in `predicted` with values for all genes, found NaN in each of {len(kept)}."
        if 0 < n_absent < measured.shape[1]:
            msg += f" {n_absent} of {measured.shape[1]} genes are NaN in every spot: leave them out of both."
        raise ValueError(msg)
    return measured, guess, kept


def _by_gene(measured: Any, guess: Any, kept: np.ndarray, folds: ArrayLike | None) -> pd.DataFrame:
    """Make the table of :func:`gene_correlations` over the kept spots, with genes by their numbers."""
    spots = _fold_rows(folds, kept)
    in_folds, columns = [], []
    for start in range(0, measured.shape[1], GENES_AT_ONCE):
        block = slice(start, start + GENES_AT_ONCE)
        x, y = as_dense(measured[:, block]), as_dense(guess[:, block])
        in_folds.append([correlate(x[rows], y[rows], np.ones((len(rows), x.shape[1]), dtype=bool)) for rows in spots])
        x, y = x[kept], y[kept]
        columns.append([((y - x) ** 2).mean(0), np.abs(y - x).mean(0), x.mean(0), x.var(0)])
    correlations = pd.DataFrame(np.concatenate(in_folds, axis=1))
    pearson = correlations.mean()
    rank = correlations.rank(axis=1, ascending=False, na_option="bottom").mean().where(pearson.notna())
    summary = dict(zip(("mse", "mae", "mean", "variance"), np.concatenate(columns, axis=1), strict=True))
    return pd.DataFrame({"pearson": pearson, "rank": rank, **summary, "constant": pearson.isna()})


def _fold_rows(folds: ArrayLike | None, kept: np.ndarray) -> list[np.ndarray]:
    """Return the kept rows of each fold."""
    if folds is None:
        return [np.flatnonzero(kept)]
    labels = as_labels(folds, "folds", len(kept), complete=True)
    return [np.flatnonzero(kept & (labels == fold)) for fold in dict.fromkeys(labels[kept])]
