"""The stain of H&E, normalised to a reference."""

from __future__ import annotations

import numpy as np

# Mean and deviation of the optical density (red, green, blue) of tissue, averaged over five sections (her2st C2 to C6).
REFERENCE_STAIN = (np.array([0.666, 0.763, 0.432]), np.array([0.339, 0.307, 0.171]))


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
