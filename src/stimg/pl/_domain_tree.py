"""Draw how finer domains lie inside coarser ones."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Polygon, Rectangle

from stimg import _keys
from stimg._cluster._colours import Categories, is_dark, read_categories
from stimg._input._checks import checked
from stimg._input._records import read_record
from stimg._input._tables import resolve_table

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

WIDTH = 0.32  # of a column of domains, whose distance is one
GAP = 0.012  # between coarsest domains, relative to all observations
LEAST_NAMED = 0.02  # share of the observations of a domain whose name is written
NAME_SIZE = 8
BAND_ALPHA = 0.35


@checked
def domain_tree(
    adata: AnnData | SpatialData,
    key: str = _keys.DOMAIN,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    table_key: str | None = None,
) -> Axes:
    """Draw nested domains as a tree: levels from left to right, the height of a domain by its observations.

    Parameters
    ----------
    adata
        A slide after :func:`stimg.tl.domains` with `levels`.
    key
        Its `key_added`. The levels are in `.obs[f"{key}_{n}"]`, their colours in `.uns`.
    title
        Title; by default `key` and the levels.
    ax
        Axes to draw on.
    table_key
        Table of a `SpatialData`.

    Returns
    -------
    Axes
        With one rectangle per domain that has observations, named where there is room, and bands from each domain to
        its parts.

    Raises
    ------
    KeyError
        There are no levels under `key`, or one of them is missing.
    ValueError
        Domains were changed since, and a finer one lies in several coarser ones.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic(n_obs=300)
    >>> sc.pp.pca(slide)
    >>> stimg.tl.domains(slide, levels=(3, 5), use_rep="X_pca", method="kmeans")
    >>> stimg.pl.domain_tree(slide).get_title()
    'stimg_domain (3 and 5 domains)'
    """
    table = resolve_table(adata, table_key)
    again = f"Run `stimg.tl.domains(adata, levels=..., key_added={key!r})` first."
    record = read_record(table, _keys.STEP_DOMAINS, key + _keys.LEVELS_SUFFIX)
    if not len(numbers := [int(number) for number in record.get("levels", [])]):
        msg = f"Found no nested domains under {key!r} (`key`). {again}"
        raise KeyError(msg)
    levels = [read_categories(table, _keys.level_key(key, number), advice=again) for number in numbers]
    boxes = _boxes(levels, again)
    if ax is None:
        ax = plt.subplots(figsize=(1 + 1.3 * len(levels), 4.5), layout="constrained")[1]
    for x, (level, box) in enumerate(zip(levels, boxes, strict=True)):
        for domain, (top, bottom) in box.items():
            colour = level.colours[domain]
            size = bottom - top
            ax.add_patch(Rectangle((x, top), WIDTH, size, facecolor=colour, edgecolor="white", linewidth=0.5, zorder=2))
            if size >= LEAST_NAMED:
                middle, ink = (top + bottom) / 2, "white" if is_dark(colour) else "black"
                name = level.names[domain]
                ax.text(x + WIDTH / 2, middle, name, color=ink, size=NAME_SIZE, ha="center", va="center", zorder=3)
            if x + 1 < len(levels):
                corners = [(x + WIDTH, top), (x + 1, top), (x + 1, bottom), (x + WIDTH, bottom)]
                ax.add_patch(Polygon(corners, facecolor=colour, alpha=BAND_ALPHA, linewidth=0, zorder=1))
    ax.set_xlim(-0.1, len(levels) - 1 + WIDTH + 0.1)
    ax.set_ylim(max(bottom for _, bottom in boxes[0].values()), 0)
    ax.set_xticks(np.arange(len(levels)) + WIDTH / 2, [str(number) for number in numbers])
    ax.set_xlabel("number of domains")
    ax.set_yticks([])
    ax.set_ylabel("share of observations")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    said = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    ax.set_title(title if title is not None else f"{key} ({said} domains)")
    return ax


def _boxes(levels: list[Categories], again: str) -> list[dict[int, tuple[float, float]]]:
    """Return top and bottom of each domain of each level, in shares of all observations.

    There is a gap between the coarsest domains. Observations are laid in the order of their domains, coarsest first, so
    that parts of a domain lie beside it.
    """
    codes = np.stack([level.codes for level in levels])
    codes = codes[:, (codes >= 0).all(0)]
    for coarser, finer in pairwise(codes):
        if len(np.unique(np.stack([coarser, finer]), axis=1).T) > len(np.unique(finer)):
            msg = f"Expected each finer domain inside one coarser domain, found one inside several. {again}"
            raise ValueError(msg)
    codes = codes[:, np.lexsort(codes[::-1])]
    n_obs = codes.shape[1]
    gap = GAP * np.unique(codes[0], return_inverse=True)[1]
    boxes = []
    for level in codes:
        domains, first, count = np.unique(level, return_index=True, return_counts=True)
        tops = first / n_obs + gap[first]
        boxes.append(
            {int(d): (t, t + c / n_obs) for d, t, c in zip(domains, tops.tolist(), count.tolist(), strict=True)}
        )
    return boxes
