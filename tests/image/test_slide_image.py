"""Images read in pieces."""

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stimg._image._crops import read_crop
from stimg._image._files import file_mpp
from stimg._image._slide_image import SlideImage, open_image
from stimg._image._stain import REFERENCE_STAIN, normalise_stain, optical_density

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_shrinking_averages_areas():
    image = open_image(PIXELS, 0.5, "x")
    found = image.read(0, 0, (15, 20), 2.0)
    expected = PIXELS.reshape(15, 4, 20, 4, 3).mean((1, 3))
    assert np.abs(found - expected).max() <= 0.5 + 1e-3


def test_at_its_own_resolution_nothing_changes():
    assert np.array_equal(open_image(PIXELS, 0.5, "x").read(5, 10, (20, 30), 0.5), PIXELS[10:30, 20:50])


@settings(deadline=None, max_examples=40)
@given(st.floats(-30, 60), st.floats(-30, 80), st.floats(0.2, 5.0))
def test_a_pixel_does_not_depend_on_its_window(top, left, mpp):
    image = open_image(PIXELS, 1.0, "x")
    whole = image.read(top, left, (16, 16), mpp)
    part = image.read(top + 5 * mpp, left + 7 * mpp, (8, 9), mpp)
    assert np.abs(whole[5:13, 7:16].astype(int) - part).max() <= 1


def test_outside_is_white():
    found = open_image(PIXELS, 1.0, "x").read(-20, 70, (30, 30), 1.0)
    assert (found[:20] == 255).all() and (found[:, 10:] == 255).all()
    assert np.array_equal(found[20:, :10], PIXELS[:10, 70:])


def test_the_coarsest_level_that_is_fine_enough_is_read():
    levels = [np.full((64, 64, 3), 10, np.uint8), np.full((16, 16, 3), 20, np.uint8)]
    image = SlideImage(levels, 1.0)
    assert image.read(0, 0, (4, 4), 2.0)[0, 0, 0] == 10
    assert image.read(0, 0, (4, 4), 4.0)[0, 0, 0] == 20
    assert image.read(8, 8, (4, 4), 0.5)[0, 0, 0] == 10


class Counted:
    """An array that knows which pixels were asked for."""

    shape, dtype = (100_000, 100_000, 3), np.dtype(np.uint8)

    def __init__(self):
        self.asked = 0

    def __getitem__(self, key):
        size = tuple(s.stop - s.start for s in key)
        self.asked += size[0] * size[1]
        return np.zeros((*size, 3), np.uint8)


def test_only_the_window_is_read():
    level = Counted()
    open_image(level, 0.25, "big").read(9000, 8000, (128, 128), 0.5)
    assert level.asked <= 258**2


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (PIXELS[..., 0], np.repeat(PIXELS[..., :1], 3, 2)),
        (PIXELS[..., :1], np.repeat(PIXELS[..., :1], 3, 2)),
        (np.moveaxis(PIXELS, 2, 0), PIXELS),
        (PIXELS.astype(np.uint16) * 257, PIXELS),
        (PIXELS / 255, PIXELS),
        (np.concatenate([PIXELS, np.full((60, 80, 1), 255, np.uint8)], 2), PIXELS),
        (np.concatenate([PIXELS, np.zeros((60, 80, 1), np.uint8)], 2), np.full_like(PIXELS, 255)),
    ],
    ids=["grey", "one channel", "channels first", "16 bits", "floats", "opaque", "transparent"],
)
def test_kinds_of_pixels(source, expected):
    assert np.array_equal(open_image(source, 1.0, "x").read(0, 0, (60, 80), 1.0), expected)


@pytest.mark.parametrize(
    "wrong", [np.zeros((5, 5, 2), np.uint8), np.zeros(5), np.zeros((5, 5), bool), np.zeros((0, 5))]
)
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(ValueError, match="'tumour'"):
        open_image(wrong, 1.0, "tumour")


def test_floats_beyond_one_are_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        open_image(PIXELS.astype(float), 1.0, "x").read(0, 0, (5, 5), 1.0)


def test_png_and_jpeg(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "x.png")
    image = open_image(tmp_path / "x.png", 1.0, "x")
    assert image.shape == (60, 80)
    coarse = image.read(0, 0, (15, 20), 4.0)
    assert np.abs(coarse - PIXELS.reshape(15, 4, 20, 4, 3).mean((1, 3))).max() <= 1
    assert image.levels[0]._kept[0].shape == (15, 20, 3)  # no more than is needed is kept
    assert np.array_equal(image.read(0, 0, (60, 80), 1.0), PIXELS)
    Image.fromarray(PIXELS).save(tmp_path / "x.jpg", quality=100)
    assert open_image(tmp_path / "x.jpg", 1.0, "x").read(0, 0, (60, 80), 1.0).shape == (60, 80, 3)


def test_tiff_pyramid_with_its_resolution(tmp_path):
    path = tmp_path / "x.ome.tif"
    with tifffile.TiffWriter(path) as file:
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"}
        file.write(PIXELS, tile=(32, 32), subifds=1, photometric="rgb", metadata=metadata)
        file.write(PIXELS[::4, ::4].copy(), subfiletype=1, tile=(16, 16), photometric="rgb")
    assert file_mpp(path) == 0.5
    image = open_image(path, 0.5, "x")
    assert len(image.levels) == 2
    assert np.array_equal(image.read(0, 0, (60, 80), 0.5), PIXELS)
    assert np.array_equal(image.read(0, 0, (15, 20), 2.0), PIXELS[::4, ::4])


def test_resolution_tags(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", PIXELS, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    assert file_mpp(tmp_path / "x.tif") == pytest.approx(0.5)
    tifffile.imwrite(tmp_path / "y.tif", PIXELS, resolution=(72, 72), resolutionunit="INCH")
    assert file_mpp(tmp_path / "y.tif") is None


@pytest.mark.parametrize("name", ["x.tif", "x.png", "x.jpg"])
def test_damaged_files_are_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"no image at all" * 10)
    with pytest.raises(OSError, match=name):
        open_image(path, 1.0, "x")
    Image.fromarray(PIXELS).save(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(OSError, match=name):
        open_image(path, 1.0, "x").read(0, 0, (60, 80), 1.0)
    with pytest.raises(FileNotFoundError, match="absent"):
        open_image(tmp_path / "absent.png", 1.0, "x")


def tissue_image():
    pixels = np.full((200, 200, 3), 245, np.uint8)
    pixels[60:140, 40:160] = (200, 120, 180)
    pixels[10, 10] = (120, 30, 90)  # dust
    return open_image(pixels, 8.0, "x")


def test_tissue_is_found_and_dust_is_not():
    mask, mpp = tissue_image().tissue
    assert mpp == 8.0
    assert mask[60:140, 40:160].all()
    assert mask.sum() == 80 * 120


def test_stains_are_brought_to_the_reference_and_glass_stays_white():
    rng = np.random.default_rng(0)
    pixels = np.full((100, 100, 3), 250, np.uint8)
    pixels[20:80, 20:80] = rng.normal((170, 110, 150), (25, 30, 20), (60, 60, 3)).clip(20, 199).astype(np.uint8)
    image = open_image(pixels, 8.0, "x")
    moved = normalise_stain(pixels, image.stain)
    density = optical_density(moved[image.tissue[0]])
    assert np.abs(density.mean(0) - REFERENCE_STAIN[0]).max() < 0.05
    assert (moved[:15] > 235).all()
    assert moved.dtype == np.uint8


def test_crops_are_mirrored_at_the_edge_of_the_image():
    image = open_image(PIXELS, 1.0, "x")
    options = {"stain_normalise": False}
    mirrored = np.pad(PIXELS, ((20, 20), (20, 20), (0, 0)), mode="symmetric")
    for top, left in ((-20, -20), (-7, 60), (55, 3), (10, 10)):
        crop = read_crop(image, (top, left), 25, 1.0, **options).permute(1, 2, 0).numpy()
        assert np.array_equal(crop, mirrored[top + 20 : top + 45, left + 20 : left + 45])
    for crop in (
        read_crop(open_image(np.full((50, 50, 3), 90, np.uint8), 1.0, "x"), (-8.3, -9.1), 64, mpp, **options)
        for mpp in (0.4, 1.0, 1.7)
    ):
        assert (crop == 90).all()
    far = read_crop(image, (-60, 0), 25, 1.0, **options).permute(1, 2, 0).numpy()
    assert np.array_equal(far, PIXELS[35:60, :25][::-1])


@pytest.mark.parametrize(
    "levels",
    [
        [],
        [PIXELS[::2, ::2], PIXELS],
        [PIXELS, PIXELS[::2, ::4]],
        [PIXELS, PIXELS[::2, ::2].transpose(1, 0, 2)],
    ],
    ids=["none", "coarse first", "stretched", "turned"],
)
def test_levels_that_are_not_one_picture_are_refused(levels):
    with pytest.raises(ValueError, match="levels of image 'x' to be one picture, finest first"):
        open_image(levels, 1.0, "x")


def test_levels_whose_sizes_are_rounded_are_one_picture():
    assert len(open_image([PIXELS, PIXELS[:15, :20], PIXELS[:8, :10], PIXELS[:4, :5]], 1.0, "x").levels) == 4


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_that_resampling_left_a_little_beyond_0_and_1(dtype):
    found = open_image((PIXELS / 255 * 1.001 - 0.0005).astype(dtype), 1.0, "x").read(0, 0, (60, 80), 1.0)
    assert np.abs(found.astype(int) - PIXELS).max() <= 1


def test_pixels_without_a_value_are_white():
    part = np.where(np.arange(80)[:, None] < 40, np.nan, PIXELS / 255)
    image = open_image(part, 1.0, "x")
    assert (image.read(0, 0, (60, 40), 1.0) == 255).all()
    assert np.array_equal(image.read(0, 40, (60, 40), 1.0), PIXELS[:, 40:])


@pytest.mark.parametrize(
    ("pixels", "cure"),
    [
        (PIXELS.astype(float), "Divide the image by 255"),
        (PIXELS / 127.5 - 1, "Rescale"),
        (PIXELS.astype(np.int64), r"`image.astype\('uint8'\)`"),
        (PIXELS > 9, "found bool"),
    ],
)
def test_other_values_are_refused_with_the_cure(pixels, cure):
    with pytest.raises(ValueError, match=cure):
        open_image(pixels, 1.0, "x").read(0, 0, (60, 80), 1.0)
