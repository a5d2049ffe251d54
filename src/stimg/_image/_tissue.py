"""Where the tissue is on a slide image, whatever the colour of the glass."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import ndimage

from stimg._image._stain import optical_density

# Texture is the deviation of the optical density among neighbouring pixels. That of glass is the lower of two classes.
GRAIN = 0.003  # added, since perfect smoothness means nothing
ANY_GLASS = 0.012  # whatever has less texture is as smooth as glass
ROUGH, CONTRAST = 0.025, 5.0  # a lower class above this is tissue too, unless the upper one has so many times more
PALE, CLEAR = 0.25, 1.0  # glass: most difference between the colours' optical densities, and most density
TINTED = 0.12  # what differs more between its colours is tissue if there is no other
LEAST_GLASS = 1e-3  # share of the pixels
LEAST_STAIN, FLAT_STAIN = 0.03, 0.18  # of textured tissue, and of any; see `tissue_mask`
BLACK, BLACK_SIDE = 50, 9  # brightest value of what was not scanned, and the least side of such areas in pixels
CLOSE_UM, HOLE_UM, PART_UM = 16.0, 100.0, 200.0


def tissue_mask(pixels: np.ndarray, mpp: float) -> np.ndarray:
    """Return where the tissue is, bool (h, w), on H&E, uint8 (h, w, 3), at about 8 micrometres per pixel or coarser.

    Stain is the difference between the colours' optical densities beyond those of the glass (in grey images the
    density itself): tinted or grey glass, shadows, dust and printed frames have none. Tissue is stained and textured (a
    coloured haze on the glass is smooth) or strongly stained, and each part of it somewhere reaches 0.9 of the median.
    Gaps of 32 micrometres are closed; parts less than 200 and holes less than 100 micrometres across are ignored. Blue
    and green ink and black padding are left out. An image without glass, or of one colour, is all tissue.
    """
    from skimage.filters import apply_hysteresis_threshold

    density = optical_density(np.arange(256)).astype(np.float32)[np.moveaxis(pixels, 2, 0)]
    black = pixels.max(2) < BLACK
    padding = ndimage.maximum_filter(ndimage.binary_opening(black, np.ones((BLACK_SIDE, BLACK_SIDE))), 7)
    smooth = _smooth(density[1], ~padding)
    glass = _glass(density, smooth)
    if glass is None:
        return ~padding
    beyond = np.maximum(density - glass[:, None, None], 0)
    grey = bool((pixels == pixels[..., :1]).all())
    stain = beyond.max(0) - (0 if grey else beyond.min(0))
    ink = beyond[0] > 1.25 * beyond[1] + LEAST_STAIN  # more red taken from the light than green
    stain[padding | ink | (smooth & (stain < FLAT_STAIN))] = 0
    stained = stain[stain > LEAST_STAIN]
    seed = 0.9 * np.median(stained) if stained.size else np.inf
    mask = _cleaned(apply_hysteresis_threshold(stain, LEAST_STAIN, seed), mpp)
    return ~padding if not mask.any() and np.ptp(glass) > TINTED else mask


def _smooth(density: np.ndarray, scanned: np.ndarray) -> np.ndarray:
    """Tell which of the scanned pixels are as smooth as glass, bool (h, w): the lower of two classes of texture."""
    from skimage.filters import threshold_otsu

    variance = ndimage.uniform_filter(density**2, 3) - ndimage.uniform_filter(density, 3) ** 2
    texture = np.log(np.maximum(ndimage.uniform_filter(np.maximum(variance, 0), 5), 0) + GRAIN**2) / 2
    if not (inside := texture[scanned]).size:
        return scanned
    limit = threshold_otsu(inside)
    lower, upper = inside[inside <= limit].mean(), inside[inside >= limit].mean()
    if lower > np.log(ROUGH) and upper < lower + np.log(CONTRAST):
        return np.zeros_like(scanned)
    return scanned & (texture <= max(limit, np.log(ANY_GLASS)))


def _glass(density: np.ndarray, smooth: np.ndarray) -> np.ndarray | None:
    """Return the optical density of glass, float32 (3,): of the brightest smooth and pale pixels; `None` without any.

    Pure white, which may be padding, counts only if there is no other glass.
    """
    lowest, highest = density.min(0), density.max(0)
    candidates = smooth & (highest - lowest < PALE) & (highest < CLEAR)
    for chosen in (candidates & (highest > optical_density(np.array(254))), candidates):
        if chosen.mean() > LEAST_GLASS:
            found = density[:, chosen]
            brightness = found.mean(0)
            return np.median(found[:, brightness <= np.percentile(brightness, 5) + 0.1], axis=1)
    return None


def _cleaned(mask: np.ndarray, mpp: float) -> np.ndarray:
    """Close gaps, then remove small parts and holes."""
    from skimage.morphology import isotropic_closing, remove_small_holes, remove_small_objects

    part, hole = (max(1, int((side / mpp) ** 2)) for side in (PART_UM, HOLE_UM))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # scikit-image renamed the argument for the size
        return remove_small_holes(remove_small_objects(isotropic_closing(mask, CLOSE_UM / mpp), part), hole)
