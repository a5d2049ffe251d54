"""Domains at one or several levels, each finer domain inside one coarser domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._cluster._colours import DARKEST, LIGHTEST, shade
from stimg._cluster._methods import cluster, refine_labels
from stimg._cluster._numbering import numbered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stimg._cluster._colours import Categories

BY_ROW = ("coordinates", "libraries")
FEWEST_SPLIT = 4


@dataclass(frozen=True)
class Branch:
    """A domain in the tree."""

    name: str
    colour: str
    base: str  # the colour of the coarsest domain that it lies in
    darkest: float  # between this and the next lightness are the colours of the finer domains in it
    lightest: float


@dataclass(frozen=True)
class Level:
    """The domains of one level."""

    codes: np.ndarray  # the domain of every observation, int64 (n_obs,)
    confidence: np.ndarray  # float64 (n_obs,)
    domains: list[Branch]
    matched: list[str]  # the category that each domain is like, where that was asked for


def find_levels(
    values: np.ndarray,
    levels: Sequence[int],
    *,
    seed: int,
    reference: Categories | None = None,
    smooth: tuple[np.ndarray, np.ndarray, int] | None = None,
    **options: Any,
) -> list[Level]:
    """Cluster `values` (n_obs, d) into the first number of domains, and split these up to each further number.

    Each step splits, by the same method, the domain whose split gains most likelihood (`_gain`). `smooth` holds the
    coordinates, the sections and the number of neighbours with which labels are refined: those of a split within the
    domain, so that finer domains stay inside coarser ones. The confidence in a part of a domain is the confidence in
    the domain times that in the split. Options with one row per observation are passed with the rows clustered.

    A `RuntimeError` says that a number cannot be reached.
    """
    labels, confidence = _clustered(values, np.arange(len(values)), levels[0], seed, smooth, options)
    codes, colours, matched = numbered(labels, levels[0], reference)
    branches = [Branch(str(i + 1), colour, colour, DARKEST, LIGHTEST) for i, colour in enumerate(colours)]
    found = [Level(codes, confidence, branches, matched)]
    if len(levels) == 1:
        return found
    leaves, confidence = codes.copy(), confidence.copy()
    splits: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray] | None] = {}
    for number in range(levels[0] + 1, levels[-1] + 1):
        for leaf in range(number - 1):
            if leaf not in splits:
                splits[leaf] = _split(values, np.flatnonzero(leaves == leaf), seed, smooth, options)
        made = {leaf: split for leaf, split in splits.items() if split is not None}
        if not made:
            msg = f"None of {number - 1} domains can be split further. Ask for at most {number - 1} in `levels`."
            raise RuntimeError(msg)
        gains = _gains(values, leaves, list(made.values()))
        best = list(made)[int(gains.argmax())]
        rows, part, sure = made[best]
        del splits[best]
        leaves[rows[part == 1]] = number - 1
        confidence[rows] *= sure
        if number in levels:
            found.append(_named(leaves, confidence.copy(), found[-1]))
    return found


def _clustered(
    values: np.ndarray,
    rows: np.ndarray,
    number: int,
    seed: int,
    smooth: tuple[np.ndarray, np.ndarray, int] | None,
    options: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Return refined labels of some rows, and the confidence before refinement."""
    own = {name: value[rows] if name in BY_ROW else value for name, value in options.items()}
    labels, confidence = cluster(values[rows], number, seed=seed, **own)
    if smooth is not None:
        coordinates, libraries, count = smooth
        labels = refine_labels(labels, coordinates[rows], libraries[rows], count)
    return labels, confidence


def _split(
    values: np.ndarray,
    rows: np.ndarray,
    seed: int,
    smooth: tuple[np.ndarray, np.ndarray, int] | None,
    options: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return a domain's rows, the part of each, 0 or 1, and the confidence; `None` if it cannot be split."""
    if len(rows) < FEWEST_SPLIT:
        return None
    try:
        part, sure = _clustered(values, rows, 2, seed, smooth, options)
    except RuntimeError:  # fewer than two different rows, or Leiden cannot make two parts
        return None
    return (rows, part, sure) if len(np.unique(part)) == 2 else None


def _gains(
    values: np.ndarray, leaves: np.ndarray, splits: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> np.ndarray:
    r"""Return how much classification likelihood each split gains, float64 (n_splits,).

    With one covariance for all domains, :math:`n` observations with the scatter :math:`W` within domains have the
    log-likelihood :math:`-\frac{n}{2} \log \det W`, up to a constant (Scott and Symons 1971, Biometrics 27:387). A
    domain's split into parts of :math:`n_1` and :math:`n_2`, whose means differ by :math:`m`, takes
    :math:`\frac{n_1 n_2}{n_1 + n_2} m m^T` from :math:`W`, and assigning its members costs
    :math:`\sum_i n_i \log \frac{n_i}{n_1 + n_2}`.
    """
    member = np.bincount(leaves)
    means = np.stack([np.bincount(leaves, column) for column in values.T], axis=1) / member[:, None]
    offset = values - means[leaves]
    floor = 1e-6 * max(float(values.var(0).mean()), 1e-12) * len(values)
    inverse = np.linalg.inv(offset.T @ offset + floor * np.eye(values.shape[1]))
    gains = np.zeros(len(splits))
    for number, (rows, part, _) in enumerate(splits):
        n = np.bincount(part, minlength=2)
        apart = values[rows[part == 0]].mean(0) - values[rows[part == 1]].mean(0)
        share = n.prod() / n.sum() * float(apart @ inverse @ apart)  # det(W - u u') = det(W) (1 - u' inv(W) u)
        gains[number] = -len(values) / 2 * np.log(max(1 - share, 1e-300)) + float(n @ np.log(n / n.sum()))
    return gains


def _named(leaves: np.ndarray, confidence: np.ndarray, coarser: Level) -> Level:
    """Return a level below `coarser`: parts of a domain are named after it, from the largest; others keep their name.

    Parts share the domain's hue and divide its range of lightness.
    """
    ids, first, sizes = np.unique(leaves, return_index=True, return_counts=True)
    above = coarser.codes[first]
    order, branches = [], []
    for number, parent in enumerate(coarser.domains):
        inside = np.flatnonzero(above == number)
        inside = inside[np.lexsort((first[inside], -sizes[inside]))]
        order += inside.tolist()
        if len(inside) == 1:
            branches.append(parent)
            continue
        edges = np.linspace(parent.lightest, parent.darkest, len(inside) + 1)
        for i, (high, low) in enumerate(zip(edges[:-1], edges[1:], strict=True), start=1):
            colour = shade(parent.base, (low + high) / 2)
            branches.append(Branch(f"{parent.name}.{i}", colour, parent.base, low, high))
    codes = np.argsort(order)[np.searchsorted(ids, leaves)]
    return Level(codes, confidence, branches, [])
