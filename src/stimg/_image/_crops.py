"""Square crops of H&E as torch tensors, and what their stain looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stimg._image._footprints import wholly_inside
from stimg.nn._stain import MAP_STRIDE, StainStatistics

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stimg._image._slide_image import SlideImage

FEWEST_PLACES, MOST_PLACES = 64, 512
WINDOW = 128  # pixels: holds the widest statistic around the pixels that are averaged
MIDDLE = 10  # pixels of the map averaged in the middle of a crop: 80 um at 2 um per pixel, about a spot
BATCH = 32


def read_crop(
    image: SlideImage,
    corner: Sequence[float] | np.ndarray,
    size: int,
    mpp: float,
    *,
    stain_normalise: bool,
    flip: bool = False,
    turns: int = 0,
) -> Tensor:
    """Read the square whose upper-left `corner` (row, column) is in micrometres, uint8 (3, size, size).

    What lies outside the image is mirrored. `flip` exchanges left and right; then the crop is turned anticlockwise by
    `turns` quarters.
    """
    pixels = _read_mirrored(image, corner, size, mpp, stain_normalise=stain_normalise)
    pixels = np.rot90(pixels[:, ::-1] if flip else pixels, turns)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def read_crops(
    image: SlideImage, corners: Iterable[np.ndarray], size: int, mpp: float, *, stain_normalise: bool
) -> Tensor:
    """Read several squares, float32 (n, 3, size, size) in [0, 1]. What lies outside the image is mirrored."""
    crops = [_read_mirrored(image, corner, size, mpp, stain_normalise=stain_normalise) for corner in corners]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def _read_mirrored(
    image: SlideImage, corner: Sequence[float] | np.ndarray, size: int, mpp: float, *, stain_normalise: bool
) -> np.ndarray:
    """Read a square, uint8 (size, size, 3), in which the image continues mirrored beyond its edges.

    White beyond an edge would look like the rim of the tissue, and so change what is predicted near it.
    """
    edge = max(0.0, (image.mpp - mpp) / 2)  # where a coarser image would be interpolated with what is outside
    axes = []
    for start, n_pixels in zip(corner, image.shape, strict=True):
        first = int(np.ceil((edge - start) / mpp - 1e-6))
        number = max(1, int(np.floor((n_pixels * image.mpp - edge - start) / mpp + 1e-6)) - first)
        place = (np.arange(size) - first) % (2 * number)
        axes.append(first + np.minimum(place, 2 * number - 1 - place))
    low, high = (np.array([pick(axis) for axis in axes]) for pick in (np.min, np.max))
    top, left = np.asarray(corner, dtype=np.float64) + low * mpp
    height, width = (int(side) for side in high - low + 1)
    pixels = image.read(float(top), float(left), (height, width), mpp, stain_normalise=stain_normalise)
    return pixels[np.ix_(*(axis - start for axis, start in zip(axes, low, strict=True)))]


def slide_statistics(image: SlideImage, centres: np.ndarray, mpp: float, *, stain_normalise: bool) -> Tensor:
    """Return mean and deviation of the stain statistics around the spots of a slide, float32 (2, n_statistics).

    Centres (n, 2) are in micrometres; at most 512 of them are used, evenly chosen. Those within 64 pixels of the
    image's edge are left out if at least 64 others remain. If there are fewer than 64 in all, places all over the
    tissue are used instead.
    """
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
    network, found = StainStatistics(), [torch.empty(0, 2 * StainStatistics.channels)]
    first = (size // MAP_STRIDE - MIDDLE) // 2
    middle = slice(first, first + MIDDLE)
    for start in range(0, len(corners), BATCH):
        maps = network(read_crops(image, corners[start : start + BATCH], size, mpp, stain_normalise=stain_normalise))
        found.append(torch.cat([maps[:, :, middle, middle].mean((2, 3)), maps.mean((2, 3))], 1))
    return torch.cat(found)
