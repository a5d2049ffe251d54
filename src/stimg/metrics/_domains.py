"""How well domains agree with labels, and how coherent they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stimg._input._checks import checked
from stimg._slide._geometry import nearest_others
from stimg.metrics._checks import as_labels, as_points, labelled_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

PAS_NEIGHBOURS = 10


@checked
def domain_scores(
    labels_true: ArrayLike | None, labels_pred: ArrayLike, *, coordinates: ArrayLike | None = None
) -> dict[str, float]:
    """Score how well domains agree with labels and, given coordinates, how coherent they are.

    Parameters
    ----------
    labels_true
        Labels, shape (n_obs,). Missing ones (NaN, None) are left out. With `None`, only `chaos` and `pas` are computed.
    labels_pred
        Domains, shape (n_obs,), none missing. Their names need not match those of the labels.
    coordinates
        Positions in any unit, shape (n_obs, 2), for `chaos` and `pas`.

    Returns
    -------
    dict
        With labels: `ari` (adjusted Rand index), `nmi` (normalised mutual information, arithmetic mean), `accuracy`
        (after the best one-to-one match of domains and labels; observations in unmatched domains count as wrong) and
        `n_labelled`. With coordinates: `chaos` and `pas`, over all observations; lower is better for both.

    Raises
    ------
    ValueError
        Lengths differ, domains are missing, all labels are missing, or coordinates are not finite.

    Notes
    -----
    CHAOS is the mean distance of each observation to the nearest other one in its domain, with each axis scaled to unit
    variance; observations that are alone in their domain count as 0. PAS is the share of observations whose domain
    differs from that of at least six of their ten nearest neighbours (of more than half, where there are fewer
    neighbours). Both are defined as in SpatialPCA (Shang and Zhou 2022, Nature Communications 13, 7203).

    Examples
    --------
    >>> stimg.metrics.domain_scores(["a", "a", "b"], ["1", "1", "2"])["ari"]
    1.0
    """
    predicted = as_labels(labels_pred, "labels_pred", complete=True)
    if labels_true is None and coordinates is None:
        msg = "Expected `labels_true` or `coordinates`, found neither. Give at least one."
        raise ValueError(msg)
    points = None if coordinates is None else as_points(coordinates, "coordinates", len(predicted), 2)
    scores: dict[str, float] = {}
    if labels_true is not None:
        scores |= _agreement(as_labels(labels_true, "labels_true", len(predicted)), predicted)
    if points is not None:
        codes = np.unique(predicted.astype(str), return_inverse=True)[1]
        scores |= {"chaos": _chaos(codes, points), "pas": _pas(codes, points)}
    return scores


def _agreement(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Score the labelled observations."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    labelled = labelled_rows(truth, "labels_true")
    truth, predicted = truth[labelled].astype(str), predicted[labelled].astype(str)
    table = contingency_matrix(truth, predicted)
    return {
        "ari": float(adjusted_rand_score(truth, predicted)),
        "nmi": float(normalized_mutual_info_score(truth, predicted)),
        "accuracy": float(table[linear_sum_assignment(table, maximize=True)].sum() / len(truth)),
        "n_labelled": len(labelled),
    }


def _chaos(codes: np.ndarray, points: np.ndarray) -> float:
    """Return the mean distance to the nearest observation of the same domain, in scaled coordinates."""
    from scipy.spatial import cKDTree

    spread = points.std(0, ddof=1) if len(points) > 1 else np.ones(2)
    points = (points - points.mean(0)) / np.where(spread > 0, spread, 1)
    total = 0.0
    for code in np.unique(codes):
        own = points[codes == code]
        if len(own) > 1:
            total += cKDTree(own).query(own, k=2)[0][:, 1].sum()
    return float(total / len(points))


def _pas(codes: np.ndarray, points: np.ndarray) -> float:
    """Return the share of observations with whose domain most neighbours disagree."""
    near = nearest_others(points, PAS_NEIGHBOURS)
    return float(((codes[near] != codes[:, None]).sum(1) > near.shape[1] / 2).mean())
