"""Statistical tests of what lies in domains."""

from __future__ import annotations

import numpy as np


def adjust(p_values: np.ndarray) -> np.ndarray:
    """Return p-values adjusted by Benjamini and Hochberg (1995), float64 (n,); those that are NaN stay so."""
    from scipy.stats import false_discovery_control

    adjusted = np.full(len(p_values), np.nan)
    known = np.isfinite(p_values)
    if known.any():
        adjusted[known] = false_discovery_control(p_values[known])
    return adjusted


def welch(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return t and the p-value of Welch's test; NaN with fewer than two values on a side, or if none of them vary."""
    from scipy.stats import ttest_ind_from_stats

    if min(len(first), len(second)) < 2 or not max(np.ptp(first), np.ptp(second)) > 0:
        return float("nan"), float("nan")
    sides = [part for one in (first, second) for part in (one.mean(), one.std(ddof=1), len(one))]
    t, p_value = ttest_ind_from_stats(*sides, equal_var=False)
    return float(t), float(p_value)
