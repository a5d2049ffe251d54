"""One table of platforms: what is known of a slide before its data are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["hex", "square", "free"]

# Side of a bin in the names of Visium HD's regions.
BIN_PATTERN: Final = r"square_(\d+)um"
STEREO_SEQ_UM: Final = 0.5  # between two DNA nanoballs


@dataclass(frozen=True)
class Platform:
    """What the name of a platform tells.

    Parameters
    ----------
    kind
        Its lattice: a `"hex"`agonal or `"square"` array, or `"free"` coordinates.
    pitch_um
        Micrometres between neighbouring sites, where all of its arrays have the same.
    um_per_unit
        Micrometres per unit of its coordinates, where all of its files come in one unit.
    spot_um
        Diameter of a spot, or side of a bin, in micrometres.
    binned
        The pitch is the side of a bin, which the data name.
    technology
        Its name in collections of slides.
    """

    kind: Kind
    pitch_um: float = float("nan")
    um_per_unit: float = float("nan")
    spot_um: float | None = None
    binned: bool = False
    technology: str = ""


PLATFORMS: Final = {
    "visium": Platform("hex", pitch_um=100, spot_um=55, technology="Visium"),
    "hex": Platform("hex"),
    "st": Platform("square", pitch_um=200, spot_um=100, technology="ST"),
    "visium_hd": Platform("square", spot_um=8, binned=True, technology="VisiumHD"),
    "stereo_seq": Platform("square", binned=True),
    "square": Platform("square"),
    "free": Platform("free"),
    # Files of the next ones come in pixels, millimetres or micrometres, but for those of Xenium.
    "slide_seq": Platform("free", spot_um=10),
    "xenium": Platform("free", um_per_unit=1),
    "merfish": Platform("free"),
    "cosmx": Platform("free"),
    "osmfish": Platform("free"),
    "starmap": Platform("free"),
    "seqfish": Platform("free"),
}
SPOT_UM: Final = {one.technology: float(one.spot_um) for one in PLATFORMS.values() if one.technology and one.spot_um}


def collection_platform(technology: str) -> str:
    """Platform of a collection's technology; Visium's spots come without an array there, and their grid is looked for.

    Other technologies are `"auto"` too.
    """
    return {one.technology: name for name, one in PLATFORMS.items() if one.kind == "square"}.get(technology, "auto")
