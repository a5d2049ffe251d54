"""Draw the genes that an embedding depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from stimg import _keys
from stimg._input._checks import check_positive_int, check_strings, checked
from stimg._input._tables import resolve_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

HIGHER, LOWER = "#0072B2", "#E69F00"
COLUMNS = ("group", "symbol", "score")


@checked
def rank_channels(
    adata: AnnData | SpatialData,
    *,
    n_genes: int = 10,
    groups: str | Sequence[str] | None = None,
    ncols: int = 4,
    key: str = _keys.CHANNELS,
    table_key: str | None = None,
) -> np.ndarray:
    """Draw the genes that most of what the embedding tells apart is owed to, the first at the top.

    Parameters
    ----------
    adata
        A slide after :func:`stimg.tl.rank_channels`.
    n_genes
        Number of genes of each group.
    groups
        Groups to draw; by default all.
    ncols
        Number of panels side by side.
    key
        Key in `.uns` under which `rank_channels` wrote, its `key_added`.
    table_key
        Table of a `SpatialData`.

    Returns
    -------
    ndarray
        Axes, shape (number of groups,), with one bar per gene. Panels share the scale of the scores, in percent.
        Colours tell genes with more expression in the group than elsewhere from those with less.

    Raises
    ------
    KeyError
        The result is missing.
    ValueError
        There is something else under `key`, or `groups` are not in the result.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic(n_obs=300), copy=True)
    >>> stimg.pp.select_genes(slide)
    >>> model = stimg.tl.pretrain(stimg.pp.to_patches(slide, size=8), max_steps=2)
    >>> ranked = stimg.tl.rank_channels(slide, model, "domain")
    >>> [ax.get_title() for ax in stimg.pl.rank_channels(slide, groups=["layer1", "layer5"])]
    ['layer1', 'layer5']
    """
    check_positive_int("n_genes", n_genes)
    check_positive_int("ncols", ncols)
    table = resolve_table(adata, table_key)
    ranked = _read(table, key)
    shown = _groups(ranked, groups)
    per_group = [ranked[ranked["group"] == group].head(n_genes) for group in shown]
    ncols = min(ncols, len(shown))
    nrows = -(-len(shown) // ncols)
    size = (max(2.6 * ncols + 0.3, 4), nrows * (0.19 * max(map(len, per_group)) + 0.75) + 0.7)
    figure, axes = plt.subplots(nrows, ncols, figsize=size, squeeze=False, sharex=True, layout="constrained")
    for ax in axes.flat[len(shown) :]:
        ax.remove()
    for ax in axes.flat[max(len(shown) - ncols, 0) : len(shown)]:  # nothing stands below these
        ax.tick_params(labelbottom=True)
    signed = "difference" in ranked
    for ax, group, top in zip(axes.flat, shown, per_group, strict=False):
        colours = np.where(top["difference"] > 0, HIGHER, LOWER) if signed else HIGHER
        places = np.arange(len(top))
        ax.barh(places, top["score"], color=colours, height=0.75)
        ax.set_yticks(places, top["symbol"], fontsize=8)
        ax.set_ylim(len(top) - 0.4, -0.6)
        ax.axvline(0, color="0.4", lw=0.8)
        ax.set_title(group if signed else "all observations")
        ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.spines[["top", "right"]].set_visible(False)
    if signed:
        kinds = (("more", HIGHER), ("less", LOWER))
        handles = [Patch(color=colour, label=f"{word} expression in the group") for word, colour in kinds]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(2, ncols), frameon=False)
    figure.supxlabel(f"share of the {'distance to all others' if signed else 'variance'}", fontsize=10)
    return axes.flat[: len(shown)]


def _read(table: AnnData, key: str) -> pd.DataFrame:
    """Return what `tl.rank_channels` wrote under the key."""
    if key not in table.uns:
        msg = (
            f"Key {key!r} not found in `adata.uns`. Available keys: {list(table.uns)}. "
            "Run `stimg.tl.rank_channels(adata, model)` first."
        )
        raise KeyError(msg)
    found = table.uns[key]
    if not isinstance(found, pd.DataFrame) or not set(COLUMNS) <= set(found) or not len(found):
        other = f"columns {list(found)}" if isinstance(found, pd.DataFrame) else type(found).__name__
        msg = f"Expected the table of `stimg.tl.rank_channels` in `adata.uns[{key!r}]`, found {other}."
        raise ValueError(msg)
    return found


def _groups(ranked: pd.DataFrame, groups: str | Sequence[str] | None) -> list[str]:
    """Return the groups to draw, by default all in their order."""
    there = list(dict.fromkeys(ranked["group"].astype(str)))
    if groups is None:
        return there
    wanted = check_strings("groups", groups)
    if not wanted or (unknown := [name for name in wanted if name not in there]):
        found = unknown[:5] if wanted else "none"
        msg = f"Expected `groups` among those that were ranked, {there}, found {found}."
        raise ValueError(msg)
    return list(dict.fromkeys(wanted))
