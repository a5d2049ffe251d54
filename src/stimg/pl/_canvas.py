"""Observations drawn at their true size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stimg import _keys

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection

FILL = 0.92


def pitch_of(table: AnnData, coordinates: np.ndarray) -> float:
    """Pitch in units of the coordinates: the lattice's, else the median distance to the nearest observation."""
    recorded = table.uns.get(_keys.UNS, {}).get(_keys.STEP_LATTICE, {}).get("pitch", np.nan)
    if np.isfinite(recorded):
        return float(recorded)
    if len(coordinates) < 2:
        return 1.0
    from scipy.spatial import cKDTree

    return float(np.median(cKDTree(coordinates).query(coordinates, k=2)[0][:, 1])) or 1.0


def draw_spots(ax: Axes, coordinates: np.ndarray, diameter: float, **style: Any) -> EllipseCollection:
    """Draw one circle an observation, in data units, with the y axis pointing down and equal scales."""
    from matplotlib.collections import EllipseCollection

    size = np.full(len(coordinates), FILL * diameter)
    spots = EllipseCollection(
        size, size, np.zeros(len(size)), units="xy", offsets=coordinates, offset_transform=ax.transData, **style
    )
    ax.add_collection(spots)
    low, high = coordinates.min(0) - diameter, coordinates.max(0) + diameter
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(high[1], low[1])
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)
    return spots


def add_scale_bar(ax: Axes, table: AnnData) -> None:
    """Add a scale bar where the pitch is known in micrometres."""
    lattice = table.uns.get(_keys.UNS, {}).get(_keys.STEP_LATTICE, {})
    pitch, pitch_um = lattice.get("pitch", np.nan), lattice.get("pitch_um", np.nan)
    if np.isfinite(pitch) and np.isfinite(pitch_um) and pitch > 0:
        from matplotlib_scalebar.scalebar import ScaleBar

        ax.add_artist(ScaleBar(pitch_um / pitch, "um", location="lower left", frameon=False, length_fraction=0.2))


def add_colour_bar(spots: Any, ax: Axes, label: str) -> None:
    """Add a narrow colour bar with a label."""
    bar = ax.figure.colorbar(spots, ax=ax, shrink=0.7, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
