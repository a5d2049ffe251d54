"""Observations drawn at their true size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stimg import _keys
from stimg._input._checks import check_library_key

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection
    from matplotlib.image import AxesImage

FILL = 0.92
LARGEST_SIDE = 2000


def section_rows(table: AnnData, library_key: str | None, library: str | None) -> np.ndarray:
    """Rows of the section asked for, or refuse to draw several sections over one another.

    Raises
    ------
    KeyError
        No such column.
    ValueError
        Several sections and no `library`, an unknown one, or a `library` without `library_key`.
    """
    if library_key is None:
        if library is not None:
            msg = f"Expected `library_key` with `library`={library!r}, found None. Name the column of `adata.obs`."
            raise ValueError(msg)
        return np.arange(table.n_obs)
    check_library_key(table, library_key)
    sections = table.obs[library_key].astype(str).to_numpy()
    names = [str(name) for name in dict.fromkeys(sections)]
    if library is None and len(names) > 1:
        msg = f"`adata.obs[{library_key!r}]` has several sections; name one as `library`: {names}."
        raise ValueError(msg)
    if library is not None and str(library) not in names:
        msg = f"No section {library!r} (`library`) in `adata.obs[{library_key!r}]`. Available: {names}."
        raise ValueError(msg)
    return np.flatnonzero(sections == (names[0] if library is None else str(library)))


def _lattice(table: AnnData, spatial_key: str) -> dict[str, Any]:
    """Record of the lattice, where it was made from these coordinates."""
    record = table.uns.get(_keys.UNS, {}).get(_keys.STEP_LATTICE, {})
    return record if record.get("spatial_key") == spatial_key else {}


def pitch_of(table: AnnData, coordinates: np.ndarray, spatial_key: str) -> float:
    """Pitch in units of the coordinates: the lattice's, else the median distance to the nearest observation."""
    recorded = float(_lattice(table, spatial_key).get("pitch", np.nan))
    if np.isfinite(recorded) and recorded > 0:
        return recorded
    if len(coordinates) < 2:
        return 1.0
    from scipy.spatial import cKDTree

    return float(np.median(cKDTree(coordinates).query(coordinates, k=2)[0][:, 1])) or 1.0


def draw_spots(ax: Axes, coordinates: np.ndarray, diameter: float, **style: Any) -> EllipseCollection:
    """Draw one circle of this diameter an observation, in data units, with y pointing down and equal scales."""
    from matplotlib.collections import EllipseCollection

    size = np.full(len(coordinates), diameter)
    spots = EllipseCollection(
        size, size, np.zeros(len(size)), units="xy", offsets=coordinates, offset_transform=ax.transData, **style
    )
    ax.add_collection(spots)
    frame(ax, coordinates, diameter)
    return spots


def frame(ax: Axes, coordinates: np.ndarray, diameter: float) -> None:
    """Show the observations and a diameter around them, with y pointing down, equal scales and no axis lines."""
    low, high = coordinates.min(0) - diameter, coordinates.max(0) + diameter
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(high[1], low[1])
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)


def section_image(
    table: AnnData, rows: np.ndarray, library: str | None, names: tuple[str, ...]
) -> tuple[np.ndarray, float] | None:
    """First of the section's images of these names, and its scale to the coordinates; never another section's.

    Without a library that has images, those of the only one of an object of which all rows are drawn.
    """
    libraries = table.uns.get(_keys.SPATIAL, {})
    if library not in libraries:
        if len(libraries) != 1 or len(rows) < table.n_obs:
            return None
        library = next(iter(libraries))
    if not isinstance(libraries[library], dict):
        return None
    images, factors = libraries[library].get("images", {}), libraries[library].get("scalefactors", {})
    for name in names:
        if name in images and f"tissue_{name}_scalef" in factors:
            return np.asarray(images[name]), float(factors[f"tissue_{name}_scalef"])
    return None


def draw_raster(ax: Axes, values: np.ndarray, scale: float = 1.0, **style: Any) -> AxesImage:
    """Draw an image of `scale` pixels a unit, from the origin; large ones by every second, third ... pixel."""
    step = -(-max(values.shape[:2]) // LARGEST_SIDE)
    values = values[::step, ::step]
    height, width = (side * step / scale for side in values.shape[:2])
    return ax.imshow(values, extent=(0, width, height, 0), **style)


def add_scale_bar(ax: Axes, table: AnnData, spatial_key: str) -> None:
    """Add a scale bar where the pitch is known in micrometres."""
    lattice = _lattice(table, spatial_key)
    pitch, pitch_um = lattice.get("pitch", np.nan), lattice.get("pitch_um", np.nan)
    if np.isfinite(pitch) and np.isfinite(pitch_um) and pitch > 0:
        from matplotlib_scalebar.scalebar import ScaleBar

        ax.add_artist(ScaleBar(pitch_um / pitch, "um", location="lower left", frameon=False, length_fraction=0.2))


def add_colour_bar(spots: Any, ax: Axes, label: str) -> None:
    """Add a narrow colour bar with a label."""
    bar = ax.figure.colorbar(spots, ax=ax, shrink=0.7, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
