"""Draw how well each gene is predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.transforms import offset_copy

from stimg._input._checks import check_positive_int, checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR = "#0072B2"
LABEL_POINTS = 8
LINE_POINTS = 10.5


@checked
def gene_correlation(correlations: pd.DataFrame, *, n_labels: int = 8, ax: Axes | None = None) -> Axes:
    """Draw genes by how well they are predicted, the best first.

    Parameters
    ----------
    correlations
        From :func:`stimg.metrics.gene_correlations`.
    n_labels
        Number of best and of worst genes that are named; fewer if the axes are not high enough.
    ax
        Axes to draw on.

    Returns
    -------
    Axes
        With one point per gene, lines at the median and the mean, and the number of genes without a correlation in
        the label of the x axis.

    Raises
    ------
    TypeError
        `correlations` is not a table.
    KeyError
        The table lacks a column.
    ValueError
        No gene has a correlation, or `n_labels` is negative.

    Examples
    --------
    >>> true, noise = np.random.default_rng(0).random((2, 50, 20))
    >>> stimg.pl.gene_correlation(stimg.metrics.gene_correlations(true, true + noise)).get_ylabel()
    'Pearson correlation over spots'
    """
    if not isinstance(correlations, pd.DataFrame):
        msg = (
            "Expected `correlations` to be the table of `stimg.metrics.gene_correlations`, found "
            f"{type(correlations).__name__}."
        )
        raise TypeError(msg)
    if missing := [name for name in ("pearson", "constant") if name not in correlations]:
        msg = (
            f"Columns {missing} not found in `correlations`. Available: {list(correlations)}. Make the table with "
            "`stimg.metrics.gene_correlations`."
        )
        raise KeyError(msg)
    check_positive_int("n_labels", n_labels, minimum=0)
    pearson = correlations["pearson"].dropna().sort_values(ascending=False, kind="stable")
    if not len(pearson):
        msg = f"Expected genes with a correlation in `correlations`, found none among {len(correlations)}."
        raise ValueError(msg)
    if ax is None:
        ax = plt.subplots(figsize=(6, 4.5), layout="constrained")[1]
    ranks = np.arange(1, len(pearson) + 1)
    ax.scatter(ranks, pearson, s=10, color=COLOUR, linewidths=0, zorder=3)
    for name, value, style in (("median", pearson.median(), "-"), ("mean", pearson.mean(), "--")):
        ax.axhline(value, color="0.4", lw=1, ls=style, label=f"{name} {value:.2f}", zorder=1)
    ax.set_xlim(0.5 - 0.03 * len(pearson), 0.5 + 1.03 * len(pearson))
    _name(ax, pearson, n_labels)
    constant = int(correlations["constant"].sum())
    left_out = f"; {constant} constant, not shown" if constant else ", none constant"
    ax.set_xlabel(f"rank of the gene ({len(pearson)} genes{left_out})")
    ax.set_ylabel("Pearson correlation over spots")
    ax.legend(frameon=False, loc="upper right")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _name(ax: Axes, pearson: pd.Series, n_labels: int) -> None:
    """Name the best genes in a column above the falling curve and the worst below, with limits that keep it clear."""
    height = ax.get_window_extent().height * 72 / ax.figure.dpi
    n_labels = min(n_labels, int(0.4 * height / LINE_POINTS) - 1)
    n_best = min(n_labels, (len(pearson) + 1) // 2)
    n_worst = min(n_labels, len(pearson) - n_best)
    (left, right), ranks, values = ax.get_xlim(), np.arange(1, len(pearson) + 1), pearson.to_numpy()
    place = (ranks - left) / (right - left)
    start = max(0.1, place[n_best - 1] + 0.04) if n_best else 1.0
    end = min(0.9, place[-n_worst] - 0.04) if n_worst else 0.0
    # Values, and the share of the axes' height by which each must stay below the top, or above the bottom.
    tops = [(values[0], 0.04), (values[place >= start].max(initial=values[-1]), (n_best + 1) * LINE_POINTS / height)]
    bottoms = [(values[-1], 0.04), (values[place <= end].min(initial=values[0]), (n_worst + 1) * LINE_POINTS / height)]
    span = max([0.1, *((a - b) / (1 - share - other) for a, share in tops for b, other in bottoms)])
    top = max(value + share * span for value, share in tops)
    ax.set_ylim(top - span, top)
    for number in range(n_best):
        _label(ax, str(pearson.index[number]), (ranks[number], values[number]), (start, 1.0), -(number + 0.5))
    for number in range(n_worst):
        _label(ax, str(pearson.index[-1 - number]), (ranks[-1 - number], values[-1 - number]), (end, 0.0), number + 0.5)


def _label(ax: Axes, name: str, point: tuple[float, float], corner: tuple[float, float], lines: float) -> None:
    """Write a name some lines above a place in the axes (below if negative), with a thin line to its point."""
    best = lines < 0
    ax.annotate(
        name,
        point,
        corner,
        textcoords=offset_copy(ax.transAxes, ax.figure, 0, lines * LINE_POINTS, units="points"),  # type: ignore[arg-type]
        ha="left" if best else "right",
        va="center",
        fontsize=LABEL_POINTS,
        arrowprops={"arrowstyle": "-", "color": "0.65", "lw": 0.6, "shrinkB": 2, "relpos": (0 if best else 1, 0.5)},
    )
