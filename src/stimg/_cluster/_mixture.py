"""Gaussian mixtures, started from k-means and from model-based hierarchical clustering."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

STARTS = 20
SCALE_POWERS = (0.0, 0.5, 1.0)
EM_STEPS = 300
MOST_FITTED = 20_000
MOST_FINISHED = 200_000
MOST_MERGED = 2000
GROUPS = 150
PRIOR_WEIGHT = 0.5


def fit_mixture(
    values: np.ndarray, n_domains: int, *, seed: int, covariance: str = "tied", starts: int = STARTS
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a mixture from several starts and keep the most likely one; return labels and their posterior probability.

    Twenty starts come from k-means. Three are hierarchical, with each dimension divided by its standard deviation, by
    the root of that, or not at all; fewer starts than twenty come from k-means alone. They use at most 20,000 rows; if
    there are more, the best fit is continued on all rows, or on 200,000 of them.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    floor = 1e-6 * max(float(values.var(0).mean()), 1e-12)
    options: dict[str, Any] = {"covariance_type": covariance, "reg_covar": floor, "max_iter": EM_STEPS}
    options["random_state"] = seed % 2**32
    seen = values[even_rows(values, MOST_FITTED)]
    mixtures = [GaussianMixture(n_domains, n_init=starts, **options)]
    deviation = np.maximum(seen.std(0), 1e-12 * max(float(seen.std()), 1e-300))
    for power in SCALE_POWERS if n_domains > 1 and starts >= STARTS else ():
        rows, labels = hierarchical_start(seen / deviation**power, n_domains)
        found = seen[rows]
        means = np.stack([found[labels == k].mean(0) for k in range(n_domains)])
        offset = found - means[labels]
        precision = np.linalg.inv(offset.T @ offset / len(found) + floor * np.eye(seen.shape[1]))
        precision = (precision + precision.T) / 2  # rounding errors make it slightly asymmetric
        start = {
            "weights_init": np.bincount(labels) / len(labels),
            "means_init": means,
            "precisions_init": precision if covariance == "tied" else np.tile(precision, (n_domains, 1, 1)),
        }
        mixtures.append(GaussianMixture(n_domains, **start, **options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture = max((one.fit(seen) for one in mixtures), key=lambda one: one.lower_bound_)
        if len(seen) < len(values):
            start = {f"{name}_init": getattr(mixture, f"{name}_") for name in ("weights", "means", "precisions")}
            mixture = GaussianMixture(n_domains, **start, **options).fit(values[even_rows(values, MOST_FINISHED)])
    return mixture.predict(values), mixture.predict_proba(values).max(1)


def even_rows(values: np.ndarray, most: int) -> np.ndarray:
    """Return the rows in the order of the first dimension, or `most` of them evenly spaced if there are more."""
    rows = np.lexsort(values.T[::-1])
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def hierarchical_start(values: np.ndarray, n_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Cluster `values` (n, d) by merging groups where that costs the least classification likelihood.

    Each group is a Gaussian with its own covariance, as in the starts of mclust (Fraley 1998, SIAM J Sci Comput 20:270;
    Scrucca and Raftery 2015, Adv Data Anal Classif 9:447). Ward's method makes small groups first, so that few
    covariances have to be computed. A group of
    :math:`n` observations with scatter :math:`W` in :math:`d` dimensions costs
    :math:`n \log \det \frac{W + \nu \sigma^2 I}{n + 2 \nu}` with :math:`\nu = (d + 2) / 2`; :math:`\sigma^2`, the mean
    variance of all observations, limits the covariance of small groups.

    Return at most 2,000 rows int64 (m,), evenly along the first dimension, and their `n_clusters` clusters int64 (m,).
    """
    from sklearn.cluster import AgglomerativeClustering

    d = values.shape[1]
    rows = even_rows(values, MOST_MERGED)
    values = values[rows]
    n_groups = max(n_clusters, min(GROUPS, len(rows) // 2))
    of_row = AgglomerativeClustering(n_groups).fit_predict(values)
    member = np.eye(n_groups)[of_row]
    count = member.sum(0)
    mean = (member.T @ values) / count[:, None]
    offset = values - mean[of_row]
    scatter = np.stack([offset[of_row == k].T @ offset[of_row == k] for k in range(n_groups)])
    prior = (d + 2) * PRIOR_WEIGHT * max(float(values.var(0).mean()), 1e-12) * np.eye(d)

    def price(n: np.ndarray, within: np.ndarray) -> np.ndarray:
        return n * np.linalg.slogdet((within + prior) / (n + d + 2)[:, None, None])[1]

    def merged(one: int, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total = count[one] + count[others]
        apart = mean[others] - mean[one]
        between = (count[one] * count[others] / total)[:, None, None] * apart[:, :, None] * apart[:, None, :]
        return total, scatter[one] + scatter[others] + between

    own = price(count, scatter)
    cost = np.full((n_groups, n_groups), np.inf)
    left = np.arange(n_groups)

    def compare(one: int) -> None:
        others = left[left != one]
        cost[one, others] = cost[others, one] = price(*merged(one, others)) - own[one] - own[others]

    for group in range(n_groups - 1):
        compare(group)
    while len(left) > n_clusters:
        one, other = divmod(int(cost.argmin()), n_groups)
        total, within = merged(one, np.array([other]))
        mean[one] = (count[one] * mean[one] + count[other] * mean[other]) / total
        count[one], scatter[one] = total[0], within[0]
        own[one] = price(total, within)[0]
        of_row[of_row == other] = one
        left = left[left != other]
        cost[other], cost[:, other] = np.inf, np.inf
        if len(left) > 1:
            compare(one)
    return rows, np.searchsorted(left, of_row)
