"""Errors of reconstructed expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._input._checks import checked
from stimg.metrics._checks import as_mask, as_pair
from stimg.metrics._correlations import GENES_AT_ONCE, as_dense, correlate

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@checked
def reconstruction_scores(true: Any, predicted: Any, *, hidden: ArrayLike | None = None) -> dict[str, float]:
    """Compare reconstructed with measured expression, both log-normalised.

    Parameters
    ----------
    true
        Measured expression, dense or sparse, shape (n_obs, n_genes).
    predicted
        Reconstruction, dense or sparse, or a table such as `.obsm["stimg"]`, same shape. Genes with NaN among the
        judged values are left out. Two tables must name the same observations and genes in the same order.
    hidden
        The values to judge: bool, shape (n_obs,) for whole observations or (n_obs, n_genes). By default all.

    Returns
    -------
    dict
        `mse` and `mae` over the judged values; `pearson`, the mean over genes of the correlation over observations;
        `n_values`; `n_genes`, genes with a correlation; `n_genes_undefined`, genes without one (constant in either
        matrix, or judged at fewer than two observations), which do not enter the mean (NaN if there are no others);
        and `n_genes_missing`, genes with NaN in `predicted`, which enter none of the scores.

    Raises
    ------
    ValueError
        Shapes differ, measured values are not finite, `hidden` has the wrong shape or type, or nothing is judged.

    Examples
    --------
    >>> stimg.metrics.reconstruction_scores([[0.0], [1.0]], [[0.25], [0.75]])["mae"]
    0.25
    """
    measured, guess = as_pair(true, predicted)
    mask = None if hidden is None else as_mask(hidden, "hidden", measured.shape[:1], measured.shape)
    if mask is not None and mask.ndim == 1:
        rows = np.flatnonzero(mask)
        measured, guess, mask = measured[rows], guess[rows], None
    squared = absolute = 0.0
    n_values = n_missing = 0
    correlations = []
    for start in range(0, measured.shape[1], GENES_AT_ONCE):
        genes = slice(start, start + GENES_AT_ONCE)
        x, y = as_dense(measured[:, genes]), as_dense(guess[:, genes])
        judged = np.ones(x.shape, dtype=bool) if mask is None else mask[:, genes]
        known = (np.isfinite(y) | ~judged).all(0)
        x, y, judged = x[:, known], y[:, known], judged[:, known]
        error = (y - x)[judged]
        squared += float((error**2).sum())
        absolute += float(np.abs(error).sum())
        n_values += error.size
        n_missing += int((~known).sum())
        correlations.append(correlate(x, y, judged))
    if not n_values:
        msg = "Expected reconstructed values in `predicted`, found none that are finite where judged."
        raise ValueError(msg)
    pearson = np.concatenate(correlations)
    defined = pearson[~np.isnan(pearson)]
    return {
        "mse": squared / n_values,
        "mae": absolute / n_values,
        "pearson": float(defined.mean()) if defined.size else float("nan"),
        "n_values": n_values,
        "n_genes": int(defined.size),
        "n_genes_undefined": int(pearson.size - defined.size),
        "n_genes_missing": n_missing,
    }
