"""How well domains agree with labels, and how coherent they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

PAS_NEIGHBOURS = 10
PAS_DIFFERENT = 6


def domain_scores(
    labels_true: ArrayLike, labels_pred: ArrayLike, *, coordinates: ArrayLike | None = None
) -> dict[str, float]:
    """Score domains against labels and, with coordinates, their coherence without labels.

    Parameters
    ----------
    labels_true
        Labels, shape (n_obs,). Missing ones (NaN, None) are left out of the label-based scores.
    labels_pred
        Domains, shape (n_obs,).
    coordinates
        Shape (n_obs, 2), for `chaos` and `pas`.

    Returns
    -------
    dict
        `ari` (adjusted Rand index), `nmi` (normalised mutual information), `accuracy` (share of observations that
        agree under the best one-to-one match of domains and labels), and with `coordinates` `pas` (share of
        observations of which at least 6 of the 10 nearest are of other domains) and `chaos` (mean distance to the
        nearest observation of the same domain, coordinates standardised; both: Shang and Zhou 2022, lower is better).

    Raises
    ------
    ValueError
        Lengths differ, or no label is left.

    Examples
    --------
    >>> stimg.metrics.domain_scores(["a", "a", "b"], ["1", "1", "2"])["ari"]
    1.0
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    true, pred = pd.Series(np.asarray(labels_true, dtype=object)), pd.Series(np.asarray(labels_pred, dtype=object))
    if len(true) != len(pred):
        msg = f"Expected as many `labels_pred` as `labels_true`, found {len(pred)} and {len(true)}."
        raise ValueError(msg)
    if pred.isna().any():
        msg = f"Expected a domain for every observation in `labels_pred`, found {int(pred.isna().sum())} missing."
        raise ValueError(msg)
    known = true.notna()
    if not known.any():
        msg = "Expected at least one label in `labels_true`, found none."
        raise ValueError(msg)
    a, b = pd.factorize(true[known])[0], pd.factorize(pred[known])[0]
    table = np.zeros((a.max() + 1, b.max() + 1), dtype=np.int64)
    np.add.at(table, (a, b), 1)
    matched = table[linear_sum_assignment(-table)].sum()
    scores = {
        "ari": float(adjusted_rand_score(a, b)),
        "nmi": float(normalized_mutual_info_score(a, b)),
        "accuracy": float(matched / len(a)),
    }
    if coordinates is not None:
        places = np.asarray(coordinates, dtype=np.float64)
        if places.shape != (len(pred), 2):
            msg = f"Expected `coordinates` of shape ({len(pred)}, 2), found {places.shape}."
            raise ValueError(msg)
        codes = pd.factorize(pred)[0]
        scores |= {"chaos": _chaos(codes, places), "pas": _pas(codes, places)}
    return scores


def _pas(codes: np.ndarray, places: np.ndarray) -> float:
    from scipy.spatial import cKDTree

    count = min(PAS_NEIGHBOURS, len(places) - 1)
    near = cKDTree(places).query(places, k=count + 1)[1][:, 1:]
    return float(((codes[near] != codes[:, None]).sum(1) >= PAS_DIFFERENT).mean())


def _chaos(codes: np.ndarray, places: np.ndarray) -> float:
    from scipy.spatial import cKDTree

    spread = places.std(0)
    scaled = (places - places.mean(0)) / np.where(spread > 0, spread, 1)
    total = 0.0
    for code in np.unique(codes):
        members = scaled[codes == code]
        if len(members) > 1:
            total += cKDTree(members).query(members, k=2)[0][:, 1].sum()
    return float(total / len(codes))
