"""What a slide's stain looks like where it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from stimg._image._slide_image import normalise_stain
from stimg.nn._stain import MAP_STRIDE, StainStatistics

if TYPE_CHECKING:
    from stimg._image._slide_image import SlideImage

FEWEST_PLACES, MOST_PLACES = 64, 512
WINDOW = 128  # pixels: the widest statistic and what is averaged
MIDDLE = 10  # pixels of the map that a place is averaged over: at 2 um 80 um, about a spot
BATCH = 64


def slide_statistics(
    image: SlideImage, mpp: float, stain: tuple[np.ndarray, np.ndarray] | None, centres: np.ndarray
) -> torch.Tensor:
    """Mean and deviation of the stain statistics over places of a slide.

    Parameters
    ----------
    image
        The slide's image.
    mpp
        Micrometres per pixel that it is read at.
    stain
        Of the slide, where its colours are brought to the reference.
    centres
        Row and column of its spots in micrometres, float64 (n, 2); of more than 512, so many are taken evenly.
        Those closer than 64 pixels to the image's edge are left out if 64 others remain; of fewer than 64, places all
        over the tissue are taken instead.

    Returns
    -------
    Tensor
        float32 (2, n_statistics).
    """
    reach, size = WINDOW / 2 * mpp, np.array(image.shape) * image.mpp
    whole = ((centres >= reach) & (centres <= size - reach)).all(1)
    centres = centres[whole] if whole.sum() >= FEWEST_PLACES else centres
    if len(centres) < FEWEST_PLACES and image.tissue[0].any():
        mask, mask_mpp = image.tissue
        centres = (np.argwhere(mask) + 0.5) * mask_mpp
    chosen = np.unique(np.linspace(0, len(centres) - 1, MOST_PLACES).round().astype(int))
    # On whole pixels, as blocks and crops of the network are: between them an image is blurred.
    corners = np.round(centres[chosen] / mpp - WINDOW / 2) * mpp
    network, found = StainStatistics(), []
    first = (WINDOW // MAP_STRIDE - MIDDLE) // 2
    middle = slice(first, first + MIDDLE)
    for part in np.split(corners, range(BATCH, len(corners), BATCH)):
        crops = [image.read(top, left, (WINDOW, WINDOW), mpp) for top, left in part]
        crops = crops if stain is None else [normalise_stain(crop, stain) for crop in crops]
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
        found.append(network(pixels)[:, :, middle, middle].mean((2, 3)))
    values = torch.cat(found).double()
    return torch.stack([values.mean(0), values.std(0, correction=0).clamp(min=1e-3)]).float()
