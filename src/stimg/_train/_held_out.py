"""Hold out spots for validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from stimg._data import ImagePatchDataset


def hold_out(patches: ImagePatchDataset, fraction: float, seed: int) -> list[np.ndarray]:
    """Hold out the spots of each slide in random square blocks as wide as half a crop, bool (n_spots,)."""
    generator = np.random.default_rng(seed)
    side = patches.size * patches.mpp / 2
    held = []
    for slide in patches.slides:
        blocks, of_spot = np.unique(np.floor(slide.centres / side), axis=0, return_inverse=True)
        rank = generator.permutation(len(blocks))[of_spot.ravel()]
        n_out = int(fraction * len(rank))
        out = rank <= np.sort(rank)[n_out - 1] if n_out else np.zeros(len(rank), dtype=bool)
        held.append(out & (not out.all()))
    return held
