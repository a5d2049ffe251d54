"""Start of a Gaussian mixture by model-based hierarchical clustering."""

from __future__ import annotations

import numpy as np

MOST_MERGED = 2000
GROUPS = 150
PRIOR_WEIGHT = 0.5


def hierarchical_start(values: np.ndarray, n_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Merge groups where that costs the least classification likelihood of Gaussians, each with its own covariance.

    As mclust starts its mixtures (Fraley 1998, SIAM J Sci Comput 20:270; Scrucca and Raftery 2015, Adv Data Anal
    Classif 9:447). Ward's method makes small groups first, so that few covariances are ever computed. A group of
    :math:`n` observations with scatter :math:`W` in :math:`d` dimensions costs
    :math:`n \log \det \frac{W + \nu \sigma^2 I}{n + 2 \nu}`, :math:`\nu = (d + 2) / 2`, with :math:`\sigma^2` the mean
    variance of all, which bounds the covariance of groups of few.

    Parameters
    ----------
    values
        float64 (n, d).
    n_clusters
        Clusters to stop at.

    Returns
    -------
    tuple
        Rows int64 (m,), at most 2,000, evenly along the first dimension, and their clusters int64 (m,).
    """
    from sklearn.cluster import AgglomerativeClustering

    n, d = values.shape
    rows = np.lexsort(values.T[::-1])
    if n > MOST_MERGED:
        rows = rows[np.linspace(0, n - 1, MOST_MERGED).astype(np.int64)]
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
