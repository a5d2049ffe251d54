"""How domains are found; arrays in, arrays out."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._cluster._mixture import MOST_FINISHED, STARTS, even_rows, fit_mixture
from stimg._input._checks import warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    import igraph

METHODS = ("mixture", "kmeans", "leiden")
SEEDS = 5
EMBEDDING_NEIGHBOURS = 15
SPATIAL_NEIGHBOURS = 6
RESOLUTION_STEPS = 30
RESOLUTION_RANGE = (1e-3, 4.0)
LARGEST_RESOLUTION = 1e5
RETRIES = 10


def cluster(
    values: np.ndarray, n_domains: int, *, method: str, seed: int, covariance: str = "tied", **spatial: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int64 (n,) of exactly `n_domains` clusters and confidence float64 (n,)."""
    if method == "leiden":
        return _leiden(values, n_domains, seed=seed, **spatial)
    if len(values) == 1:
        return np.zeros(1, dtype=np.int64), np.ones(1)
    for attempt in range(3):
        fit = fit_mixture if method == "mixture" else _kmeans
        labels, confidence = fit(values, n_domains, seed + attempt, covariance)
        if len(np.unique(labels)) == n_domains:
            return labels, confidence
    msg = (
        f"`method={method!r}` left domains empty: {len(np.unique(labels))} of `n_domains`={n_domains} after 3 seeds. "
        "Ask for fewer domains, or take another method."
    )
    raise RuntimeError(msg)


def _kmeans(values: np.ndarray, n_domains: int, seed: int, covariance: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        seen = values if len(values) <= MOST_FINISHED else values[even_rows(values, MOST_FINISHED)]
        fitted = KMeans(n_domains, n_init=STARTS, random_state=seed % 2**32).fit(seen)
    labels = fitted.predict(values).astype(np.int64)
    if n_domains == 1:
        return labels, np.ones(len(values))
    nearest = np.sort(fitted.transform(values), axis=1)[:, :2]
    return labels, 1 - nearest[:, 0] / np.maximum(nearest[:, 1], 1e-12)


def _neighbour_pairs(values: np.ndarray, n_neighbours: int) -> np.ndarray:
    """Return int64 (n, k): the nearest neighbours of each row, itself left out."""
    from sklearn.neighbors import NearestNeighbors

    count = min(n_neighbours, len(values) - 1)
    if count < 1:
        return np.zeros((len(values), 0), dtype=np.int64)
    return NearestNeighbors(n_neighbors=count).fit(values).kneighbors(return_distance=False)


def _graph(n: int, sources: np.ndarray, targets: np.ndarray) -> igraph.Graph:
    import igraph as ig

    pairs = np.unique(np.sort(np.column_stack([sources, targets]), axis=1), axis=0)
    return ig.Graph(n=n, edges=pairs.tolist())


def _leiden(
    values: np.ndarray, n_domains: int, *, seed: int, coordinates: np.ndarray, libraries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Search the resolution of a two-layer Leiden partition until it has `n_domains` parts.

    The upper end grows until it has enough parts, the range is halved on a logarithmic scale, and where the count jumps
    over `n_domains` other seeds are tried around the jump.
    """
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
    if sources:
        layers.append(_graph(n, np.concatenate(sources), np.concatenate(targets)))
    counts: dict[tuple[float, int], int] = {}
    best: list[np.ndarray] = []

    def parts(resolution: float, attempt: int = 0) -> int:
        labels, _ = leidenalg.find_partition_multiplex(
            layers,
            leidenalg.RBConfigurationVertexPartition,
            seed=(seed + attempt) % 2**31,
            resolution_parameter=resolution,
        )
        found = counts[resolution, attempt] = len(set(labels))
        if found == n_domains:
            best.append(np.asarray(labels))
        return found

    low, high = RESOLUTION_RANGE
    while parts(high) < n_domains and high < LARGEST_RESOLUTION:
        low, high = high, 4 * high
    for _ in range(RESOLUTION_STEPS):
        if best or high / low < 1 + 1e-6:
            break
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if parts(middle) < n_domains else (low, middle)
    for attempt, factor in enumerate(np.geomspace(0.9, 1.1, RETRIES), start=1):
        if best:
            break
        parts(float(low * factor), attempt)
    if not best:
        below = {found for found in counts.values() if found < n_domains}
        above = set(counts.values()) - below
        nearest = [*sorted(below)[-1:], *sorted(above)[:1]]
        msg = (
            f"`method='leiden'` did not reach `n_domains`={n_domains} in {len(counts)} partitions, of resolutions from "
            f"{min(counts)[0]:.3g} to {max(counts)[0]:.3g}; nearest numbers reached: {nearest}. "
            "Take another number, `rng` or `method`."
        )
        raise RuntimeError(msg)
    labels = best[0]
    same = labels[near] == labels[:, None]
    return labels, same.mean(1) if near.shape[1] else np.ones(n)


def choose_number(
    values: np.ndarray, candidates: Sequence[int], *, seed: int, **options: Any
) -> tuple[int, dict[str, float]]:
    """Return the number of domains whose labels agree best between seeds (of equal ones the largest), and all scores.

    A candidate that cannot be reached with every seed is left out with a warning.
    """
    from itertools import combinations

    from sklearn.metrics import adjusted_rand_score

    agreement, failed = {}, {}
    for number in sorted(set(candidates)):
        try:
            runs = [cluster(values, number, seed=seed + i, **options)[0] for i in range(SEEDS)]
        except RuntimeError as error:
            failed[number] = str(error)
            continue
        agreement[number] = float(np.mean([adjusted_rand_score(a, b) for a, b in combinations(runs, 2)]))
    if not agreement:
        msg = f"None of `candidates` {sorted(failed)} could be reached with {SEEDS} seeds. {failed[min(failed)]}"
        raise RuntimeError(msg)
    if failed:
        msg = f"`candidates` {sorted(failed)} could not be reached with {SEEDS} seeds and were left out of the choice."
        warn(msg)
    chosen = max(agreement, key=lambda number: (round(agreement[number], 3), number))
    return chosen, {str(number): score for number, score in agreement.items()}


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
