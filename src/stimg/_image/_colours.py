"""The colours that a TIFF file stores, and how they become RGB."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from stimg._image._pixels import WHITE, as_bytes, on_white
from stimg._image._tiff_file import ome_pixels

UNCOMPRESSED, OLD_JPEG, JPEGS, APERIO_YCBCR = 1, 6, (7, 33007), 33003  # TIFF's numbers of compressions
PLAIN = (UNCOMPRESSED, 5, 8, 32773, 32946, 34925, 50000)  # and of those that leave colours as they are
MINISWHITE, MINISBLACK, RGB, PALETTE, SEPARATED, YCBCR = 0, 1, 2, 3, 5, 6  # and of photometric interpretations
ALPHAS: dict[tuple[int, ...], Literal["premultiplied", "straight"]] = {(1,): "premultiplied", (2,): "straight"}
PHOTOMETRIC, INK_SET, SUBSAMPLING, MAX_SAMPLES = 262, 332, 530, (281, 341)  # and of tags
JFIF = {529: (0.299, 0.587, 0.114), 532: (0, 255, 128, 255, 128, 255)}  # tags of YCbCr, as in JPEG files and Pillow
RGB_CHANNEL = re.compile(r"((channel|ch|c)?[\s:_#-]*\d*(:\d+)*|r|g|b|red|green|blue)", re.IGNORECASE)


@dataclass(frozen=True)
class Colours:
    """How the pixels of a TIFF file become RGB."""

    n_colours: int  # 1 or 3
    bits: int  # that the values really have
    planes: bool = False  # channels come first
    white_is_zero: bool = False
    alpha: Literal["", "straight", "premultiplied"] = ""
    palette: np.ndarray | None = field(default=None, repr=False)  # uint8 (n, 3)
    pillow_mode: str = ""  # of colours that Pillow converts

    @property
    def white(self) -> int:
        """Return the value that stands for white, 1 for floats if it is not 0."""
        return 0 if self.white_is_zero or self.palette is not None or self.pillow_mode == "CMYK" else 2**self.bits - 1

    def rgb(self, part: np.ndarray) -> np.ndarray:
        """Convert pixels as stored to uint8 (h, w, 3)."""
        from PIL import Image

        part = np.moveaxis(part, 0, 2) if self.planes else part
        if self.palette is not None:
            return self.palette[part]
        if self.pillow_mode:
            height, width = part.shape[:2]
            image = Image.frombytes(self.pillow_mode, (width, height), np.ascontiguousarray(part).tobytes())
            return np.asarray(image.convert("RGB"))
        part = part[..., None] if part.ndim == 2 else part
        if part.dtype.kind in "bu" and self.bits != 8 * part.dtype.itemsize:
            top = 2**self.bits - 1
            part = np.rint(np.minimum(part, top).astype(np.float32) * (WHITE / top)).astype(np.uint8)
        part = as_bytes(part)
        colours = part[..., : self.n_colours]
        colours = WHITE - colours if self.white_is_zero else colours
        if self.alpha:
            alpha = part[..., self.n_colours : self.n_colours + 1]
            colours = on_white(colours, alpha, premultiplied=self.alpha == "premultiplied")
        return np.broadcast_to(colours, (*part.shape[:2], 3))


def only_pillow_decodes(page: Any) -> bool:
    """Tell whether libtiff, which Pillow holds, decodes the colours, and tifffile does not."""
    subsampled = page.photometric == YCBCR and SUBSAMPLING in page.tags and page.is_subsampled
    by_libtiff = page.compression == OLD_JPEG or (subsampled and page.compression not in (UNCOMPRESSED, *JPEGS))
    return by_libtiff and page.index == 0 and page.bitspersample == 8 and page.samplesperpixel == 3


def not_one_image(file: Any, number: int) -> str:
    """Say what the file holds if that is not one picture in colour or grey."""
    series, pixels = file.series[number], ome_pixels(file, number)
    channels = [] if pixels is None else [one for one in pixels if one.tag.split("}")[-1] == "Channel"]
    names = [one.get("Name", "") for one in channels]
    called = f" ({', '.join(names)})" if any(names) else ""
    if any("EmissionWavelength" in one.attrib or "Fluor" in one.attrib for one in channels):
        return f"fluorescence{called}"
    if series.axes == "CYX":
        in_colour = pixels is not None and series.shape[0] == 3 and all(map(RGB_CHANNEL.fullmatch, names))
        return "" if in_colour else f"{series.shape[0]} separate channels{called}, as in fluorescence"
    if series.axes not in ("YX", "YXS", "SYX"):
        return f"a stack or series of images (axes {series.axes}, shape {series.shape})"
    return ""


def colours_of(file: Any, number: int) -> Colours | str:
    """Return how the pixels become RGB, or say what the file holds if they cannot."""
    series = file.series[number]
    page, planes = series.keyframe, series.axes in ("CYX", "SYX")
    samples = 3 if series.axes == "CYX" else page.samplesperpixel
    extra = tuple(page.extrasamples)
    photometric = RGB if page.photometric == YCBCR and page.compression in JPEGS else page.photometric
    kind = series.dtype.kind
    if PHOTOMETRIC not in page.tags:
        return "pixels without a photometric interpretation"
    if kind not in "buf" or (kind == "u" and series.dtype.itemsize > 2):
        return f"pixels of type {series.dtype}"
    bits = _real_bits(file, number)
    if photometric == PALETTE and samples == 1 and kind == "u" and page.colormap is not None:
        table = page.colormap.T
        palette = table if table.max() <= WHITE else table >> 8  # some writers store 8 bits in the 16
        return Colours(3, bits, palette=palette.astype(np.uint8))
    if (mode := _pillow_mode(page)) and series.dtype == np.uint8:
        return Colours(3, bits, planes, pillow_mode=mode)
    if photometric in (MINISWHITE, MINISBLACK) and samples - (1 if extra[:1] in ALPHAS else 0) == 1:
        return Colours(1, bits, planes, photometric == MINISWHITE, ALPHAS.get(extra[:1], ""))
    if photometric == MINISBLACK and samples == 3 and not set(extra) & {1, 2}:
        return Colours(3, bits, planes)  # how some writers store RGB
    if photometric == RGB and samples in (3, 4) and page.compression != APERIO_YCBCR:
        return Colours(3, bits, planes, alpha=ALPHAS.get(extra[:1], "") if samples == 4 else "")
    name = getattr(page.photometric, "name", page.photometric)
    return f"{samples} {'channel' if samples == 1 else 'channels'} with the photometric interpretation {name}"


def _pillow_mode(page: Any) -> str:
    """Return Pillow's name for colours that it converts to RGB, or nothing."""
    if page.compression not in PLAIN:
        return ""
    if page.photometric == SEPARATED and page.samplesperpixel == 4:
        return "CMYK" if INK_SET not in page.tags or page.tags[INK_SET].value == 1 else ""
    complete = SUBSAMPLING in page.tags and not page.is_subsampled
    if page.photometric == YCBCR and page.samplesperpixel == 3 and complete:
        usual = all(np.allclose(_fractions(page, code) or values, values, atol=1e-3) for code, values in JFIF.items())
        return "YCbCr" if usual else ""
    return ""


def _fractions(page: Any, code: int) -> list[float]:
    """Return the values of a tag of fractions; nothing if it is missing."""
    values = page.tags[code].value if code in page.tags else ()
    return [above / below for above, below in zip(values[::2], values[1::2], strict=True)]


def _real_bits(file: Any, number: int) -> int:
    """Return the bits that the values fill, such as 12 of 16, where the file says so."""
    page, pixels = file.series[number].keyframe, ome_pixels(file, number)
    bits = int(page.bitspersample)
    stated = [] if pixels is None else [int(pixels.get("SignificantBits", bits))]
    for code in MAX_SAMPLES:  # a number such as 4095; others are often the highest value that occurs
        top = int(np.max(page.tags[code].value)) if code in page.tags else 0
        stated += [top.bit_length()] if top >= WHITE and top & (top + 1) == 0 else []
    return min([bits, *(one for one in stated if one > 0)])
