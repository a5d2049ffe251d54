"""The stain of H&E: brought to a reference, and measured around a slide's spots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from stimg._image._slide_image import SlideImage

# Optical density of tissue (red, green, blue): mean and deviation, average of five H&E sections (her2st C2 to C6).
REFERENCE_STAIN = (np.array([0.666, 0.763, 0.432]), np.array([0.339, 0.307, 0.171]))
FEWEST_PLACES, MOST_PLACES = 64, 512
WINDOW = 128  # pixels: the widest statistic and what is averaged
MIDDLE = 10  # pixels of the map that a place is averaged over: at 2 um 80 um, about a spot
BATCH = 64


def optical_density(pixels: np.ndarray) -> np.ndarray:
    """Optical density float64 of uint8 values; white is 0."""
    return -np.log((pixels.astype(np.float64) + 1) / 256)


def normalise_stain(pixels: np.ndarray, stain: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Bring the mean and deviation of each channel's optical density to those of a reference (after Reinhard 2001).

    Pixels are uint8 (h, w, 3), and `stain` is the slide's, from `SlideImage.stain`.
    """
    mean, sd = REFERENCE_STAIN
    # Each channel maps 256 values: a table of them is the whole work.
    density = optical_density(np.arange(256)[:, None])
    moved = (density - stain[0]) / stain[1] * sd + mean
    pale = density < density[200]  # background stays white
    moved = np.where(pale, np.maximum(moved[200], 0) * density / density[200], moved)
    table = np.clip(np.rint(np.exp(-moved) * 256 - 1), 0, 255).astype(np.uint8)
    return np.stack([table[:, c][pixels[..., c]] for c in range(3)], axis=-1)


def slide_statistics(image: SlideImage, centres: np.ndarray, mpp: float, *, stain_normalise: bool) -> Tensor:
    """Mean and deviation of the stain statistics around a slide's spots, float32 (2, n_statistics).

    Centres (n, 2) are in micrometres. If there are more than 512, 512 are taken evenly. Those within 64 pixels of the
    image's edge are left out if at least 64 others remain; if there are fewer than 64 in all, places all over the
    tissue are taken instead.
    """
    import torch

    from stimg._image._crops import read_crops
    from stimg.nn._stain import MAP_STRIDE, StainStatistics

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
        crops = read_crops(image, part, WINDOW, mpp, stain_normalise=stain_normalise)
        found.append(network(crops)[:, :, middle, middle].mean((2, 3)))
    values = torch.cat(found).double()
    return torch.stack([values.mean(0), values.std(0, correction=0).clamp(min=1e-3)]).float()
