"""What a pretrained spatial network sees around single spots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._apply._tokens import match_slides, site_tokens
from stimg._data._image_patches import Surroundings

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.models import Model


def read_surroundings(table: AnnData, model: Model, rows: np.ndarray, **expression: Any) -> Surroundings:
    """Read the surroundings of the observations `rows`, each within its section, from a table of raw counts.

    `expression` says where these are and which genes they have, as in `match_slides`. A missing lattice is a
    `KeyError`; a model that reads whole slides, or shares too few genes with the table, is a `ValueError`.
    """
    if model.card["unit"] == "slide":
        msg = f"Expected a `spatial_model` of patches or spots, found {model.card['name']!r}, which reads whole slides."
        raise ValueError(msg)
    matched, _ = match_slides(table, model, scale="counts", **expression)
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
