"""What a pretrained spatial network sees around single spots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stimg._apply._tokens import match_slides, site_tokens

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.models import Model


@dataclass(frozen=True)
class Surroundings:
    """Tokens of a table's sites, and the window of sites around each of some observations.

    Attributes
    ----------
    tokens
        float32 (n_sites, d).
    positions
        float32 (n_sites, 2): true (x, y) in units of the pitch.
    windows
        int32 (n, size * size): sites around each observation, its own in the middle; -1 where there is none.
    """

    tokens: np.ndarray
    positions: np.ndarray
    windows: np.ndarray


def read_surroundings(
    table: AnnData, model: Model, rows: np.ndarray, *, layer: str | None, lattice_key: str
) -> Surroundings:
    """Read the surroundings of the observations `rows` of a table with raw counts; sections do not see each other.

    Raises
    ------
    KeyError
        The lattice is missing.
    ValueError
        The model has no patches, or no gene in common with the table.
    """
    if model.card["unit"] == "slide":
        msg = f"Expected as `spatial_model` one of patches or spots, found {model.card['name']!r}, of whole slides."
        raise ValueError(msg)
    matched, _ = match_slides(table, model, layer=layer, scale="counts", lattice_key=lattice_key)
    size = int(model.card["size"])
    windows = np.full((table.n_obs, size**2), -1, dtype=np.int32)
    tokens, positions, first = [], [], 0
    for slide, vocabulary in matched:
        padded = np.pad(slide.grid, (size // 2, size - 1 - size // 2), constant_values=-1)
        around = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
        found = around[tuple(slide.sites[slide.obs_site].T)].reshape(-1, size**2)
        windows[slide.obs_index] = np.where(found >= 0, found + first, -1)
        tokens.append(site_tokens(model, slide, vocabulary))
        positions.append(slide.positions())
        first += slide.n_sites
    return Surroundings(np.concatenate(tokens), np.concatenate(positions), windows[rows])
