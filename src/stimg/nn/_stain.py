"""Local statistics of the stain of H&E."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAP_STRIDE = 4
STAIN_WIDTHS = (3, 13, 25)  # pixels of the map: 24, 104 and 200 um at 2 um per pixel of the image
TEXTURE_SCALES = (1, 2, 4)  # pixels of the image
WIDE_WEIGHT = 0.3


class StainStatistics(nn.Module):
    """Statistics of the stain around each pixel of the map.

    These are the mean and standard deviation of each channel's optical density over several widths and, over the
    narrowest and the widest, how much each channel changes from pixel to pixel at several scales (nuclei, fibres). They
    predict much of a spot's expression, and a few hundred spots are enough to learn how. Comparing them with the
    slide's other spots removes most of the differences between laboratories' stains (as AdaBN does with a network's
    features, arXiv 1603.04779).

    `weights`, float32 (channels,), are 1 for the narrowest width and less for wider ones. A penalised regression on
    statistics times weights prefers what is near, so that the map is as sharp as the spots allow.
    """

    channels = 3 * 2 * len(STAIN_WIDTHS) + 3 * 2 * len(TEXTURE_SCALES)

    def __init__(self) -> None:
        super().__init__()
        near, far = [1.0], [WIDE_WEIGHT]
        moments = 6 * near + 6 * (len(STAIN_WIDTHS) - 1) * far
        self.weights = torch.tensor(moments + len(TEXTURE_SCALES) * (3 * near + 3 * far))

    def forward(self, images: Tensor) -> Tensor:
        """Return statistics of images in [0, 1], float32 (n, channels, h / 4, w / 4), not yet standardised."""
        density = -torch.log(images.clamp(min=1 / 255))
        moments = F.avg_pool2d(torch.cat([density, density.square()], 1), MAP_STRIDE)
        found = []
        for width in STAIN_WIDTHS:
            mean, square = mean_around(moments, width).chunk(2, 1)
            found += [mean, (square - mean.square()).clamp(min=1e-6).sqrt()]
        for scale in TEXTURE_SCALES:
            level = F.avg_pool2d(density, scale)
            changes = (level - mean_around(level, 3)).abs()
            pooled = F.avg_pool2d(changes, MAP_STRIDE // scale)
            found += [mean_around(pooled, width) for width in (STAIN_WIDTHS[0], STAIN_WIDTHS[-1])]
        return torch.cat(found, 1)


def mean_around(x: Tensor, width: int) -> Tensor:
    """Return the mean of the `width` x `width` pixels around each pixel that lie inside the image."""
    half = width // 2
    rows = F.avg_pool2d(x, (width, 1), 1, (half, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, width), 1, (0, half), count_include_pad=False)
