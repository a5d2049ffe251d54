"""Draw how much of each sample every domain takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from stimg import _keys
from stimg._cluster._colours import MOST_DOMAINS, read_categories
from stimg._cluster._proportions import count_domains
from stimg._input._checks import checked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

BAR = 0.8  # width, of the distance between two bars
GAP = 0.8  # between conditions, in addition


@checked
def domain_proportions(
    adata: AnnData | SpatialData | Sequence[AnnData | SpatialData],
    key: str = _keys.DOMAIN,
    *,
    library_key: str | None = None,
    condition_key: str | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    table_key: str | None = None,
) -> Axes:
    """Draw how much of each sample every domain takes, as one stacked bar per sample.

    Parameters
    ----------
    adata, key, library_key, condition_key, names, table_key
        As in :func:`stimg.tl.domain_proportions`. Colours are those in `.uns[key + "_colors"]` of the first slide, if
        present. Samples of one condition stand together.
    title
        Title; by default it says what is drawn.
    ax
        Axes to draw on.

    Returns
    -------
    Axes
        With one bar per sample and domain.

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        As in :func:`stimg.tl.domain_proportions`, or more than 100 domains.

    Examples
    --------
    >>> slides = [stimg.datasets.synthetic(n_obs=300, n_genes=20, seed=seed) for seed in (0, 1)]
    >>> ax = stimg.pl.domain_proportions(slides, "domain", names=["mouse1", "mouse2"])
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['mouse1', 'mouse2']
    """
    table, slides = count_domains(
        adata, key, library_key=library_key, condition_key=condition_key, names=names, table_key=table_key
    )
    domains, samples = table["domain"].cat.categories, table["sample"].cat.categories
    if len(domains) > MOST_DOMAINS:
        msg = f"Expected at most {MOST_DOMAINS} domains in `adata.obs[{key!r}]` to draw, found {len(domains)}."
        raise ValueError(msg)
    shares = table["share"].to_numpy().reshape(len(samples), len(domains))
    group = np.zeros(len(samples), dtype=int)
    if condition_key is not None:
        group = table["condition"].cat.codes.to_numpy()[:: len(domains)]
        group = np.unique(group, return_inverse=True)[1]
    place = np.arange(len(samples)) + GAP * group
    if ax is None:
        width = float(np.clip(2.5 + 0.45 * place[-1], 4, 16))
        ax = plt.subplots(figsize=(width, 4.5), layout="constrained")[1]
    bottom = np.zeros(len(samples))
    for name, colour, heights in zip(domains, _colours(slides, key, list(domains)), shares.T, strict=True):
        ax.bar(place, heights, BAR, bottom=bottom, color=colour, edgecolor="white", linewidth=0.5, label=name)
        bottom += heights
    crowded = sum(map(len, samples)) > 8 * ax.get_window_extent().width / ax.figure.dpi
    ax.set_xticks(place, samples, rotation=90 if crowded else 0)
    if condition_key is not None:
        for number, name in enumerate(table["condition"].unique()):
            middle = place[group == number].mean()
            ax.text(middle, 1.02, name, ha="center", va="bottom", transform=ax.get_xaxis_transform())
    ax.set_ylim(0, 1)
    ax.set_xlim(place[0] - 0.6, place[-1] + 0.6)
    ax.set_ylabel("share of observations")
    ax.spines[["top", "right"]].set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(  # from top to bottom, as in the bars
        handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title=key
    )
    ax.set_title("Domains of each sample" if title is None else title, pad=6 if condition_key is None else 22)
    return ax


def _colours(slides: list[AnnData], key: str, domains: list[str]) -> list[str]:
    """Return the colour of each domain, by its place among all categories of the first slide that has it."""
    found: dict[str, str] = {}
    for slide in slides:
        column = read_categories(slide, key)
        for name, colour in zip(column.names, column.colours, strict=False):
            found.setdefault(name, colour)
    return [found[name] for name in domains]
