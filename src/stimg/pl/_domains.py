"""Draw domains on the tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from stimg import _keys
from stimg._cluster._colours import UNLABELLED, read_categories
from stimg._input._checks import check_obs_key, checked
from stimg._input._tables import resolve_table
from stimg.pl._canvas import FILL, add_scale_bar, draw_raster, draw_spots, read_section, section_image

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

IMAGE_ALPHA = 0.6


@checked
def domains(
    adata: AnnData | SpatialData,
    key: str = _keys.DOMAIN,
    *,
    spatial_key: str | None = None,
    library_key: str | None = None,
    library: str | None = None,
    image: bool = True,
    confidence: bool = False,
    size: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    table_key: str | None = None,
) -> Axes:
    """Draw domains, or any categories, on the tissue.

    Parameters
    ----------
    adata
        A slide after :func:`stimg.tl.domains`, or with other categories in `.obs`.
    key
        Column of `.obs`; its colours are those in `.uns[key + "_colors"]`, if present.
    spatial_key, library_key
        Coordinates in `.obsm`, and column of `.obs` with sections; by default those given to
        :func:`stimg.pp.to_lattice`.
    library
        The section to draw, if there are several.
    image
        Draw the section's image in `.uns["spatial"]` (low resolution, else high) below the spots, if there is one:
        that of `.uns["spatial"][library]`, or the only one of an object with one section.
    confidence
        Fade observations by `.obs[key + "_confidence"]`.
    size
        Diameter of the circles in units of the coordinates; by default a little less than the pitch.
    title
        Title; by default `key` and the number of domains.
    ax
        Axes to draw on.
    table_key
        Table of a `SpatialData`.

    Returns
    -------
    Axes
        With one circle per observation.

    Raises
    ------
    KeyError
        A key is missing.
    ValueError
        Several sections and no `library`, a `size` that is not positive, or a `key` of a gene, of decimal numbers, or
        of more than 100 categories.

    Examples
    --------
    >>> stimg.pl.domains(stimg.datasets.synthetic("visium"), "domain").get_title()
    'domain (5 domains)'
    """
    table = resolve_table(adata, table_key)
    found = read_categories(table, key, advice="Run `stimg.tl.domains(adata, n_domains)` first.")
    faded = key + _keys.CONFIDENCE_SUFFIX
    if confidence:
        check_obs_key(table, faded, argument="confidence")
    section = read_section(table, spatial_key, library_key, library)
    if size is not None and not (np.isfinite(size) and size > 0):
        msg = f"Expected `size` to be a positive diameter in units of the coordinates, found {size!r}."
        raise ValueError(msg)
    if ax is None:
        ax = plt.subplots(figsize=(6, 5), layout="constrained")[1]
    names, colours, codes = found.names, found.colours, found.codes[section.rows]
    faces = np.array([*colours, UNLABELLED])[codes]
    alpha = None
    if confidence:
        alpha = np.clip(np.nan_to_num(table.obs[faded].to_numpy(dtype=float)[section.rows]), 0.15, 1)
    if image and (below := section_image(table, section, ("lowres", "hires"))):
        draw_raster(ax, *below, alpha=IMAGE_ALPHA, zorder=1)
    diameter = FILL * section.pitch if size is None else float(size)
    draw_spots(ax, section.coordinates, diameter, facecolors=faces, alpha=alpha, linewidths=0, zorder=2)
    present = [i for i in range(len(names)) if (codes == i).any()]
    entries = [(names[i], colours[i]) for i in present]
    if (codes < 0).any():
        entries.append(("unlabelled", UNLABELLED))
    handles = [plt.Line2D([], [], marker="o", ls="", ms=8, color=colour, label=name) for name, colour in entries]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title=key)
    ax.set_title(title if title is not None else f"{key} ({len(present)} domains)")
    add_scale_bar(ax, section)
    return ax
