"""Leiden on two layers: neighbours in the embedding and on the tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stimg._slide._geometry import nearest_others

if TYPE_CHECKING:
    import igraph

EMBEDDING_NEIGHBOURS = 15
SPATIAL_NEIGHBOURS = 6
RESOLUTION_STEPS = 30
RESOLUTION_RANGE = (1e-3, 4.0)
LARGEST_RESOLUTION = 1e5
RETRIES = 10


def fit_leiden(
    values: np.ndarray, n_domains: int, *, seed: int, coordinates: np.ndarray, libraries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Search for the resolution at which a two-layer Leiden partition has `n_domains` parts.

    The upper end of the range is raised until there are enough parts; then the range is halved on a logarithmic scale.
    If the number of parts jumps over `n_domains`, other seeds are tried around the jump.
    """
    import leidenalg

    n = len(values)
    near = nearest_others(values, EMBEDDING_NEIGHBOURS)
    layers = [_graph(n, _pairs(np.arange(n), near))]
    sections = [np.flatnonzero(libraries == library) for library in np.unique(libraries)]
    around = [_pairs(rows, rows[nearest_others(coordinates[rows], SPATIAL_NEIGHBOURS)]) for rows in sections]
    if any(map(len, around)):
        layers.append(_graph(n, np.concatenate(around)))
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
            f"`method='leiden'` did not reach `n_domains`={n_domains} in {len(counts)} partitions at resolutions from "
            f"{min(counts)[0]:.3g} to {max(counts)[0]:.3g}; nearest numbers reached: {nearest}. "
            "Try another number, `rng` or `method`."
        )
        raise RuntimeError(msg)
    labels = best[0]
    same = labels[near] == labels[:, None]
    return labels, same.mean(1) if near.shape[1] else np.ones(n)


def _pairs(rows: np.ndarray, near: np.ndarray) -> np.ndarray:
    return np.column_stack([np.repeat(rows, near.shape[1]), near.ravel()])


def _graph(n: int, pairs: np.ndarray) -> igraph.Graph:
    import igraph as ig

    return ig.Graph(n=n, edges=np.unique(np.sort(pairs, axis=1), axis=0).tolist())
