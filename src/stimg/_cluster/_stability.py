"""The number of domains, by how well they are found again in parts of the data."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._cluster._methods import QUICK, cluster
from stimg._input._checks import warn

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("stimg")

RUNS = {"mixture": 12, "kmeans": 12, "leiden": 10}  # a run of Leiden searches for a resolution
SHARE = 0.8
MOST_COMPARED = 2500
WEAK = 0.5
EQUAL = 0.03


def choose_number(
    values: np.ndarray,
    candidates: Sequence[int],
    *,
    method: str,
    seed: int,
    libraries: np.ndarray,
    coordinates: np.ndarray | None = None,
    **options: Any,
) -> tuple[int, dict[str, Any]]:
    """Return the number of domains whose labels are found again best, the smallest of equals, and all scores.

    Each run draws `SHARE` of the observations of every section (of at most `MOST_COMPARED` in all) and clusters them
    from a few random starts. Its labels are compared with those of all other runs with the same number of domains
    (Ben-Hur et al. 2002, Pac Symp Biocomput 7:6; Lange et al. 2004, Neural Comput 16:1299) and with one more (as in
    CellCharter; Varrone et al. 2024, Nat Genet 56:74), by the adjusted Rand index over the observations that both drew.
    Its score is the mean of both. Too few clusters join true ones in an arbitrary way and too many split them (von
    Luxburg 2010, Found Trends Mach Learn 2:235). But two groups of domains are also found again, as two; one more
    cluster then divides them anew. With the right number, it only splits one of them. From a single start, many true
    domains are rarely all found, and the peak moves to a larger number.

    Numbers are equal if their mean scores differ by no more than `EQUAL`. Splitting one of few domains changes more
    labels than splitting one of many, so that larger numbers are slightly favoured otherwise.

    A number that cannot be reached in every run is left out with a warning, and it is a `RuntimeError` if none can. If
    one more cannot be reached, only runs of the same number count.
    """
    n_runs, rng = RUNS[method], np.random.default_rng(seed)
    seen = _draw(np.arange(len(values)), libraries, min(1.0, MOST_COMPARED / len(values)), rng)
    drawn = [_draw(seen, libraries, SHARE, rng) for _ in range(n_runs)]
    by_row = {} if coordinates is None else {"coordinates": coordinates, "libraries": libraries}
    options |= {"method": method, **QUICK[method]}
    asked = sorted({int(number) for number in candidates})
    found: dict[int, np.ndarray] = {}
    failed: dict[int, str] = {}
    for number in sorted({*asked, *(number + 1 for number in asked)}):
        seeds = rng.integers(2**31, size=n_runs)
        labels = np.full((n_runs, len(values)), -1, dtype=np.int32)
        try:
            for run, rows in enumerate(drawn):
                if len(rows) < number:
                    msg = f"A run has only {len(rows)} observations for {number} domains."
                    raise RuntimeError(msg)
                own = {name: part[rows] for name, part in by_row.items()}
                labels[run, rows] = cluster(values[rows], number, seed=int(seeds[run]), **(options | own))[0]
        except RuntimeError as error:
            failed[number] = str(error)
            continue
        found[number] = labels[:, seen]
    numbers = [number for number in asked if number in found]
    if not numbers:
        msg = f"None of `candidates` {asked} could be reached in {n_runs} runs. {failed[asked[0]]}"
        raise RuntimeError(msg)
    if left_out := [number for number in asked if number in failed]:
        warn(f"`candidates` {left_out} could not be reached in {n_runs} runs and were left out of the choice.")
    same = np.stack([_agreement(found[number], found[number]) for number in numbers])
    following = np.stack([_agreement(found[number], found.get(number + 1, found[number])) for number in numbers])
    return _best(np.array(numbers), same, following)


def _best(numbers: np.ndarray, same: np.ndarray, following: np.ndarray) -> tuple[int, dict[str, Any]]:
    """Return the smallest of the numbers with the best mean score over runs, and the record; say it, and the runner-up.

    The runner-up is the best of the other numbers, which may have a slightly higher score than a smaller equal. The
    error is twice the standard deviation over runs, divided by the root of their number, since each agreement is shared
    by two runs (Hoeffding 1948, Ann Math Stat 19:293).
    """
    runs = (same + following) / 2
    n_runs, mean = runs.shape[1], runs.mean(1)
    equal = mean >= mean.max() - EQUAL
    first = int(equal.argmax())
    others = [i for i in np.argsort(-mean, kind="stable") if i != first]
    said = f"{numbers[first]} domains are found again best (score {mean[first]:.2f})"
    if others:
        said += f"; the runner-up is {numbers[others[0]]} ({mean[others[0]]:.2f})"
    if equal.sum() > 1:
        said += f"; of {', '.join(map(str, numbers[equal]))}, which are about equal, the smallest is taken"
    if mean.max() < WEAK:
        warn(
            f"No number of domains stands out: {said}. A score of 1 is perfect agreement between parts of the data. "
            "Take the number with caution, or set `n_domains`."
        )
    logger.info("%s.", said)
    return int(numbers[first]), {
        "candidates": numbers,
        "chosen": int(numbers[first]),
        "runner_up": int(numbers[others[0]]) if others else 0,
        "equal": equal,
        "mean": mean,
        "error": 2 * runs.std(1, ddof=1) / np.sqrt(n_runs),
        "runs": runs,
        "same": same,
        "next": following,
    }


def _draw(rows: np.ndarray, libraries: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a share of the rows of every section, at least one of each, in their order."""
    sections = [rows[libraries[rows] == library] for library in np.unique(libraries[rows])]
    drawn = [rng.choice(part, max(1, round(share * len(part))), replace=False) for part in sections]
    return np.sort(np.concatenate(drawn))


def _agreement(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return how well each run agrees with the others: the mean adjusted Rand index, over shared observations.

    The runs' labels, int (n_runs, n_obs) and -1 where not drawn, are of one number of domains and of the same or
    another; each run of both is compared with all other runs of the other number. All pairs of runs at once (Hubert and
    Arabie 1985, J Classif 2:193, equation 5).
    """
    first, second = _members(one), _members(other)
    n_runs, n_first, n_second = len(one), len(first) // len(one), len(second) // len(other)
    shared = (first @ second.T).astype(np.float64).reshape(n_runs, n_first, n_runs, n_second)
    together = _pairs(shared).sum((1, 3))
    left, right = _pairs(shared.sum(3)).sum(1), _pairs(shared.sum(1)).sum(2)
    by_chance = left * right / np.maximum(_pairs(shared.sum((1, 3))), 1)
    most = (left + right) / 2
    score = np.divide(together - by_chance, most - by_chance, out=np.ones_like(most), where=most > by_chance)
    np.fill_diagonal(score, 0)
    return (score.sum(0) + score.sum(1)) / (2 * (n_runs - 1))


def _members(labels: np.ndarray) -> np.ndarray:
    """Return which observations are in each domain of each run, float32 (n_runs * n_domains, n_obs)."""
    domains = np.arange(labels.max() + 1)
    return (labels[:, None] == domains[:, None]).reshape(-1, labels.shape[1]).astype(np.float32)


def _pairs(counts: np.ndarray) -> np.ndarray:
    return counts * (counts - 1) / 2
