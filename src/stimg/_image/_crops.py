"""Square crops of H&E as torch tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stimg._image._slide_image import SlideImage


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

    `flip` exchanges left and right; then the crop is turned anticlockwise by `turns` quarters.
    """
    pixels = image.read(corner[0], corner[1], (size, size), mpp, stain_normalise=stain_normalise)
    pixels = np.rot90(pixels[:, ::-1] if flip else pixels, turns)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def read_crops(
    image: SlideImage, corners: Iterable[np.ndarray], size: int, mpp: float, *, stain_normalise: bool
) -> Tensor:
    """Read several squares, float32 (n, 3, size, size) in [0, 1]."""
    crops = [image.read(top, left, (size, size), mpp, stain_normalise=stain_normalise) for top, left in corners]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
