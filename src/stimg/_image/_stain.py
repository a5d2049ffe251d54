"""The stain of H&E: normalised to a reference, and measured around the spots of a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stimg._image._footprints import wholly_inside

if TYPE_CHECKING:
    from torch import Tensor

    from stimg._image._slide_image import SlideImage

# Mean and deviation of the optical density (red, green, blue) of tissue, averaged over five sections (her2st C2 to C6).
REFERENCE_STAIN = (np.array([0.666, 0.763, 0.432]), np.array([0.339, 0.307, 0.171]))
FEWEST_PLACES, MOST_PLACES = 64, 512
WINDOW = 128  # pixels: holds the widest statistic around the pixels that are averaged
MIDDLE = 10  # pixels of the map averaged in the middle of a crop: 80 um at 2 um per pixel, about a spot
BATCH = 32


def optical_density(pixels: np.ndarray) -> np.ndarray:
    """Return the optical density, float64, of uint8 values; that of white is 0."""
    return -np.log((pixels.astype(np.float64) + 1) / 256)


def normalise_stain(pixels: np.ndarray, stain: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Match the mean and deviation of each channel's optical density to a reference (after Reinhard 2001).

    Pixels are uint8 (h, w, 3), and `stain` is that of the slide, from `SlideImage.stain`.
    """
    mean, sd = REFERENCE_STAIN
    # A channel has only 256 values, so a table of them is enough.
    density = optical_density(np.arange(256)[:, None])
    moved = (density - stain[0]) / stain[1] * sd + mean
    pale = density < density[200]  # background stays white
    moved = np.where(pale, np.maximum(moved[200], 0) * density / density[200], moved)
    table = np.clip(np.rint(np.exp(-moved) * 256 - 1), 0, 255).astype(np.uint8)
    return np.stack([table[:, c][pixels[..., c]] for c in range(3)], axis=-1)


def slide_statistics(image: SlideImage, centres: np.ndarray, mpp: float, *, stain_normalise: bool) -> Tensor:
    """Return mean and deviation of the stain statistics around the spots of a slide, float32 (2, n_statistics).

    Centres (n, 2) are in micrometres; at most 512 of them are used, evenly chosen. Those within 64 pixels of the
    image's edge are left out if at least 64 others remain. If there are fewer than 64 in all, places all over the
    tissue are used instead.
    """
    import torch

    from stimg.nn._stain import StainStatistics

    whole = wholly_inside(centres, WINDOW / 2 * mpp, np.array(image.shape) * image.mpp)
    centres = centres[whole] if whole.sum() >= FEWEST_PLACES else centres
    if len(centres) < FEWEST_PLACES and image.tissue[0].any():
        mask, mask_mpp = image.tissue
        centres = (np.argwhere(mask) + 0.5) * mask_mpp
    chosen = np.unique(np.linspace(0, len(centres) - 1, MOST_PLACES).round().astype(int))
    # On whole pixels, like the network's blocks and crops: resampling between pixels would blur the image.
    corners = np.round(centres[chosen] / mpp - WINDOW / 2) * mpp
    found = crop_statistics(image, corners, WINDOW, mpp, stain_normalise=stain_normalise)
    values = found[:, : StainStatistics.channels].double()
    return torch.stack([values.mean(0), values.std(0, correction=0).clamp(min=1e-3)]).float()


def crop_statistics(image: SlideImage, corners: np.ndarray, size: int, mpp: float, *, stain_normalise: bool) -> Tensor:
    """Return the mean stain statistics in the middle of each crop, then over all of it, float32 (n, 2 * n_statistics).

    Corners (n, 2) are the crops' top and left in micrometres, and `size` is their side in pixels.
    """
    import torch

    from stimg._image._crops import read_crops
    from stimg.nn._stain import MAP_STRIDE, StainStatistics

    network, found = StainStatistics(), [torch.empty(0, 2 * StainStatistics.channels)]
    first = (size // MAP_STRIDE - MIDDLE) // 2
    middle = slice(first, first + MIDDLE)
    for start in range(0, len(corners), BATCH):
        maps = network(read_crops(image, corners[start : start + BATCH], size, mpp, stain_normalise=stain_normalise))
        found.append(torch.cat([maps[:, :, middle, middle].mean((2, 3)), maps.mean((2, 3))], 1))
    return torch.cat(found)
