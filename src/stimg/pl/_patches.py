"""Draw patches and where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from stimg._data import PatchDataset
from stimg._input._checks import check_made_by, check_positive_int, checked
from stimg._slide._geometry import site_positions
from stimg._slide._windows import crop
from stimg.pl._canvas import FILL, add_colour_bar, draw_spots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from stimg._slide._slide import Slide

OUTLINE = "#D55E00"


@checked
def patches(
    patches: PatchDataset,
    n: int = 4,
    *,
    indices: Sequence[int] | None = None,
    genes: str | Sequence[str] | None = None,
) -> np.ndarray:
    """Draw where some patches lie on their slide, and the expression of genes in each.

    Parameters
    ----------
    patches
        From :func:`stimg.pp.to_patches`.
    n
        Number of patches, evenly spaced over the first slide that has any, if `indices` are not given.
    indices
        Patches of one slide to draw.
    genes
        Genes to colour by, one per row; by default the one with the highest channel weight on the slide.

    Returns
    -------
    ndarray
        Axes, shape (number of genes, 1 + number of patches). The first of a row is the slide with the windows'
        outlines. Positions are the true ones in units of the pitch, values are log-normalised expression, and all
        panels of a gene share one colour scale.

    Raises
    ------
    IndexError
        There is no such patch.
    KeyError
        A gene is not among the slide's selected genes.
    ValueError
        The patches come from several slides, or there is nothing to draw.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic(n_obs=300), copy=True)
    >>> stimg.pp.select_genes(slide)
    >>> stimg.pl.patches(stimg.pp.to_patches(slide, size=8), n=3).shape
    (1, 4)
    """
    check_made_by("patches", patches, PatchDataset, "stimg.pp.to_patches")
    windows = _windows(patches, n, indices)
    slide, grid = patches.slides[windows[0][0]], patches.grids[windows[0][0]]
    columns = _columns(slide, genes)
    positions = slide.positions()
    shape, size = (len(columns), 1 + len(windows)), (3.4 + 2.2 * len(windows), 2.8 * len(columns) + 0.2)
    axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")[1]
    style = {"cmap": "viridis", "linewidths": 0}
    for panels, column in zip(axes, columns, strict=True):
        values = slide.expression[:, [column]].toarray().ravel()
        limits = (0, float(np.quantile(values, 0.99)) or float(values.max()) or 1.0)
        spots = draw_spots(panels[0], positions, FILL, array=values, clim=limits, **style)
        panels[0].set_title(f"{slide.name}: {len(windows)} of {len(patches)} patches", fontsize=9)
        for number, (ax, (_, row, col)) in enumerate(zip(panels[1:], windows, strict=True), start=1):
            sites = crop(grid, (row, col), patches.size).ravel()
            sites = sites[sites >= 0]
            low, high = _corners(slide, row, col, patches.size)
            _outline(panels[0], str(number), low, high)
            spots = draw_spots(ax, positions[sites], FILL, array=values[sites], clim=limits, **style)
            ax.set_xlim(low[0], high[0])
            ax.set_ylim(high[1], low[1])
            ax.set_title(f"patch {number}", fontsize=9)
        add_colour_bar(spots, panels[-1], f"{slide.genes[column]}\nlog-normalised expression")
    return axes


def _outline(ax: Axes, name: str, low: np.ndarray, high: np.ndarray) -> None:
    """Outline a window and write its name inside; widen the limits (y points down) until it is whole."""
    ax.add_patch(Rectangle((low[0], low[1]), *(high - low), fill=False, edgecolor=OUTLINE, lw=1.5, zorder=3))
    x, y = (low + high) / 2
    label = ax.text(x, y, name, color=OUTLINE, weight="bold", ha="center", va="center", zorder=4)
    label.set_path_effects([withStroke(linewidth=3, foreground="white")])
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    ax.set_xlim(min(left, low[0] - 0.5), max(right, high[0] + 0.5))
    ax.set_ylim(max(bottom, high[1] + 0.5), min(top, low[1] - 0.5))


def _windows(patches: PatchDataset, n: int, indices: Sequence[int] | None) -> list[tuple[int, int, int]]:
    """Return slide, row and column of the patches to draw, all of one slide."""
    if not len(patches):
        msg = "Expected a dataset with patches, found an empty one."
        raise ValueError(msg)
    if indices is None:
        check_positive_int("n", n)
        first = patches.window(0)[0]
        of_first = [i for i in range(len(patches)) if patches.window(i)[0] == first]
        indices = [of_first[i] for i in np.linspace(0, len(of_first) - 1, min(n, len(of_first))).astype(int)]
    if not len(indices):
        msg = "Expected at least one patch in `indices`, found none."
        raise ValueError(msg)
    if wrong := [i for i in indices if not 0 <= i < len(patches)]:
        msg = f"Expected `indices` from 0 to {len(patches) - 1}, found {wrong}."
        raise IndexError(msg)
    windows = [patches.window(i) for i in indices]
    if len(slides := {k for k, _, _ in windows}) != 1:
        msg = f"Expected patches of one slide in `indices`, found slides {sorted(slides)}. Draw one slide at a time."
        raise ValueError(msg)
    return windows


def _columns(slide: Slide, genes: str | Sequence[str] | None) -> list[int]:
    """Return the columns of the slide's expression that are drawn."""
    if genes is None:
        return [int(np.argmax(slide.weights))]
    named = [genes] if isinstance(genes, str) else list(genes)
    if not named:
        msg = "Expected at least one gene in `genes`, found none."
        raise ValueError(msg)
    place = {str(gene): i for i, gene in enumerate(slide.genes)}
    if unknown := [gene for gene in named if gene not in place]:
        msg = (
            f"Genes {unknown[:5]} (`genes`) are not among the {len(place)} selected genes of slide {slide.name!r}: "
            f"{list(place)[:5]}, ..."
        )
        raise KeyError(msg)
    return [place[gene] for gene in named]


def _corners(slide: Slide, row: int, col: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two opposite corners, float64 (2,), of a window in true x and y, half a pitch around its sites."""
    rows, cols = np.mgrid[row : row + size, col : col + size]
    places = site_positions(np.column_stack([rows.ravel(), cols.ravel()]), slide.kind, slide.parity)
    return places.min(0) - 0.5, places.max(0) + 0.5
