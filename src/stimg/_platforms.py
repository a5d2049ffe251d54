"""One table of platforms: what is known about a slide before its data are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["hex", "square", "free"]

BIN_PATTERN: Final = r"square_(\d+)um"  # side of a bin in the names of Visium HD's regions
STEREO_SEQ_UM: Final = 0.5  # between two DNA nanoballs
MOST_OFF: Final = 0.2  # of a pitch in micrometres that still is the platform's


@dataclass(frozen=True)
class Platform:
    """What is known from the name of a platform."""

    kind: Kind  # its lattice: a hexagonal or square array, or free coordinates
    pitch_um: float = float("nan")  # micrometres between neighbouring sites, if all of its arrays have the same pitch
    um_per_unit: float = float("nan")  # micrometres per unit of its coordinates, if all of its files use the same unit
    spot_um: float | None = None  # diameter of a spot, or side of a bin, in micrometres
    binned: bool = False  # the pitch is the side of a bin, which the data name
    technology: str = ""  # its name in collections of slides


PLATFORMS: Final = {
    "visium": Platform("hex", pitch_um=100, spot_um=55, technology="Visium"),
    "hex": Platform("hex"),
    "st": Platform("square", pitch_um=200, spot_um=100, technology="ST"),
    "visium_hd": Platform("square", spot_um=8, binned=True, technology="VisiumHD"),
    "stereo_seq": Platform("square", binned=True),
    "square": Platform("square"),
    "free": Platform("free"),
    # Except for Xenium, files of the following come in pixels, millimetres or micrometres.
    "slide_seq": Platform("free", spot_um=10),
    "xenium": Platform("free", um_per_unit=1),
    "merfish": Platform("free"),
    "cosmx": Platform("free"),
    "osmfish": Platform("free"),
    "starmap": Platform("free"),
    "seqfish": Platform("free"),
}
OF_TECHNOLOGY: Final = {one.technology: name for name, one in PLATFORMS.items() if one.technology}


def spot_um(platform: str, pitch_um: float) -> float | None:
    """Return the diameter of the spots, or the side of the bins, of a slide with this pitch, in micrometres.

    It is `None` for platforms without an array, and for a pitch that is not that of the platform's array. Space
    Ranger's `spot_diameter_fullres` says something else for Visium, 65 to 70 micrometres.
    """
    known = PLATFORMS.get(platform, PLATFORMS["free"])
    if known.binned:
        return float(pitch_um) if pitch_um > 0 else None
    return known.spot_um if abs(pitch_um / known.pitch_um - 1) <= MOST_OFF else None


def collection_platform(technology: str) -> str:
    """Return the platform of a collection's technology: a square array, or `"auto"`.

    Visium is `"auto"` as well: there its spots come without array positions, so their grid is detected.
    """
    name = OF_TECHNOLOGY.get(technology, "auto")
    return name if name != "auto" and PLATFORMS[name].kind == "square" else "auto"
