"""Draw domains on the tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._resolve import resolve_table
from stimg._validators import check_coordinates, check_obs_key
from stimg.pl._canvas import add_scale_bar, draw_spots, pitch_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

UNLABELLED = "#BBBBBB"
IMAGE_ALPHA = 0.6


def domains(
    adata: AnnData | SpatialData,
    key: str = _keys.DOMAIN,
    *,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    library: str | None = None,
    image: bool = True,
    confidence: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
    table_key: str | None = None,
) -> Axes:
    """Draw domains, or any categories, on the tissue.

    Parameters
    ----------
    adata
        A slide with :func:`stimg.tl.domains` done, or with other categories in `.obs`.
    key
        Column of `.obs`; colours come from `.uns[key + "_colors"]` where they are there.
    spatial_key
        Coordinates in `.obsm`.
    library_key, library
        Column of `.obs` with sections, and the one to draw.
    image
        Draw the low-resolution image of `.uns["spatial"]` below the spots where there is one.
    confidence
        Fade observations by `.obs[key + "_confidence"]`.
    title
        Title; by default `key` and the number of domains.
    ax
        Axes to draw into.
    table_key
        Table of a `SpatialData`.

    Returns
    -------
    Axes
        With one circle an observation.

    Raises
    ------
    KeyError
        A key is missing.
    ValueError
        Several sections and no `library`.
    """
    import matplotlib.pyplot as plt

    table = resolve_table(adata, table_key)
    check_obs_key(table, key, advice="Run `stimg.tl.domains(adata, n_domains)` first.")
    coordinates = check_coordinates(table, spatial_key)
    faded = key + _keys.CONFIDENCE_SUFFIX
    if confidence:
        check_obs_key(table, faded, argument="confidence")
    rows = _rows(table, library_key, library)
    labels = pd.Categorical(table.obs[key])
    names = [str(name) for name in labels.categories]
    colours = _colours(table, key, len(names))
    if ax is None:
        ax = plt.subplots(figsize=(6, 5), layout="constrained")[1]
    codes = labels.codes[rows]
    faces = np.array([*colours, UNLABELLED])[codes]
    alpha = np.clip(table.obs[faded].to_numpy(dtype=float)[rows], 0.15, 1) if confidence else None
    if image:
        _draw_image(ax, table, library)
    draw_spots(
        ax, coordinates[rows], pitch_of(table, coordinates), facecolors=faces, alpha=alpha, linewidths=0, zorder=2
    )
    present = [i for i in range(len(names)) if (codes == i).any()]
    entries = [(names[i], colours[i]) for i in present]
    if (codes < 0).any():
        entries.append(("unlabelled", UNLABELLED))
    handles = [plt.Line2D([], [], marker="o", ls="", ms=8, color=colour, label=name) for name, colour in entries]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title=key)
    ax.set_title(title if title is not None else f"{key} ({len(present)} domains)")
    add_scale_bar(ax, table)
    return ax


def _rows(table: AnnData, library_key: str | None, library: str | None) -> np.ndarray:
    """Rows of the section asked for."""
    if library_key is None:
        return np.arange(table.n_obs)
    check_obs_key(table, library_key, argument="library_key")
    sections = table.obs[library_key].astype(str).to_numpy()
    names = list(dict.fromkeys(sections))
    if library is None and len(names) > 1:
        msg = f"`adata.obs[{library_key!r}]` has several sections; name one as `library`: {[str(n) for n in names]}."
        raise ValueError(msg)
    if library is not None and library not in names:
        msg = (
            f"No section {library!r} (`library`) in `adata.obs[{library_key!r}]`. Available: {[str(n) for n in names]}."
        )
        raise ValueError(msg)
    return np.flatnonzero(sections == (names[0] if library is None else library))


def _colours(table: AnnData, key: str, count: int) -> list[str]:
    """Colours recorded for the key if they suffice, else those of `tl.domains`."""
    recorded = [str(colour) for colour in table.uns.get(f"{key}_colors", [])]
    if len(recorded) >= count:
        return recorded
    from stimg.tl._domains import domain_colours

    return domain_colours(count)


def _draw_image(ax: Axes, table: AnnData, library: str | None) -> None:
    """Draw the low-resolution image in coordinate units, where there is one."""
    libraries = table.uns.get(_keys.SPATIAL, {})
    name = library if library in libraries else next(iter(libraries), None)
    if name is None or not isinstance(libraries[name], dict):
        return
    images, factors = libraries[name].get("images", {}), libraries[name].get("scalefactors", {})
    if "lowres" not in images or "tissue_lowres_scalef" not in factors:
        return
    picture, scale = np.asarray(images["lowres"]), float(factors["tissue_lowres_scalef"])
    height, width = picture.shape[0] / scale, picture.shape[1] / scale
    ax.imshow(picture, extent=(0, width, height, 0), alpha=IMAGE_ALPHA, zorder=1)
