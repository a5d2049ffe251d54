"""Whether labels tell sections apart that lie over one another; arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 16
MOST_SAMPLED = 20_000
FEWEST = 8  # observations of a section
# Where sections lie side by side, the nearest neighbour of an observation belongs to another section 0.3 to 0.6 times
# as often as any of the nearest sixteen, since these reach further across the border. Where they lie over one another,
# or labels were given cell by cell, it does so as often, or more often. (Tiles and overlays of the public slides.)
ALIKE = 0.8
SIDE_BY_SIDE = 0.6
LEAST_AMONG = 0.1  # of a section's observations are nearest to one of another
LEAST_MIXED = 0.25
AS_NEAR = 1.2
# Cells, beads and spots of one section keep apart; those of a section that lies over it do not keep apart from them.
# So the nearest neighbour belongs to the own section less often than any of the nearest sixteen.
KEPT_APART = 0.95
# Distance to the nearest over that to the eighth: 0.30 for points at random or several sections over one another, up to
# 0.47 for cells and 0.7 for grids.
REGULAR = 0.38
REGULAR_IF_FEW = 0.5
# That ratio, among observations with the same label, over the same among all: 0.83 to 10 for public slides laid over
# themselves, and up to 0.44 for those columns of one slide that collide, such as the rows of its array.
AS_EVEN = 0.65
ENOUGH_TO_TELL = 200
ENOUGH_FOR_MEDIAN = 50


@dataclass(frozen=True)
class Overlap:
    """How observations with different labels lie among each other."""

    share: float  # of the observations whose nearest neighbour has another label
    collide: bool  # those with different labels keep less apart than those with the same
    one_section: bool  # all keep apart, whatever their labels
    several: bool  # they collide, and those with the same label lie about as evenly as all do, or more so


def overlap(points: np.ndarray, labels: np.ndarray, apart: np.ndarray) -> Overlap | None:
    """Return how observations lie among those with other labels; `None` if labels lie side by side.

    `points` are (n, 2), `labels` int (n,). Observations with different numbers in `apart`, int (n,), count as far from
    each other.
    """
    from scipy.spatial import cKDTree

    count = min(NEIGHBOURS, len(points) - 1)
    if count < 2:
        return None
    space = _apart(points, apart)
    asked = np.unique(np.linspace(0, len(points) - 1, MOST_SAMPLED).astype(int))
    distances, near = cKDTree(space).query(space[asked], k=count + 1)
    others = near != asked[:, None]
    others[others.all(1), -1] = False  # if many points coincide, the query may list only others
    near, distances = near[others].reshape(-1, count), distances[others].reshape(-1, count)
    foreign = (labels[near] != labels[asked][:, None]) & (apart[near] == apart[asked][:, None])
    nearest = distances <= AS_NEAR * distances[:, :1]  # several on a grid
    nearest_foreign = (foreign & nearest).sum(1) / nearest.sum(1)
    group = labels[asked]
    size = np.maximum(np.bincount(group), 1)
    first, usual = (np.bincount(group, part) / size for part in (nearest_foreign, foreign.mean(1)))
    among = (size >= FEWEST) & _lie_among(first, usual, size)
    if not among.any():
        if not _lie_among(nearest_foreign.mean(), foreign.mean(), np.array(len(asked)), errors=2):
            return None
        among = first >= LEAST_AMONG
    mixed = among[group] & (foreign.mean(1) >= LEAST_MIXED)
    if not mixed.any():
        return None
    own, expected = 1 - nearest_foreign[mixed].mean(), 1 - foreign[mixed].mean()
    error = np.sqrt(2 * expected * (1 - expected) / mixed.sum())  # neighbours are often mutual
    collide = own < min(KEPT_APART * expected, expected - 4 * error)
    # By label too: where few lie on top of many, most of the many keep apart.
    parts = [mixed & (group == one) for one in np.flatnonzero(among)]
    parts = [mixed, *(part for part in parts if part.sum() >= ENOUGH_FOR_MEDIAN)]
    eighth = distances[:, min(7, count - 1)]
    ratio = min(np.median(distances[part, 0]) / max(np.median(eighth[part]), 1e-300) for part in parts)
    one_section = ratio > (REGULAR if mixed.sum() >= ENOUGH_TO_TELL else REGULAR_IF_FEW)
    together = np.median(distances[mixed, 0]) / max(np.median(eighth[mixed]), 1e-300)
    several = collide and _evenness(points, apart * (labels.max() + 1) + labels, asked[mixed]) > AS_EVEN * together
    return Overlap(float(nearest_foreign.mean()), bool(collide), bool(one_section and not collide), bool(several))


def _apart(points: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return points (n, 3) of which those of different groups are far from each other."""
    return np.column_stack([points, groups * 4 * (np.ptp(points, axis=0).max() + 1)])


def _evenness(points: np.ndarray, groups: np.ndarray, asked: np.ndarray) -> float:
    """Return the median distance to the nearest over that to the eighth nearest of the same group."""
    from scipy.spatial import cKDTree

    space = _apart(points, groups)
    nearest, eighth = np.median(cKDTree(space).query(space[asked], k=[2, min(9, len(points))])[0], axis=0)
    return float(nearest / max(eighth, 1e-300))


def _lie_among(first: np.ndarray, usual: np.ndarray, size: np.ndarray, errors: float = 3) -> np.ndarray:
    """Tell whether nearest neighbours have other labels as often as any neighbours do, by so many standard errors."""
    error = np.sqrt(first * (1 - first) / size)
    return (first >= LEAST_AMONG) & (first > ALIKE * usual) & (first - errors * error > SIDE_BY_SIDE * usual)
