"""How well domains agree with labels, and how coherent they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stimg._input._checks import checked
from stimg._slide._geometry import nearest_others
from stimg.metrics._checks import as_labels, as_points, check_same_length

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

PAS_NEIGHBOURS = 10


@checked
def domain_scores(
    labels_true: ArrayLike | None, labels_pred: ArrayLike, *, coordinates: ArrayLike | None = None
) -> dict[str, float]:
    """Score domains against labels and, with coordinates, their coherence without labels.

    Parameters
    ----------
    labels_true
        Labels, shape (n_obs,). Missing ones (NaN, None) are left out. `None`: only the label-free scores.
    labels_pred
        Domains, shape (n_obs,), none missing. Their names need not be those of the labels.
    coordinates
        Positions in any unit, shape (n_obs, 2), for `chaos` and `pas`.

    Returns
    -------
    dict
        With labels: `ari` (adjusted Rand index), `nmi` (normalised mutual information, arithmetic mean), `accuracy`
        (best one-to-one match of domains and labels; observations of unmatched domains count as wrong) and
        `n_labelled`. With coordinates: `chaos` and `pas`, over all observations; lower is better in both.

    Raises
    ------
    ValueError
        Lengths differ, domains are missing, no label is left, or coordinates are not finite.

    Notes
    -----
    CHAOS is the sum over domains of the distance of each observation to the nearest other one of its domain, divided
    by the number of observations, with each axis scaled to unit variance; observations alone in their domain add
    nothing. PAS is the share of observations whose domain differs from that of at least six of their ten nearest
    neighbours (more than half of them, on slides of fewer). Both as in SpatialPCA (Shang and Zhou 2022, Nature
    Communications 13, 7203).

    Examples
    --------
    >>> stimg.metrics.domain_scores(["a", "a", "b"], ["1", "1", "2"])["ari"]
    1.0
    """
    predicted = as_labels(labels_pred, "labels_pred")
    if missing := sum(label is None for label in predicted):
        msg = f"Expected a domain for every observation in `labels_pred`, found {missing} missing. Leave these out."
        raise ValueError(msg)
    if labels_true is None and coordinates is None:
        msg = "Expected `labels_true` or `coordinates`, found neither. Give at least one."
        raise ValueError(msg)
    truth = None if labels_true is None else as_labels(labels_true, "labels_true")
    points = None if coordinates is None else as_points(coordinates, "coordinates", len(predicted), 2)
    scores: dict[str, float] = {}
    if truth is not None:
        check_same_length(truth, predicted, "`labels_true` and `labels_pred`")
        scores |= _agreement(truth, predicted)
    if points is not None:
        codes = np.unique(predicted.astype(str), return_inverse=True)[1]
        scores |= {"chaos": _chaos(codes, points), "pas": _pas(codes, points)}
    return scores


def _agreement(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Scores over the labelled observations."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    labelled = np.array([label is not None for label in truth])
    if not labelled.any():
        msg = "Expected labelled observations in `labels_true`, found only missing labels."
        raise ValueError(msg)
    truth, predicted = truth[labelled].astype(str), predicted[labelled].astype(str)
    table = contingency_matrix(truth, predicted)
    return {
        "ari": float(adjusted_rand_score(truth, predicted)),
        "nmi": float(normalized_mutual_info_score(truth, predicted)),
        "accuracy": float(table[linear_sum_assignment(table, maximize=True)].sum() / len(truth)),
        "n_labelled": int(labelled.sum()),
    }


def _chaos(codes: np.ndarray, points: np.ndarray) -> float:
    """Mean distance to the nearest observation of the same domain, in scaled coordinates."""
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
    """Share of observations that most of their neighbours disagree with."""
    near = nearest_others(points, PAS_NEIGHBOURS)
    return float(((codes[near] != codes[:, None]).sum(1) > near.shape[1] / 2).mean())
