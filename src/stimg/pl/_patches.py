"""Draw patches and where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stimg._windows import crop
from stimg.pl._canvas import add_colour_bar, draw_spots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stimg.pp import PatchDataset


def patches(
    patches: PatchDataset, n: int = 4, *, indices: Sequence[int] | None = None, gene: str | None = None
) -> np.ndarray:
    """Draw where some patches lie on their slide, and one gene in each.

    Parameters
    ----------
    patches
        From :func:`stimg.pp.to_patches`.
    n
        Number of patches, evenly spaced over the first slide, where no `indices` are given.
    indices
        Patches of one slide to draw.
    gene
        Gene to colour by; by default the one with the highest channel weight on the slide.

    Returns
    -------
    ndarray
        Axes, shape (1 + number of patches,): the slide with the windows' outlines, then the patches.

    Raises
    ------
    IndexError
        No such patch.
    KeyError
        The gene is not among the slide's selected genes.
    ValueError
        The patches are of several slides.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Polygon

    if indices is None:
        of_first = [i for i in range(len(patches)) if patches.window(i)[0] == 0]
        indices = [of_first[i] for i in np.linspace(0, len(of_first) - 1, min(n, len(of_first))).astype(int)]
    if wrong := [i for i in indices if not 0 <= i < len(patches)]:
        msg = f"Expected `indices` from 0 to {len(patches) - 1}, found {wrong}."
        raise IndexError(msg)
    windows = [patches.window(i) for i in indices]
    if len({k for k, _, _ in windows}) != 1:
        msg = f"Expected patches of one slide in `indices`, found slides {sorted({k for k, _, _ in windows})}."
        raise ValueError(msg)
    slide = patches.slides[windows[0][0]]
    gene = str(slide.genes[np.argmax(slide.weights)]) if gene is None else gene
    if gene not in slide.genes:
        msg = f"Gene {gene!r} is not among the {len(slide.genes)} selected genes of slide {slide.name!r}."
        raise KeyError(msg)
    values = slide.expression[:, [int(np.flatnonzero(slide.genes == gene)[0])]].toarray().ravel()
    positions = slide.positions()
    limits = (0, float(np.quantile(values, 0.99)) or 1.0)
    figure, axes = plt.subplots(1, 1 + len(indices), figsize=(3.4 + 2.2 * len(indices), 3.4), layout="constrained")
    style = {"cmap": "viridis", "clim": limits, "linewidths": 0}
    draw_spots(axes[0], positions, 1.0, array=values, **style)
    axes[0].set_title(f"{slide.name}: {len(windows)} of {len(patches)} patches", fontsize=9)
    for number, (ax, (_, row, col)) in enumerate(zip(axes[1:], windows, strict=True), start=1):
        sites = crop(slide.grid, (row, col), patches.size).ravel()
        sites = sites[sites >= 0]
        places = positions[sites]
        low, high = places.min(0) - 0.5, places.max(0) + 0.5
        corners = [low, (high[0], low[1]), high, (low[0], high[1])]
        axes[0].add_patch(Polygon(corners, fill=False, edgecolor="#D55E00", lw=1.5, zorder=3))
        axes[0].text(*(places.mean(0)), str(number), color="#D55E00", weight="bold", ha="center", va="center", zorder=4)
        spots = draw_spots(ax, places, 1.0, array=values[sites], **style)
        ax.set_title(f"patch {number}", fontsize=9)
    add_colour_bar(spots, axes[-1], f"{gene}\nlog-normalised expression")
    return axes
