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

RUNS = {"mixture": 25, "kmeans": 25, "leiden": 10}  # a run of Leiden searches for a resolution
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
) -> tuple[int, dict[str, np.ndarray]]:
    """Return the number of domains whose labels are found again best, the smallest of equals, and all scores.

    Each run draws `SHARE` of the observations of every section (of at most `MOST_COMPARED` in all) and
    clusters them from a single random start. A run's score is its mean adjusted Rand index with the other runs, over
    the observations that both drew (Ben-Hur et al. 2002, Pac Symp Biocomput 7:6; Lange et al. 2004, Neural Comput
    16:1299). A single start matters: too few clusters join true ones in an arbitrary way and too many split them, so
    that only the right numbers are found from every start, while the best of many starts would also repeat an arbitrary
    choice (von Luxburg 2010, Found Trends Mach Learn 2:235).

    Numbers are equal if their mean scores differ by no more than a standard error, or than `EQUAL`, which is what one
    run of 25 costs that a single start leads astray. The error is twice the standard deviation over runs of the
    difference, divided by the root of their number, since each score is shared by two runs (Hoeffding 1948, Ann Math
    Stat 19:293).

    A number that cannot be reached in every run is left out with a warning, and it is a `RuntimeError` if none can.
    """
    n_runs, rng = RUNS[method], np.random.default_rng(seed)
    seen = _draw(np.arange(len(values)), libraries, min(1.0, MOST_COMPARED / len(values)), rng)
    drawn = [_draw(seen, libraries, SHARE, rng) for _ in range(n_runs)]
    by_row = {} if coordinates is None else {"coordinates": coordinates, "libraries": libraries}
    options |= {"method": method, **QUICK[method]}
    scores, failed = {}, {}
    for number in sorted({int(number) for number in candidates}):
        seeds = rng.integers(2**31, size=n_runs)
        labels = np.full((n_runs, len(values)), -1)
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
        scores[number] = _agreement(labels[:, seen], number)
    if not scores:
        msg = f"None of `candidates` {sorted(failed)} could be reached in {n_runs} runs. {failed[min(failed)]}"
        raise RuntimeError(msg)
    if failed:
        warn(f"`candidates` {sorted(failed)} could not be reached in {n_runs} runs and were left out of the choice.")
    numbers, runs = np.array(list(scores)), np.stack(list(scores.values()))
    mean = runs.mean(1)
    behind = runs[mean.argmax()] - runs
    equal = behind.mean(1) <= np.maximum(2 * behind.std(1, ddof=1) / np.sqrt(n_runs), EQUAL)
    chosen = int(numbers[equal.argmax()])
    if mean.max() < WEAK:
        warn(
            f"No number of domains stands out: labels of two parts of the data agree at most by {mean.max():.2f} "
            f"(adjusted Rand index; 1 is perfect), and {chosen} was chosen. Take it with caution, or set `n_domains`."
        )
    equals = [f"{number} ({score:.2f})" for number, score in zip(numbers[equal], mean[equal], strict=True)]
    logger.info("Numbers of domains that are found again equally well: %s. The smallest is taken.", ", ".join(equals))
    return chosen, {
        "candidates": numbers,
        "equal": equal,
        "mean": mean,
        "error": 2 * runs.std(1, ddof=1) / np.sqrt(n_runs),
        "runs": runs,
    }


def _draw(rows: np.ndarray, libraries: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a share of the rows of every section, at least one of each, in their order."""
    sections = [rows[libraries[rows] == library] for library in np.unique(libraries[rows])]
    drawn = [rng.choice(part, max(1, round(share * len(part))), replace=False) for part in sections]
    return np.sort(np.concatenate(drawn))


def _agreement(labels: np.ndarray, number: int) -> np.ndarray:
    """Return the mean adjusted Rand index of each run with the others, over shared observations (label not -1).

    All pairs of runs at once (Hubert and Arabie 1985, J Classif 2:193, equation 5).
    """
    n_runs, n_obs = labels.shape
    member = (labels[:, None] == np.arange(number)[:, None]).reshape(-1, n_obs).astype(np.float32)
    shared = (member @ member.T).astype(np.float64).reshape(n_runs, number, n_runs, number)
    together = _pairs(shared).sum((1, 3))
    one, other = _pairs(shared.sum(3)).sum(1), _pairs(shared.sum(1)).sum(2)
    by_chance = one * other / np.maximum(_pairs(shared.sum((1, 3))), 1)
    most = (one + other) / 2
    score = np.divide(together - by_chance, most - by_chance, out=np.ones_like(most), where=most > by_chance)
    return (score.sum(1) - score.diagonal()) / (n_runs - 1)


def _pairs(counts: np.ndarray) -> np.ndarray:
    return counts * (counts - 1) / 2
