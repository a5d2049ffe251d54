"""Methods that find domains; arrays in, arrays out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._cluster._kmeans import fit_kmeans
from stimg._cluster._leiden import fit_leiden
from stimg._cluster._mixture import fit_mixture
from stimg._slide._geometry import nearest_others

if TYPE_CHECKING:
    from collections.abc import Callable

# Each takes values (n, d), the number of domains, a seed and its own options, and returns labels and confidence (n,).
METHODS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "mixture": fit_mixture,
    "kmeans": fit_kmeans,
    "leiden": fit_leiden,
}
# Options with which many parts of the data are clustered, from a few random starts each.
QUICK: dict[str, dict[str, Any]] = {"mixture": {"starts": 4}, "kmeans": {"starts": 4}, "leiden": {}}
ATTEMPTS = 3


def cluster(
    values: np.ndarray, n_domains: int, *, method: str, seed: int, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of exactly `n_domains` clusters, int64 (n,), and their confidence, float64 (n,)."""
    if len(values) == 1:
        return np.zeros(1, dtype=np.int64), np.ones(1)
    for attempt in range(ATTEMPTS):
        labels, confidence = METHODS[method](values, n_domains, seed=seed + attempt, **options)
        if len(np.unique(labels)) == n_domains:
            return labels, confidence
    msg = (
        f"`method={method!r}` found only {len(np.unique(labels))} of `n_domains`={n_domains} with {ATTEMPTS} seeds. "
        "Ask for fewer domains, or try another method."
    )
    raise RuntimeError(msg)


def refine_labels(labels: np.ndarray, coordinates: np.ndarray, libraries: np.ndarray, count: int) -> np.ndarray:
    """Return the most common label among each observation and its `count` nearest in the same section."""
    refined = labels.copy()
    for library in np.unique(libraries):
        rows = np.flatnonzero(libraries == library)
        if len(rows) < 2:
            continue
        votes = np.zeros((len(rows), labels.max() + 1))
        around = np.column_stack([np.arange(len(rows)), nearest_others(coordinates[rows], count)])
        np.add.at(votes, (np.repeat(np.arange(len(rows)), around.shape[1]), labels[rows][around].ravel()), 1)
        votes[np.arange(len(rows)), labels[rows]] += 0.5
        refined[rows] = votes.argmax(1)
    return refined
