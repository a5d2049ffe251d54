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
    """Search the resolution of a two-layer Leiden partition until it has `n_domains` parts.

    The upper end grows until it has enough parts, the range is halved on a logarithmic scale, and where the count jumps
    over `n_domains` other seeds are tried around the jump.
    """
    import leidenalg

    n = len(values)
    near = nearest_others(values, EMBEDDING_NEIGHBOURS)
    layers = [_graph(n, np.repeat(np.arange(n), near.shape[1]), near.ravel())]
    sources, targets = [], []
    for library in np.unique(libraries):
        rows = np.flatnonzero(libraries == library)
        if len(rows) > 1:
            around = rows[nearest_others(coordinates[rows], SPATIAL_NEIGHBOURS)]
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


def _graph(n: int, sources: np.ndarray, targets: np.ndarray) -> igraph.Graph:
    import igraph as ig

    pairs = np.unique(np.sort(np.column_stack([sources, targets]), axis=1), axis=0)
    return ig.Graph(n=n, edges=pairs.tolist())
