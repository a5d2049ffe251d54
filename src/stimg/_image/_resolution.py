"""Micrometres per pixel, where a TIFF file states them."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from stimg._image._tiff_file import main_image, ome_pixels, opened_tiff

INCH = 25400.0
MICROMETRES = {
    "\u03bcm": 1.0,  # both signs for micro become this one
    "um": 1.0,
    "micron": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "pm": 1e-6,
    "\u00e5": 1e-4,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "thou": INCH / 1000,
    "in": INCH,
    "inch": INCH,
    "inche": INCH,  # plurals lose their s
}
APERIO = "Aperio"  # how their descriptions begin
PLACEHOLDERS = ("1", "1.0")  # written without a unit by programs that do not know
PER_UNIT = {2: INCH, 3: 1e4, 4: 1e3, 5: 1.0}  # TIFF's numbers of units: the last two are not in the standard


def tiff_mpp(path: Path) -> tuple[float, float] | None:
    """Return the micrometres per pixel along x and y that a TIFF file states, or `None`.

    The metadata of OME, Aperio and ImageJ are looked at in this order, then the resolution tags.
    """
    with opened_tiff(path) as file:
        number, series = main_image(file)
        page = series.keyframe
        if (pixels := ome_pixels(file, number)) is not None and "PhysicalSizeX" in pixels.attrib:
            return _ome_mpp(pixels.attrib)
        if page.description.startswith(APERIO):
            return aperio_mpp(page.description, page.imagewidth, page.imagelength)
        tags = {name: page.tags[name].value for name in ("XResolution", "YResolution") if name in page.tags}
        unit = (file.imagej_metadata or {}).get("unit") if file.is_imagej else None
        code = int(page.tags["ResolutionUnit"].value) if "ResolutionUnit" in page.tags else 0
    um = PER_UNIT.get(code) if unit is None else micrometres(str(unit))
    if um is None or len(tags) < 2 or any(0 in fraction for fraction in tags.values()):
        return None
    across, down = (below / above for above, below in tags.values())  # of the unit per pixel
    return um * across, um * down


def micrometres(unit: str) -> float | None:
    """Return the micrometres in a unit of length, or `None` for other units: `"pixel"`, `"reference frame"`."""
    plain = re.sub(r"\\u00b5", "\u00b5", unit.strip(), flags=re.IGNORECASE)  # how ImageJ may write the sign for micro
    plain = unicodedata.normalize("NFKC", plain).casefold()
    return MICROMETRES.get(plain, MICROMETRES.get(plain.removesuffix("s")))


def aperio_mpp(description: str, width: int, height: int) -> tuple[float, float] | None:
    """Return what an Aperio description states, or `None` if it describes an image of another size than this one."""
    sizes = re.findall(r"\b\d+x\d+\b", description)[:-1]  # the last is that of the tiles
    found = re.search(r"\bMPP\s*=\s*(\d*[.,]?\d+)", description)
    if found is None or (sizes and f"{width}x{height}" not in sizes):
        return None
    mpp = float(found[1].replace(",", "."))
    return mpp, mpp


def _ome_mpp(attributes: dict[str, str]) -> tuple[float, float] | None:
    found = []
    for axis in "XY" if "PhysicalSizeY" in attributes else "XX":
        size, unit = attributes[f"PhysicalSize{axis}"], attributes.get(f"PhysicalSize{axis}Unit")
        um = micrometres("um" if unit is None else unit)
        if um is None or (unit is None and size in PLACEHOLDERS):
            return None
        found.append(um * float(size))
    return found[0], found[1]
