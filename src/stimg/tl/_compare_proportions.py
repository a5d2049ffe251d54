"""Test whether domains take different shares of the samples of different conditions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from stimg._cluster._statistics import adjust, welch
from stimg._input._checks import checked, warn

COLUMNS = ("sample", "condition", "domain", "n_obs")
ADDED = 0.5  # to every count, so that there is a logarithm of none


@checked
def compare_proportions(proportions: pd.DataFrame) -> pd.DataFrame:
    """Test whether domains take different shares of the samples of different conditions.

    Samples are the unit, whatever their number of observations: spots of one sample say nothing of another. Shares of
    one sample add up to one, so that they are compared as centred log-ratios (Aitchison 1986, The Statistical Analysis
    of Compositional Data): the logarithm of a domain's count, with 0.5 added, less the mean of these over all domains.
    Each pair of conditions is compared by Welch's t-test.

    Parameters
    ----------
    proportions
        From :func:`stimg.tl.domain_proportions` with a `condition_key`.

    Returns
    -------
    DataFrame
        One row per domain and pair of conditions: `domain`, `condition`, `reference` (the earlier of the two),
        `n_samples` and `n_reference` (samples of each), `share` and `share_reference` (means over samples),
        `log2_ratio` (difference between the means of the centred log-ratios, in powers of two), `t`, `p_value`, and
        `p_adjusted` (Benjamini-Hochberg over all rows). The last three are NaN where a condition has fewer than two
        samples, or where the samples of both do not vary.

    Raises
    ------
    TypeError
        `proportions` is not a table.
    KeyError
        The table lacks a column, as without `condition_key`.
    ValueError
        There is only one condition, or only one domain.

    Warns
    -----
    UserWarning
        Conditions with fewer than two samples, which cannot be tested.

    Notes
    -----
    Ratios are relative to the typical domain of a sample: if one domain grows, all others shrink. With two or three
    samples per condition only very large differences can be found; a high p-value is then no sign of equality.

    Examples
    --------
    >>> slides = [stimg.datasets.synthetic(n_obs=300, n_genes=20, seed=seed) for seed in range(4)]
    >>> for slide, condition in zip(slides, ["control", "control", "treated", "treated"]):
    ...     slide.obs["condition"] = condition
    >>> shares = stimg.tl.domain_proportions(slides, "domain", condition_key="condition")
    >>> found = stimg.tl.compare_proportions(shares)
    >>> found[["domain", "condition", "reference"]].iloc[0].tolist()
    ['layer1', 'treated', 'control']
    """
    counts, condition = _counts(proportions)
    values = np.log2(counts + ADDED)
    values = values.sub(values.mean(1), axis=0)
    shares = counts.div(counts.sum(1), axis=0)
    conditions = [name for name in condition.cat.categories if (condition == name).any()]
    if lone := [name for name in conditions if (condition == name).sum() < 2]:
        warn(
            f"Conditions with a single sample cannot be tested: {lone[:5]}. Their p-values are NaN. More observations "
            "of the same sample do not help; several sections of one donor are one sample."
        )
    rows = []
    for reference, other in combinations(conditions, 2):
        ours, theirs = condition == other, condition == reference
        for domain in counts.columns:
            t, p_value = welch(values.loc[ours, domain].to_numpy(), values.loc[theirs, domain].to_numpy())
            rows.append(
                {
                    "domain": domain,
                    "condition": other,
                    "reference": reference,
                    "n_samples": int(ours.sum()),
                    "n_reference": int(theirs.sum()),
                    "share": shares.loc[ours, domain].mean(),
                    "share_reference": shares.loc[theirs, domain].mean(),
                    "log2_ratio": values.loc[ours, domain].mean() - values.loc[theirs, domain].mean(),
                    "t": t,
                    "p_value": p_value,
                }
            )
    return pd.DataFrame(rows).assign(p_adjusted=lambda table: adjust(table["p_value"].to_numpy()))


def _counts(proportions: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Return the counts of samples by domains, and the condition of each sample."""
    made = "`stimg.tl.domain_proportions(..., condition_key=...)`"
    if not isinstance(proportions, pd.DataFrame):
        msg = f"Expected `proportions` to be the table of {made}, found {type(proportions).__name__}."
        raise TypeError(msg)
    if missing := [name for name in COLUMNS if name not in proportions]:
        msg = f"Columns {missing} not found in `proportions`. Available: {list(proportions)}. Make it with {made}."
        raise KeyError(msg)
    table = proportions.assign(condition=proportions["condition"].astype("category"))
    counts = table.pivot_table(
        index="sample", columns="domain", values="n_obs", aggfunc="sum", fill_value=0, observed=True
    )
    condition = table.drop_duplicates("sample").set_index("sample")["condition"].loc[counts.index]
    if condition.nunique() < 2 or counts.shape[1] < 2:
        msg = (
            f"Expected at least two conditions and two domains in `proportions`, found {condition.nunique()} and "
            f"{counts.shape[1]}."
        )
        raise ValueError(msg)
    return counts, condition
