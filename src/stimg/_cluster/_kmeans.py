"""K-means."""

from __future__ import annotations

import warnings

import numpy as np

from stimg._cluster._mixture import MOST_FINISHED, STARTS, even_rows


def fit_kmeans(values: np.ndarray, n_domains: int, *, seed: int, starts: int = STARTS) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's nearest centre, and one minus its distance divided by that of the second nearest."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        seen = values if len(values) <= MOST_FINISHED else values[even_rows(values, MOST_FINISHED)]
        fitted = KMeans(n_domains, n_init=starts, random_state=seed % 2**32).fit(seen)
    labels = fitted.predict(values).astype(np.int64)
    if n_domains == 1:
        return labels, np.ones(len(values))
    nearest = np.sort(fitted.transform(values), axis=1)[:, :2]
    return labels, 1 - nearest[:, 0] / np.maximum(nearest[:, 1], 1e-12)
