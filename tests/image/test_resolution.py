"""Micrometres per pixel: as stated, or unknown, and never of the wrong unit."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from stimg._image._files import file_mpp
from stimg._image._resolution import micrometres

PIXELS = np.full((64, 96, 3), 200, np.uint8)
HALF = pytest.approx(0.5, rel=1e-3)
DESCRIPTION = "Aperio Image Library v11.2.1 \r\n96x64 [0,0 96x64] (32x32) JPEG/RGB Q=30|AppMag = 20|"


def stored(path, **how):
    tifffile.imwrite(path / "x.tif", PIXELS, photometric="rgb", **how)
    return path / "x.tif"


@pytest.mark.parametrize(
    ("per_unit", "unit", "expected"),
    [
        ((20000, 20000), "CENTIMETER", HALF),
        ((50800, 50800), "INCH", HALF),
        ((2000, 2000), "MILLIMETER", HALF),
        ((2, 2), "MICROMETER", HALF),
        ((20000, 20000), "NONE", None),
        ((2, 2), "NONE", None),
        ((1, 1), "NONE", None),
        ((1, 1), "CENTIMETER", None),
        ((1, 1), "INCH", None),
        ((72, 72), "INCH", None),
        ((96, 96), "INCH", None),
        ((300, 300), "INCH", None),
        ((600, 600), "INCH", None),
        ((28.35, 28.35), "CENTIMETER", None),
        ((1e9, 1e9), "CENTIMETER", None),
        (((0, 1), (0, 1)), "CENTIMETER", None),
    ],
)
def test_tags(tmp_path, per_unit, unit, expected):
    assert file_mpp(stored(tmp_path, resolution=per_unit, resolutionunit=unit)) == expected


@pytest.mark.parametrize(
    ("unit", "per_unit", "expected"),
    [
        ("um", 2, HALF),
        ("\\u00B5m", 2, HALF),
        ("micron", 2, HALF),
        ("microns", 2, HALF),
        ("nm", 0.002, HALF),
        ("mm", 2000, HALF),
        ("cm", 20000, HALF),
        ("inch", 50800, HALF),
        ("pixel", 2, None),
        ("", 2, None),
        ("sec", 2, None),
        ("inch", 72, None),
    ],
)
def test_imagej(tmp_path, unit, per_unit, expected):
    path = stored(tmp_path, imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit})
    assert file_mpp(path) == expected


@pytest.mark.parametrize("micro", [b"\xb5", b"\xc2\xb5"])  # in two encodings
def test_sign_for_micro(tmp_path, micro):
    path = stored(tmp_path, imagej=True, resolution=(2, 2), metadata={"unit": "?m" if len(micro) == 1 else "??m"})
    path.write_bytes(path.read_bytes().replace(b"?" * len(micro) + b"m", micro + b"m"))
    assert file_mpp(path) == HALF


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"PhysicalSizeX": 0.5}, HALF),  # micrometres, by the schema
        ({"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"}, HALF),
        ({"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "\u03bcm"}, HALF),
        ({"PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm"}, HALF),
        ({"PhysicalSizeX": 5000, "PhysicalSizeXUnit": "Å"}, HALF),
        ({"PhysicalSizeX": 5e-4, "PhysicalSizeXUnit": "mm"}, HALF),
        ({"PhysicalSizeX": 5e-5, "PhysicalSizeXUnit": "cm"}, HALF),
        ({"PhysicalSizeX": 5e-7, "PhysicalSizeXUnit": "m"}, HALF),
        ({"PhysicalSizeX": 0.5 / 25400, "PhysicalSizeXUnit": "in"}, HALF),
        ({"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "pixel"}, None),
        ({"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "reference frame"}, None),
        ({"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "furlong"}, None),
        ({"PhysicalSizeX": 2, "PhysicalSizeXUnit": "m"}, None),
        ({"PhysicalSizeX": 0.0, "PhysicalSizeXUnit": "µm"}, None),
        ({"PhysicalSizeX": 1.0}, None),  # what programs write that do not know
        ({"PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "µm"}, 1.0),
        ({"PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}, HALF),
    ],
)
def test_ome(tmp_path, metadata, expected):
    tifffile.imwrite(tmp_path / "x.ome.tif", PIXELS, photometric="rgb", metadata={"axes": "YXS"} | metadata)
    assert file_mpp(tmp_path / "x.ome.tif") == expected


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        (DESCRIPTION + "MPP = 0.4990", 0.499),
        (DESCRIPTION + "MPP=0,25|Left = 32", 0.25),
        ("Aperio Image Library v12|AppMag = 40|MPP = 0.2525", 0.2525),
        (DESCRIPTION, None),
        (DESCRIPTION + "MPP = 0", None),
        (DESCRIPTION.replace("96x64", "192x128") + "MPP = 0.25", None),  # of the image before it was made smaller
    ],
)
@pytest.mark.parametrize("tiled", [True, False])  # as scanners do, or saved again by another program
def test_aperio(tmp_path, description, expected, tiled):
    tiles = {"tile": (32, 32), "compression": "jpeg"} if tiled else {}
    assert file_mpp(stored(tmp_path, description=description, metadata=None, **tiles)) == expected


def test_pixels_that_are_not_square_are_refused(tmp_path):
    path = stored(tmp_path, resolution=(20000, 10000), resolutionunit="CENTIMETER")
    with pytest.raises(ValueError, match=r"x.tif.*not square.*0.5 x 1 "):
        file_mpp(path)
    path = stored(tmp_path, resolution=(20000, 20050), resolutionunit="CENTIMETER")
    assert file_mpp(path) == HALF


def test_units_that_are_no_lengths():
    assert [micrometres(unit) for unit in ("pixel", "", "s", "Hz", "1", "micro")] == [None] * 6
    assert micrometres(" Microns ") == micrometres("micrometres") == 1


def test_what_states_nothing(tmp_path):
    for name in ("x.png", "x.jpg"):
        Image.fromarray(PIXELS).save(tmp_path / name, dpi=(300, 300))
        assert file_mpp(tmp_path / name) is None
    assert file_mpp(tmp_path / "absent.tif") is None
    assert file_mpp(PIXELS) is None


@pytest.mark.real
def test_a_real_slide(real_cases_dir):
    assert file_mpp(real_cases_dir / "images" / "vips_CMU-1-Small-Region.svs") == 0.499
