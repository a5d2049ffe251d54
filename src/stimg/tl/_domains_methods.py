"""How domains are found; arrays in, arrays out."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import igraph

METHODS = ("mixture", "kmeans", "leiden")
STARTS = 10
SEEDS = 5
EMBEDDING_NEIGHBOURS = 15
SPATIAL_NEIGHBOURS = 6
RESOLUTION_STEPS = 30


def cluster(
    values: np.ndarray, n_domains: int, *, method: str, seed: int, covariance: str = "tied", **spatial: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int64 (n,) of exactly `n_domains` clusters and confidence float64 (n,)."""
    if method == "leiden":
        return _leiden(values, n_domains, seed=seed, **spatial)
    for attempt in range(3):
        fit = _mixture if method == "mixture" else _kmeans
        labels, confidence = fit(values, n_domains, seed + attempt, covariance)
        if len(np.unique(labels)) == n_domains:
            return labels, confidence
    msg = (
        f"`method={method!r}` left domains empty: {len(np.unique(labels))} of `n_domains`={n_domains} after 3 seeds. "
        "Ask for fewer domains, or take another method."
    )
    raise RuntimeError(msg)


def _mixture(values: np.ndarray, n_domains: int, seed: int, covariance: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        n_domains,
        covariance_type=covariance,
        n_init=STARTS,
        reg_covar=1e-6 * max(float(values.var(0).mean()), 1e-12),
        random_state=seed % 2**32,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = mixture.fit_predict(values)
    return labels, mixture.predict_proba(values).max(1)


def _kmeans(values: np.ndarray, n_domains: int, seed: int, covariance: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(n_domains, n_init=STARTS, random_state=seed % 2**32).fit(values)
    if n_domains == 1:
        return fitted.labels_.astype(np.int64), np.ones(len(values))
    nearest = np.sort(fitted.transform(values), axis=1)[:, :2]
    return fitted.labels_.astype(np.int64), 1 - nearest[:, 0] / np.maximum(nearest[:, 1], 1e-12)


def _neighbour_pairs(values: np.ndarray, n_neighbours: int) -> np.ndarray:
    """Return int64 (n, k): the nearest neighbours of each row, itself left out."""
    from sklearn.neighbors import NearestNeighbors

    count = min(n_neighbours, len(values) - 1)
    return NearestNeighbors(n_neighbors=count).fit(values).kneighbors(return_distance=False)


def _graph(n: int, sources: np.ndarray, targets: np.ndarray) -> igraph.Graph:
    import igraph as ig

    pairs = np.unique(np.sort(np.column_stack([sources, targets]), axis=1), axis=0)
    return ig.Graph(n=n, edges=pairs.tolist())


def _leiden(
    values: np.ndarray, n_domains: int, *, seed: int, coordinates: np.ndarray, libraries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bisect the resolution of a two-layer Leiden partition until it has `n_domains` parts."""
    import leidenalg

    n = len(values)
    near = _neighbour_pairs(values, EMBEDDING_NEIGHBOURS)
    layers = [_graph(n, np.repeat(np.arange(n), near.shape[1]), near.ravel())]
    sources, targets = [], []
    for library in np.unique(libraries):
        rows = np.flatnonzero(libraries == library)
        if len(rows) > 1:
            around = rows[_neighbour_pairs(coordinates[rows], SPATIAL_NEIGHBOURS)]
            sources.append(np.repeat(rows, around.shape[1]))
            targets.append(around.ravel())
    layers.append(_graph(n, np.concatenate(sources), np.concatenate(targets)))

    def partition(resolution: float) -> np.ndarray:
        labels, _ = leidenalg.find_partition_multiplex(
            layers,
            leidenalg.RBConfigurationVertexPartition,
            seed=seed % 2**31,
            resolution_parameter=resolution,
        )
        return np.asarray(labels)

    low, high = 1e-3, 4.0
    counts = {}
    for _ in range(RESOLUTION_STEPS):
        middle = float(np.sqrt(low * high))
        labels = partition(middle)
        found = counts[middle] = len(np.unique(labels))
        if found == n_domains:
            return labels, (labels[near] == labels[:, None]).mean(1)
        low, high = (middle, high) if found < n_domains else (low, middle)
    tried = sorted(set(counts.values()))
    msg = f"Leiden reached {tried} domains but not `n_domains`={n_domains}. Take another number, seed or method."
    raise RuntimeError(msg)


def choose_number(values: np.ndarray, candidates: Sequence[int], *, seed: int, **options: Any) -> int:
    """Return the number of domains whose labels agree best between seeds; of equal ones the largest."""
    from itertools import combinations

    from sklearn.metrics import adjusted_rand_score

    agreement = {}
    for number in sorted(candidates):
        runs = [cluster(values, number, seed=seed + i, **options)[0] for i in range(SEEDS)]
        agreement[number] = np.mean([adjusted_rand_score(a, b) for a, b in combinations(runs, 2)])
    return max(agreement, key=lambda number: (round(agreement[number], 3), number))


def refine_labels(labels: np.ndarray, coordinates: np.ndarray, libraries: np.ndarray, count: int) -> np.ndarray:
    """Return the commonest label among each observation's `count` nearest of its own library and itself."""
    refined = labels.copy()
    for library in np.unique(libraries):
        rows = np.flatnonzero(libraries == library)
        if len(rows) < 2:
            continue
        votes = np.zeros((len(rows), labels.max() + 1))
        around = np.column_stack([np.arange(len(rows)), _neighbour_pairs(coordinates[rows], count)])
        np.add.at(votes, (np.repeat(np.arange(len(rows)), around.shape[1]), labels[rows][around].ravel()), 1)
        votes[np.arange(len(rows)), labels[rows]] += 0.5
        refined[rows] = votes.argmax(1)
    return refined
