"""Draw how well each number of domains is found again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from stimg import _keys
from stimg._input._checks import checked
from stimg._input._records import read_record
from stimg._input._tables import resolve_table

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

CURVE, CHOSEN, RUNNER_UP = "#555555", "#D55E00", "#0072B2"


@checked
def domain_stability(
    adata: AnnData | SpatialData,
    key: str = _keys.DOMAIN,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    table_key: str | None = None,
) -> Axes:
    """Draw the scores by which `stimg.tl.domains(adata, "auto")` chose the number of domains.

    Parameters
    ----------
    adata
        A slide after :func:`stimg.tl.domains` with `n_domains="auto"`; of several slides clustered jointly, any.
    key
        Its `key_added`.
    title
        Title; by default the number chosen and the runner-up.
    ax
        Axes to draw on.
    table_key
        Table of a `SpatialData`.

    Returns
    -------
    Axes
        With the mean score of each number and its standard error, as a curve with bars. A filled circle marks the
        number chosen, an open one the runner-up: the best of the others.

    Raises
    ------
    KeyError
        The number of domains under `key` was not chosen by `n_domains="auto"`, or by an older version.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic(n_obs=300, n_domains=3)
    >>> sc.pp.pca(slide)
    >>> stimg.tl.domains(slide, "auto", use_rep="X_pca", method="kmeans", candidates=(2, 3, 4, 5))
    >>> ax = stimg.pl.domain_stability(slide)
    >>> ax.get_xlabel()
    'number of domains'
    """
    table = resolve_table(adata, table_key)
    found = read_record(table, _keys.STEP_DOMAINS, key).get("stability", {})
    if missing := [name for name in ("candidates", "mean", "error", "chosen", "runner_up") if name not in found]:
        what = "no scores of numbers of domains" if not found else f"scores of an older version, without {missing}"
        msg = f"Found {what} under {key!r} (`key`). Run `stimg.tl.domains(adata, 'auto', key_added={key!r})` first."
        raise KeyError(msg)
    numbers, mean, error = (np.asarray(found[name]) for name in ("candidates", "mean", "error"))
    if ax is None:
        ax = plt.subplots(figsize=(5, 3.2), layout="constrained")[1]
    ax.errorbar(numbers, mean, error, color=CURVE, marker="o", ms=3, capsize=3, zorder=2)
    said = []
    for name, colour, face in (("chosen", CHOSEN, CHOSEN), ("runner_up", RUNNER_UP, "white")):
        if number := int(found[name]):  # 0 where there is no runner-up
            said.append(f"{name.replace('_', '-')}: {number}")
            height = mean[numbers == number]
            ax.plot(number, height, "o", ms=9, mfc=face, mec=colour, mew=2, ls="", zorder=3, label=said[-1])
    ax.set_xticks(numbers)
    ax.set_xlabel("number of domains")
    ax.set_ylabel("agreement of runs (ARI)")
    ax.set_ylim(min(0.0, float((mean - error).min())), 1.02)
    ax.set_title(title if title is not None else f"Stability of {key}")
    ax.legend(frameon=False, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
