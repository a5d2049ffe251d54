"""Files are told by what they hold; PNG and JPEG are decoded within bounds."""

import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

import stimg
from stimg._image import _whole
from stimg._image._files import file_mpp, open_file
from stimg._image._slide_image import open_image

ROWS, COLS = np.mgrid[:48, :64]
PIXELS = np.stack([250 - 3 * ROWS, 90 + 2 * COLS, 60 + 2 * ROWS + COLS], 2).astype(np.uint8)
GREY = PIXELS[..., 2]
RGB_OF_GREY = np.repeat(GREY[..., None], 3, 2)
ALPHA = (4 * COLS).astype(np.uint8)
ON_WHITE = PIXELS * (ALPHA[..., None] / 255) + 255 - ALPHA[..., None]
HALF_CLEAR = np.where(COLS[..., None] < 32, 255, RGB_OF_GREY)  # the left half is transparent


def shown(path, mpp=1.0):
    image = open_image(path, 1.0, "x")
    return image.read(0, 0, (int(image.shape[0] / mpp), int(image.shape[1] / mpp)), mpp).astype(float)


def palette(clear):
    image = Image.fromarray(np.where(COLS < 32, 0, GREY).astype(np.uint8), "P")
    image.putpalette([value for i in range(256) for value in (i, i, i)])
    return image, {"transparency": 0} if clear else {}


def cmyk():
    return Image.fromarray(np.concatenate([255 - PIXELS, np.full((48, 64, 1), 51, np.uint8)], 2), "CMYK")


KINDS = {
    "RGB": (lambda: (Image.fromarray(PIXELS), {}), "PNG", PIXELS, 0),
    "grey": (lambda: (Image.fromarray(GREY), {}), "PNG", RGB_OF_GREY, 0),
    "RGBA": (lambda: (Image.fromarray(np.dstack([PIXELS, ALPHA])), {}), "PNG", ON_WHITE, 1),
    "LA": (
        lambda: (Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), {}),
        "PNG",
        RGB_OF_GREY * (ALPHA[..., None] / 255) + 255 - ALPHA[..., None],
        1,
    ),
    "1 bit": (
        lambda: (Image.fromarray(GREY > 120), {}),
        "PNG",
        np.repeat((GREY > 120)[..., None] * 255, 3, 2),
        0,
    ),
    "16 bits": (lambda: (Image.fromarray(GREY.astype(np.uint16) * 257), {}), "PNG", RGB_OF_GREY, 0),
    "palette": (lambda: palette(False), "PNG", np.where(COLS[..., None] < 32, 0, RGB_OF_GREY), 0),
    "palette with a clear colour": (lambda: palette(True), "PNG", HALF_CLEAR, 0),
    "grey with a clear value": (
        lambda: (Image.fromarray(np.where(COLS < 32, 7, GREY).astype(np.uint8)), {"transparency": 7}),
        "PNG",
        HALF_CLEAR,
        0,
    ),
    "JPEG": (lambda: (Image.fromarray(PIXELS), {"quality": 95}), "JPEG", PIXELS, 8),
    "grey JPEG": (lambda: (Image.fromarray(GREY), {"quality": 95}), "JPEG", RGB_OF_GREY, 8),
    "progressive JPEG": (lambda: (Image.fromarray(PIXELS), {"progressive": True}), "JPEG", PIXELS, 12),
    "CMYK JPEG": (lambda: (cmyk(), {"quality": 95}), "JPEG", PIXELS * 0.8, 12),
}


@pytest.mark.parametrize("kind", KINDS)
def test_colours_are_right(tmp_path, monkeypatch, kind):
    make, form, expected, tolerance = KINDS[kind]
    image, how = make()
    image.save(tmp_path / "x", format=form, **how)
    assert np.abs(shown(tmp_path / "x") - expected).max() <= tolerance
    halves = np.asarray(expected, float).reshape(24, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(shown(tmp_path / "x", 2.0) - halves).max() <= tolerance + 1
    monkeypatch.setattr(_whole, "STRIP", 300)  # converted part by part
    assert np.abs(shown(tmp_path / "x", 2.0) - halves).max() <= tolerance + 1


def test_files_are_told_by_what_they_hold(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", format="JPEG", quality=95)
    Image.fromarray(PIXELS).save(tmp_path / "b.svs", format="PNG")
    tifffile.imwrite(tmp_path / "c.png", PIXELS, photometric="rgb", resolution=(2e4, 2e4), resolutionunit="CENTIMETER")
    for name, tolerance in (("a.tif", 8), ("b.svs", 0), ("c.png", 0)):
        assert np.abs(shown(tmp_path / name) - PIXELS).max() <= tolerance
    assert [file_mpp(tmp_path / name) for name in ("a.tif", "b.svs", "c.png")] == [None, None, 0.5]


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"GIF89a\x01\0\x01\0", "GIF"),
        (b"BM\x3a\0\0\0", "BMP"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"PK\x03\x04", "ZIP"),
        (b"<!DOCTYPE html><html>Please sign in", "web page"),
        (b"", "no image"),
        (b"P6\n1 1\n255\n\0\0\0", "no image"),
    ],
)
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.svs", "x.mrxs"])
def test_other_formats_are_refused_by_name(tmp_path, head, kind, name):
    (tmp_path / name).write_bytes(head)
    with pytest.raises(OSError, match=f"{name}.*{kind}.*PNG, JPEG, TIFF"):
        open_image(tmp_path / name, 1.0, "x")


def test_the_preview_of_a_scanners_file_is_not_taken_for_it(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "x.mrxs", format="JPEG")
    with pytest.raises(OSError, match="x.mrxs.*belong to it"):
        open_image(tmp_path / "x.mrxs", 1.0, "x")


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_pixels_are_taken_as_stored(tmp_path, form):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PIXELS).save(tmp_path / "x", format=form, exif=exif, quality=95)
    with pytest.warns(UserWarning, match="orientation 6"):
        assert np.abs(shown(tmp_path / "x") - PIXELS).max() <= 8
    exif[274] = 1
    Image.fromarray(PIXELS).save(tmp_path / "x", format=form, exif=exif, quality=95)
    shown(tmp_path / "x")


def png(width, height):
    """The start of a PNG file that claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_a_bomb_is_refused_with_the_cure(tmp_path):
    (tmp_path / "x.png").write_bytes(png(60_000, 60_000))
    with pytest.raises(OSError, match=r"60,000 x 60,000.*32,768 x 32,768.*--tile"):
        open_image(tmp_path / "x.png", 1.0, "x")


def test_images_beyond_the_limit_of_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (tmp_path / "large.png").write_bytes(png(20_000, 20_000))
    assert open_image(tmp_path / "large.png", 1.0, "x").shape == (20_000, 20_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for form in ("PNG", "JPEG"):
            Image.fromarray(PIXELS[:20, :20]).save(tmp_path / "x", format=form, quality=95)
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
            assert np.abs(shown(tmp_path / "x") - PIXELS[:20, :20]).max() <= 8


def test_large_images_lie_in_the_cache_without_a_name(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "x.png")
    monkeypatch.setattr(_whole, "MOST_IN_MEMORY", 100)
    cache = tmp_path / "cache"
    with stimg.settings.override(cachedir=cache):
        image = open_image(tmp_path / "x.png", 1.0, "x")
        assert np.array_equal(image.read(0, 0, (48, 64), 1.0), PIXELS)
        assert isinstance(image.levels[0].at(1)[0], np.memmap)
        assert not [one for one in cache.rglob("*") if one.is_file()]
        again = pickle.loads(pickle.dumps(image))
        assert np.array_equal(again.read(0, 0, (48, 64), 1.0), PIXELS)
        assert len(pickle.dumps(image)) < 2000
        monkeypatch.setattr(_whole.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 50}))
        with pytest.raises(OSError, match=r"cachedir"):
            open_image(tmp_path / "x.png", 1.0, "x").read(0, 0, (48, 64), 1.0)


def aperio(path):
    description = "Aperio Image Library v12.0\r\n320x192 (32x32) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"
    pixels = np.kron(PIXELS[::4, ::4][..., None], np.ones((16, 20, 1, 1), np.uint8))[..., 0].reshape(192, 320, 3)
    how = {"photometric": "rgb", "tile": (32, 32), "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, description=description, **how)
        file.write(pixels[::8, ::8].copy(), photometric="rgb", metadata=None)  # the thumbnail, which is always second
        file.write(pixels[::4, ::4].copy(), description=description, **how)
    return pixels


def test_scanners_files_are_read_by_openslide(tmp_path):
    pixels = aperio(tmp_path / "x.svs")
    image = open_image(tmp_path / "x.svs", file_mpp(tmp_path / "x.svs"), "x")
    assert image.mpp == 0.5
    assert [level.shape for level in image.levels] == [(192, 320, 3), (48, 80, 3)]
    assert np.array_equal(image.read(5, 10, (40, 50), 0.5), tifffile.imread(tmp_path / "x.svs")[10:50, 20:70])
    coarse = image.read(0, 0, (48, 80), 2.0)
    assert np.array_equal(coarse, image.levels[1][:, :])
    assert np.abs(coarse.astype(int) - pixels[::4, ::4]).mean() < 6
    assert (image.read(-10, 150, (30, 80), 0.5)[:, -40:] == 255).all()
    again = pickle.loads(pickle.dumps(image))
    assert np.array_equal(again.read(0, 0, (48, 80), 2.0), coarse)


def test_damaged_scanners_files_are_named(tmp_path):
    aperio(tmp_path / "x.svs")
    whole = (tmp_path / "x.svs").read_bytes()
    tifffile_offset = whole.index(b"\xff\xda")
    (tmp_path / "x.svs").write_bytes(whole[:tifffile_offset] + bytes(4000) + whole[tifffile_offset + 4000 :])
    with pytest.raises(OSError, match="x.svs"):
        for level in open_file(tmp_path / "x.svs"):
            level[:, :]


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("sharp_Channel_digital_image_CMYK_color_no_profile.jpg", (109.0, 132.1, 109.6)),
        ("vips_rgba.png", (206.9, 204.4, 208.6)),
        ("vips_indexed.png", (129.3, 118.2, 108.5)),
    ],
)
def test_real_files(real_cases_dir, name, mean):
    assert shown(real_cases_dir / "images" / name).reshape(-1, 3).mean(0) == pytest.approx(mean, abs=0.5)
