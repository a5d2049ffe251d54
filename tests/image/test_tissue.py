"""The tissue mask, on glass of any colour."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from stimg._image._slide_image import open_image
from stimg._image._tissue import tissue_mask

MPP = 8.0
SHAPE = (240, 300)
TISSUE = (185, 120, 170)


def blob():
    row, col = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return ((row - 110) / 70) ** 2 + ((col - 140) / 90) ** 2 < 1


def picture(glass, *, tissue=None, seed=0):
    """Textured tissue on glass of this colour with a little grain."""
    rng = np.random.default_rng(seed)
    tissue = blob() if tissue is None else tissue
    texture = np.exp(-np.abs(ndimage.gaussian_filter(rng.normal(size=SHAPE), 1))[..., None] * [1.0, 2.0, 0.8])
    stained = np.array(TISSUE) * texture
    pixels = np.where(tissue[..., None], stained * np.array(glass) / 255, glass) + rng.normal(0, 1.5, (*SHAPE, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def overlap(first, second):
    return (first & second).sum() / (first | second).sum()


@pytest.mark.parametrize(
    "glass", [(250, 250, 250), (233, 216, 230), (165, 170, 168), (240, 225, 205), (250, 235, 250)], ids=str
)
def test_tissue_is_found_on_glass_of_any_colour(glass):
    found = tissue_mask(picture(glass), MPP)
    assert overlap(found, blob()) > 0.97
    assert not found[~ndimage.binary_dilation(blob(), iterations=2)].any()


def test_a_coloured_haze_on_the_glass_is_not_tissue():
    pixels = picture((235, 219, 233)).astype(float)
    row, col = np.mgrid[: SHAPE[0], : SHAPE[1]]
    haze = 0.13 * np.exp(-(((row - 150) / 60) ** 2 + ((col - 230) / 60) ** 2))
    hazy = (pixels * np.exp(-haze[..., None] * [0.1, 1.0, 0.5])).astype(np.uint8)
    assert overlap(tissue_mask(hazy, MPP), blob()) > 0.97


def test_shadows_printed_frames_ink_and_padding_are_not_tissue():
    pixels = picture((238, 236, 240)).astype(float)
    row, col = np.mgrid[: SHAPE[0], : SHAPE[1]]
    pixels *= (1 - 0.3 * ((row / 240 - 0.5) ** 2 + (col / 300 - 0.5) ** 2))[..., None]
    for at in range(10, 280, 22):  # rings of a frame
        ring = np.abs(np.hypot(row - 12, col - at) - 5) < 1.5
        pixels[ring] *= 0.5
    pixels[200:208, 20:150] = (30, 60, 180)
    pixels[200:208, 160:280] = (20, 120, 60)
    pixels[225:] = 0
    for width, colour in ((30, 255), (25, 0)):
        pixels = np.pad(pixels, ((width, width), (width, width), (0, 0)), constant_values=colour)
    found = tissue_mask(pixels.astype(np.uint8), MPP)[55:-55, 55:-55]
    assert overlap(found, blob()) > 0.96


def test_an_image_without_glass_is_all_tissue():
    everywhere = np.ones(SHAPE, dtype=bool)
    pixels = picture((250, 250, 250), tissue=everywhere)
    assert tissue_mask(pixels, MPP).all()
    padded = np.pad(pixels, ((40, 0), (0, 0), (0, 0)))
    assert tissue_mask(padded, MPP)[44:].all()
    assert not tissue_mask(padded, MPP)[:40].any()


def test_glass_alone_has_no_tissue():
    nowhere = np.zeros(SHAPE, dtype=bool)
    assert not tissue_mask(picture((233, 216, 230), tissue=nowhere), MPP).any()
    assert not tissue_mask(np.full((*SHAPE, 3), 255, np.uint8), MPP).any()
    assert not tissue_mask(np.zeros((*SHAPE, 3), np.uint8), MPP).any()


def test_grey_images():
    grey = np.repeat(picture((240, 240, 240)).mean(2, keepdims=True).astype(np.uint8), 3, axis=2)
    assert overlap(tissue_mask(grey, MPP), blob()) > 0.96


def test_what_glows_on_black_is_kept():
    pixels = np.where(blob()[..., None], picture((255, 255, 255)), 0).astype(np.uint8)
    assert overlap(tissue_mask(pixels, MPP), blob()) > 0.9


@pytest.mark.real
@pytest.mark.slow
def test_real_sections_of_which_all_tissue_was_measured(real_sections):
    for name, image, centres, pitch_um in real_sections:
        mask, mpp = image.tissue
        at = (centres / mpp).astype(int)
        assert mask[at[:, 0], at[:, 1]].mean() > 0.96, name
        far = cKDTree(centres).query((np.argwhere(mask) + 0.5) * mpp)[0] > pitch_um
        assert far.mean() < 0.05, name


@pytest.mark.real
def test_a_real_slide_of_another_scanner(real_cases_dir):
    image = open_image(real_cases_dir / "images" / "vips_CMU-1-Small-Region.svs", 0.499, "CMU-1")
    mask, _ = image.tissue
    pixels = image.overview()
    assert 0.3 < mask.mean() < 0.95
    assert np.median(pixels[~mask].min(1)) > 225 > np.median(pixels[mask].min(1)) + 20
