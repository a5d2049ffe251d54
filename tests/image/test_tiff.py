"""TIFF files of all kinds: the right colours, or a refusal that names what the file holds."""

import pickle
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

import stimg
from stimg._image import _slide_image, _tiff, _whole
from stimg._image._files import open_file
from stimg._image._slide_image import open_image

# Smooth, so that JPEG keeps it, and with different colours in its four corners.
ROWS, COLS = np.mgrid[:48, :64]
PIXELS = np.stack([250 - 3 * ROWS, 90 + 2 * COLS, 60 + 2 * ROWS + COLS], 2).astype(np.uint8)
GREY = PIXELS[..., 2]
RGB_OF_GREY = np.repeat(GREY[..., None], 3, 2)
ALPHA = (4 * COLS).astype(np.uint8)[..., None]
ON_WHITE = PIXELS * (ALPHA / 255) + 255 - ALPHA


def stored(path, pixels, **how):
    tifffile.imwrite(path / "x.tif", pixels, **how)
    return path / "x.tif"


def by_hand(path, data, shape, photometric, bits, compression=1, *, samples=1, tags=()):
    """Write a TIFF file of one strip with the tags given, for what tifffile does not write."""
    entries = [
        (256, 4, [shape[1]]),
        (257, 4, [shape[0]]),
        (258, 3, [bits] * samples),
        (259, 3, [compression]),
        *([] if photometric is None else [(262, 3, [photometric])]),
        (273, 4, [8]),
        (277, 3, [samples]),
        (278, 4, [shape[0]]),
        (279, 4, [len(data)]),
        *tags,
    ]
    data += b"\0" * (len(data) % 2)
    directory, beyond = b"", b""
    start = 8 + len(data) + 2 + 12 * len(entries) + 4
    for code, kind, values in sorted(entries):
        packed = struct.pack(f"<{len(values)}{'HII'[kind - 3]}", *values)  # 16 or 32 bits, or fractions
        if len(packed) > 4:
            beyond, packed = beyond + packed, struct.pack("<I", start + len(beyond))
        directory += struct.pack("<HHI", code, kind, len(values) // (2 if kind == 5 else 1)) + packed.ljust(4, b"\0")
    header = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    (path / "x.tif").write_bytes(header + data + struct.pack("<H", len(entries)) + directory + b"\0\0\0\0" + beyond)
    return path / "x.tif"


def shown(path):
    image = open_image(path, 1.0, "x")
    return image.read(0, 0, image.shape, 1.0)


def channels(*names):
    return {"axes": "CYX", "Channel": {"Name": list(names)}}


def twelve_bits(path):
    """Two values in three bytes."""
    first, second = (GREY.astype(int) * 16).reshape(-1, 2).T
    data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    return by_hand(path, data, GREY.shape, 1, 12)


PLANES = np.moveaxis(PIXELS, 2, 0).copy()
RAMP = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2]) * 257
BIT = GREY > 120
VIDEO_RANGE = [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1]
CMYK = np.concatenate([255 - PIXELS, np.full((48, 64, 1), 51, np.uint8)], 2)
RIGHT = {
    "rgb": (lambda p: stored(p, PIXELS, photometric="rgb"), PIXELS, 0),
    "tiles": (lambda p: stored(p, PIXELS, photometric="rgb", tile=(16, 32), compression="lzw"), PIXELS, 0),
    "BigTIFF": (lambda p: stored(p, PIXELS, photometric="rgb", bigtiff=True), PIXELS, 0),
    "planes": (lambda p: stored(p, PLANES, photometric="rgb", planarconfig="separate"), PIXELS, 0),
    "planes in tiles": (
        lambda p: stored(p, PLANES, photometric="rgb", planarconfig="separate", tile=(16, 16), compression="zlib"),
        PIXELS,
        0,
    ),
    "rgb called grey": (lambda p: stored(p, PIXELS, photometric="minisblack", planarconfig="contig"), PIXELS, 0),
    "grey": (lambda p: stored(p, GREY, photometric="minisblack"), RGB_OF_GREY, 0),
    "white is zero": (lambda p: stored(p, 255 - GREY, photometric="miniswhite"), RGB_OF_GREY, 0),
    "white is zero, 16 bits": (
        lambda p: stored(p, (255 - GREY).astype(np.uint16) * 257, photometric="miniswhite"),
        RGB_OF_GREY,
        0,
    ),
    "palette": (
        lambda p: stored(p, GREY, photometric="palette", colormap=RAMP.astype(np.uint16)),
        (RAMP // 257).T[GREY],
        0,
    ),
    "palette of 8 bits": (
        lambda p: stored(p, GREY, photometric="palette", colormap=(RAMP // 257).astype(np.uint16)),
        (RAMP // 257).T[GREY],
        0,
    ),
    "one bit": (lambda p: stored(p, BIT, photometric="minisblack"), np.repeat(BIT[..., None] * 255, 3, 2), 0),
    "one bit, white is zero": (
        lambda p: stored(p, ~BIT, photometric="miniswhite"),
        np.repeat(BIT[..., None] * 255, 3, 2),
        0,
    ),
    "four bits": (
        lambda p: by_hand(p, (GREY[:, ::2] & 240 | GREY[:, 1::2] >> 4).tobytes(), GREY.shape, 1, 4),
        RGB_OF_GREY // 16 * 17,
        0,
    ),
    "twelve bits": (twelve_bits, RGB_OF_GREY, 1),
    "16 bits": (lambda p: stored(p, PIXELS.astype(np.uint16) * 257, photometric="rgb"), PIXELS, 0),
    "16 bits, big-endian": (
        lambda p: stored(p, (PIXELS.astype(np.uint16) * 257).astype(">u2"), photometric="rgb", byteorder=">"),
        PIXELS,
        0,
    ),
    "12 bits in 16, by a tag": (
        lambda p: stored(p, GREY.astype(np.uint16) * 16, photometric="minisblack", extratags=[(281, 3, 1, 4095, True)]),
        RGB_OF_GREY,
        1,
    ),
    "8 bits in 16, by a tag": (
        lambda p: stored(p, GREY.astype(np.uint16), photometric="minisblack", extratags=[(281, 3, 1, 255, True)]),
        RGB_OF_GREY,
        1,
    ),
    "floats": (lambda p: stored(p, (PIXELS / 255).astype(np.float32), photometric="rgb"), PIXELS, 0),
    "white is zero, floats": (
        lambda p: stored(p, ((255 - GREY) / 255).astype(np.float32), photometric="miniswhite"),
        RGB_OF_GREY,
        0,
    ),
    "JPEG in YCbCr": (lambda p: stored(p, PIXELS, photometric="rgb", compression="jpeg", tile=(16, 16)), PIXELS, 12),
    "JPEG in RGB": (
        lambda p: stored(
            p, PIXELS, photometric="rgb", compression="jpeg", compressionargs={"level": 95, "outcolorspace": "rgb"}
        ),
        PIXELS,
        12,
    ),
    "YCbCr": (lambda p: stored(p, ycbcr(), photometric="ycbcr"), PIXELS, 3),
    "YCbCr, deflated": (lambda p: stored(p, ycbcr(), photometric="ycbcr", compression="zlib"), PIXELS, 3),
    "YCbCr, fewer colours": (
        lambda p: by_hand(p, zlib.compress(subsampled()), (16, 16), 6, 8, 8, samples=3, tags=[(530, 3, [2, 2])]),
        np.full((16, 16, 3), (200, 120, 180)),
        2,
    ),
    "YCbCr in tiles": (
        lambda p: stored(p, ycbcr(), photometric="ycbcr", compression="lzw", tile=(16, 16)),
        PIXELS,
        3,
    ),
    "CMYK": (lambda p: stored(p, CMYK, photometric="separated"), PIXELS * 0.8, 2),
    "straight alpha": (
        lambda p: stored(p, np.dstack([PIXELS, ALPHA]), photometric="rgb", extrasamples=["unassalpha"]),
        ON_WHITE,
        1,
    ),
    "premultiplied alpha": (
        lambda p: stored(
            p,
            np.dstack([np.rint(PIXELS * (ALPHA / 255)).astype(np.uint8), ALPHA]),
            photometric="rgb",
            extrasamples=["assocalpha"],
        ),
        ON_WHITE,
        1,
    ),
    "a fourth channel that is not alpha": (
        lambda p: stored(p, np.dstack([PIXELS, ALPHA]), photometric="rgb", extrasamples=["unspecified"]),
        PIXELS,
        0,
    ),
    "grey with alpha": (
        lambda p: stored(
            p, np.dstack([GREY, ALPHA]), photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
        ),
        RGB_OF_GREY * (ALPHA / 255) + 255 - ALPHA,
        1,
    ),
    "ImageJ": (lambda p: stored(p, PIXELS, imagej=True, photometric="rgb"), PIXELS, 0),
}


def ycbcr():
    return np.asarray(Image.fromarray(PIXELS).convert("YCbCr"))


def subsampled():
    """One colour as blocks of four values of Y, one of Cb and one of Cr."""
    y, cb, cr = np.asarray(Image.new("RGB", (1, 1), (200, 120, 180)).convert("YCbCr")).ravel().tolist()
    return bytes([y] * 4 + [cb, cr]) * 64


@pytest.mark.parametrize("kind", RIGHT)
def test_colours_are_right(tmp_path, kind):
    write, expected, tolerance = RIGHT[kind]
    path = write(tmp_path)
    assert np.abs(shown(path).astype(float) - expected).max() <= tolerance
    levels = open_file(path)
    if hasattr(levels[0], "access"):  # windows are the same as cut from the whole
        assert np.abs(levels[0][3:30, 5:9].astype(float) - expected[3:30, 5:9]).max() <= tolerance


@pytest.mark.parametrize("planes", [PLANES, (PLANES.astype(np.uint16) * 257)], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("names", [(), ("Red", "Green", "Blue"), ("Channel 0", "Channel 1", "Channel 2")])
def test_channels_of_ome_tiff(tmp_path, planes, names):
    metadata = channels(*names) if names else {"axes": "CYX"}
    tifffile.imwrite(tmp_path / "x.ome.tif", planes, photometric="minisblack", metadata=metadata)
    assert np.array_equal(shown(tmp_path / "x.ome.tif"), PIXELS)


def test_significant_bits_of_ome_tiff(tmp_path):
    metadata = {"axes": "YX", "SignificantBits": 12}
    tifffile.imwrite(tmp_path / "x.ome.tif", GREY.astype(np.uint16) * 16, photometric="minisblack", metadata=metadata)
    assert np.abs(shown(tmp_path / "x.ome.tif").astype(int) - RGB_OF_GREY).max() <= 1


FIVE = np.repeat(GREY[None], 5, 0)
REFUSED = {
    "YCbCr, fewer colours, uncompressed": (
        lambda p: by_hand(p, subsampled() * 9, (16, 16), 6, 8, samples=3, tags=[(530, 3, [2, 2])]),
        "YCBCR",
    ),
    "YCbCr, subsampling not stated": (
        lambda p: by_hand(p, zlib.compress(ycbcr().tobytes()), GREY.shape, 6, 8, 8, samples=3),
        "YCBCR",
    ),
    "YCbCr, of video": (
        lambda p: by_hand(
            p, ycbcr().tobytes(), GREY.shape, 6, 8, samples=3, tags=[(530, 3, [1, 1]), (532, 5, VIDEO_RANGE)]
        ),
        "YCBCR",
    ),
    "CIELab": (lambda p: stored(p, PIXELS, photometric="cielab"), "CIELAB"),
    "LogLuv": (lambda p: by_hand(p, PIXELS.tobytes(), GREY.shape, 32845, 8, samples=3), "LOGLUV"),
    "no interpretation": (lambda p: by_hand(p, GREY.tobytes(), GREY.shape, None, 8), "without a photometric"),
    "signed": (lambda p: stored(p, PIXELS.astype(np.int16), photometric="rgb"), "int16"),
    "32 bits": (lambda p: stored(p, GREY.astype(np.uint32), photometric="minisblack"), "uint32"),
    "complex": (lambda p: stored(p, GREY.astype(np.complex64), photometric="minisblack"), "complex64"),
    "five channels": (lambda p: stored(p, FIVE.transpose(1, 2, 0), photometric="rgb"), "5 channels"),
    "two channels": (
        lambda p: stored(p, FIVE[:2].transpose(1, 2, 0), photometric="minisblack", planarconfig="contig"),
        "2 channels",
    ),
    "pages": (lambda p: stored(p, FIVE, photometric="minisblack"), "stack"),
    "three pages": (lambda p: stored(p, FIVE[:3], photometric="minisblack"), "stack"),
    "pages in colour": (lambda p: stored(p, np.stack([PIXELS] * 4), photometric="rgb"), "stack"),
    "composite of ImageJ": (
        lambda p: stored(p, FIVE[:3], imagej=True, metadata={"axes": "CYX"}),
        "3 separate channels",
    ),
    "stack of ImageJ": (lambda p: stored(p, FIVE, imagej=True, metadata={"axes": "ZYX"}), "axes ZYX"),
    "film of ImageJ": (lambda p: stored(p, FIVE, imagej=True, metadata={"axes": "TYX"}), "axes TYX"),
    "inks": (lambda p: stored(p, CMYK, photometric="separated", extratags=[(332, 3, 1, 2, True)]), "SEPARATED"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_known_to_be_right_is_refused_by_name(tmp_path, kind):
    write, found = REFUSED[kind]
    path = write(tmp_path)
    with pytest.raises(ValueError, match=f"x.tif.*{found}.*RGB"):
        open_image(path, 1.0, "x")


@pytest.mark.parametrize(
    ("planes", "metadata", "found"),
    [
        (FIVE, channels("DAPI", "CD3", "CD8", "CD20", "PanCK"), "5 separate channels .DAPI, CD3"),
        (FIVE[:3], channels("DAPI", "CD3", "CD8"), "3 separate channels .DAPI"),
        (FIVE[:3], {"axes": "CYX", "Channel": {"EmissionWavelength": [450, 520, 600]}}, "holds fluorescence"),
        (FIVE[:4], {"axes": "CYX"}, "4 separate channels"),
        (FIVE[0], {"axes": "YX", "Channel": {"Name": "DAPI", "EmissionWavelength": 450}}, "fluorescence .DAPI"),
        (FIVE, {"axes": "ZYX"}, "axes ZYX"),
        (FIVE, {"axes": "TYX"}, "axes TYX"),
    ],
)
def test_fluorescence_and_stacks_of_ome_tiff_are_refused(tmp_path, planes, metadata, found):
    tifffile.imwrite(tmp_path / "x.ome.tif", planes, photometric="minisblack", metadata=metadata)
    with pytest.raises(ValueError, match=found):
        open_image(tmp_path / "x.ome.tif", 1.0, "x")


@pytest.mark.parametrize(
    "pixels", [GREY.astype(np.uint16) * 16, GREY // 255, (PIXELS / 255 / 16).astype(np.float32), np.zeros_like(GREY)]
)
def test_too_dark_to_be_right(tmp_path, pixels):
    path = stored(tmp_path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")
    for source in (path, pixels):
        with pytest.raises(ValueError, match="too dark for H&E"):
            _ = open_image(source, 1.0, "x").tissue


@pytest.mark.parametrize("pixels", [PIXELS.astype(np.float32), PIXELS / 255 - 0.4])
def test_floats_beyond_0_and_1(tmp_path, pixels):
    path = stored(tmp_path, pixels.astype(np.float32), photometric="rgb")
    for source in (path, pixels):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            _ = open_image(source, 1.0, "x").tissue


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_taken_as_stored(tmp_path, orientation):
    path = stored(tmp_path, PIXELS, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert np.array_equal(shown(path), PIXELS)
    assert [f"orientation {orientation}" in str(one.message) for one in told] == [True] * (orientation > 1)


def test_the_largest_image_is_taken_and_only_its_pyramid(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        how = {"photometric": "rgb", "metadata": None, "tile": (16, 16)}
        file.write(PIXELS[::3, ::3].copy(), **how)  # a preview
        file.write(PIXELS, **how)
        file.write(PIXELS[::2, ::2].copy(), subfiletype=1, **how)
        file.write(np.zeros((12, 60, 3), np.uint8), **how)  # a label
    levels = open_file(tmp_path / "x.tif")
    assert [level.shape for level in levels][:1] == [(48, 64, 3)]
    assert all(
        np.array_equal(level[:, :], PIXELS[:: 48 // len(level[:, :]), :: 48 // len(level[:, :])]) for level in levels
    )


def test_missing_tiles_are_glass(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        tile = np.full((16, 16, 3), 99, np.uint8)
        file.write(iter([tile, None, None, tile]), shape=(32, 32, 3), dtype=np.uint8, tile=(16, 16), photometric="rgb")
    found = shown(tmp_path / "x.tif")
    assert (found[:16, :16] == 99).all() and (found[:16, 16:] == 255).all()


def large(side=1536):
    rows, cols = np.mgrid[:side, :side]
    return np.stack([220 + rows % 13, 150 + cols % 7, 200 + (rows + cols) % 11], 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("how", "access", "share"),
    [
        ({"tile": (128, 128), "compression": "zlib"}, "tiles", 0.5),
        ({"rowsperstrip": 4, "compression": "zlib"}, "tiles", 0.5),
        ({"rowsperstrip": 1536}, "mapped", 0.5),
        ({"rowsperstrip": 1536, "compression": "zlib"}, "decoded", 3.0),
    ],
)
def test_memory_is_bounded(tmp_path, monkeypatch, how, access, share):
    monkeypatch.setattr(_slide_image, "AT_ONCE", 2**18)
    monkeypatch.setattr(_slide_image, "AS_FLOATS", 2**16)
    monkeypatch.setattr(_tiff, "MOST_STREAMED", 2**18)
    monkeypatch.setattr(_whole, "MOST_IN_MEMORY", 2**18)
    pixels = large()
    path = stored(tmp_path, pixels, photometric="rgb", **how)
    with stimg.settings.override(cachedir=tmp_path / "cache"):
        image = open_image(path, 0.5, "x")
        assert image.levels[0].access == access
        tracemalloc.start()
        found = image.overview(8.0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert not [one for one in (tmp_path / "cache").rglob("*") if one.is_file()]  # it has no name
    assert peak < share * pixels.nbytes
    assert np.array_equal(found, open_image(pixels, 0.5, "x").overview(8.0))
    again = pickle.loads(pickle.dumps(image))  # for workers
    assert np.array_equal(again.read(100, 100, (30, 40), 0.5), image.read(100, 100, (30, 40), 0.5))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_long_strips_of_16_bits(tmp_path, monkeypatch, byteorder, compression):
    monkeypatch.setattr(_tiff, "MOST_STREAMED", 100)
    pixels = PIXELS.astype(np.uint16) * 257
    path = stored(tmp_path, pixels, photometric="rgb", byteorder=byteorder, compression=compression)
    assert open_file(path)[0].access == ("decoded" if compression else "mapped")
    assert np.array_equal(shown(path), PIXELS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="x.tif"):
        shown(path)


def test_strips_too_large_to_decode_are_refused_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(_tiff, "MOST_STREAMED", 2**10)
    monkeypatch.setattr(_tiff, "MOST_DECODED", 2**12)
    path = stored(tmp_path, PIXELS, photometric="rgb", compression="zlib", rowsperstrip=48)
    with pytest.raises(OSError, match="--tile"):
        open_image(path, 1.0, "x")


def test_blocks_do_not_change_what_is_read(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 150, 3), dtype=np.uint8)
    image = open_image(pixels, 0.5, "x")
    whole = [image.read(-7.3, 4.1, (40, 50), mpp) for mpp in (0.2, 0.5, 1.7)]
    monkeypatch.setattr(_slide_image, "AT_ONCE", 500)
    monkeypatch.setattr(_slide_image, "AS_FLOATS", 100)
    for mpp, expected in zip((0.2, 0.5, 1.7), whole, strict=True):
        assert np.array_equal(image.read(-7.3, 4.1, (40, 50), mpp), expected)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "mean"),  # as Pillow or libvips decode them, whichever can
    [
        ("openslide_boxes.tiff", (159.1, 163.5, 191.5)),
        ("pillow_hopper_lzma.tif", (89.7, 80.1, 95.4)),
        ("pillow_hopper_webp.tif", (89.8, 80.1, 95.5)),
        ("vips_CMU-1-Small-Region.svs", (214.0, 194.8, 207.9)),
        ("vips_ojpeg-tile.tif", (57.9, 58.1, 58.0)),
        ("vips_subsampled.tif", (53.8, 65.9, 60.4)),
    ],
)
def test_real_files(real_cases_dir, name, mean):
    assert shown(real_cases_dir / "images" / name).reshape(-1, 3).mean(0) == pytest.approx(mean, abs=0.5)


@pytest.mark.real
def test_a_real_file_of_12_bits_in_16(real_cases_dir):
    with pytest.raises(ValueError, match="too dark"):
        _ = open_image(real_cases_dir / "images" / "pillow_12in16bit.tif", 1.0, "x").tissue
