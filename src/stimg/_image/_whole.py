"""Image files that are decoded whole, within bounds."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stimg._image._pixels import as_rgb
from stimg._input._checks import warn
from stimg._settings import settings

MOST_PIXELS = 2**30  # decoded whole: 32,768 x 32,768, for which Pillow takes up to 4 GB while it decodes
MOST_IN_MEMORY = 2**29  # bytes kept in memory; larger arrays lie in an unnamed file in the cache
STRIP = 2**24  # pixels converted at once
ORIENTATION = 274  # number of the tag in EXIF and TIFF
AS_TILED_TIFF = (
    "Save it as a tiled TIFF with a pyramid, which is read in pieces: `vips tiffsave <file> image.tif --tile --pyramid "
    "--bigtiff --compression jpeg --Q 90`."
)


@dataclass
class WholeFile:
    """A file that Pillow decodes whole when it is first used, reduced to the resolution needed, and then kept.

    Files too large for memory are decoded only once, at their full resolution, into the cache, which forked processes
    share. Other processes that receive the object (spawned workers of a data loader) decode the file again.
    """

    path: Path
    kind: str  # PNG, JPEG or TIFF
    shape: tuple[int, int]
    _kept: tuple[np.ndarray, int] | None = field(default=None, repr=False)

    def at(self, factor: int) -> tuple[np.ndarray, int]:
        """Return the image, uint8 (h, w, 3), reduced by at most `factor`, and the factor by which it was reduced."""
        if 3 * self.shape[0] * self.shape[1] > MOST_IN_MEMORY:
            factor = 1
        if self._kept is None or self._kept[1] > factor:
            out = scratch((-(-self.shape[0] // factor), -(-self.shape[1] // factor), 3), np.uint8)
            _decode(self.path, self.kind, factor, out)
            self._kept = out, factor
        return self._kept

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}


def open_whole(path: Path, kind: str) -> WholeFile:
    """Open a PNG, JPEG or TIFF file that will be decoded whole."""
    with _opened(path, kind) as image:
        shape, orientation = (image.height, image.width), None
        if kind != "PNG" or "exif" in image.info:  # or Pillow looks for it behind the pixels, and decodes them
            orientation = image.getexif().get(ORIENTATION)
    check_pixels(path, shape)
    tell_orientation(path, orientation)
    return WholeFile(path, kind, shape)


def check_pixels(path: Path, shape: tuple[int, int]) -> None:
    """Refuse to decode more than `MOST_PIXELS` at once."""
    if shape[0] * shape[1] > MOST_PIXELS:
        msg = (
            f"{str(path)!r} would be decoded whole, and has {shape[0]:,} x {shape[1]:,} pixels, more than the "
            f"{MOST_PIXELS:,} (32,768 x 32,768) for which stimg makes room. {AS_TILED_TIFF}"
        )
        raise OSError(msg)


def tell_orientation(path: Path, orientation: Any) -> None:
    """Warn that a rotation or reflection stated in the file is not applied."""
    if orientation in range(2, 9):
        warn(
            f"{str(path)!r} asks viewers to turn or flip it (orientation {orientation}). stimg takes the pixels as "
            "stored; if the coordinates refer to the turned image, save the image turned, without that tag."
        )


def scratch(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array to be filled: in memory or, above `MOST_IN_MEMORY`, in the cache.

    The file in the cache has no name, so that the system removes it together with the last process that uses it.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= MOST_IN_MEMORY:
        return np.empty(shape, dtype)
    folder = settings.cachedir / "images"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < size:
            msg = f"{free / 1e9:.1f} GB are free"
            raise OSError(msg)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "w+", shape=shape)
    except OSError as error:
        msg = (
            f"Decoding the image needs {size / 1e9:.1f} GB in {str(folder)!r} ({error}). Make room there, or set "
            "`stimg.settings.cachedir` to another folder."
        )
        raise OSError(msg) from error


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Any]:
    """Open a file with Pillow as this kind and no other, whatever its name; the limit of pixels is our own."""
    from PIL import JpegImagePlugin, PngImagePlugin, TiffImagePlugin

    classes: dict[str, Any] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            opened = classes[kind](path)
        with opened as image:
            yield image
    except (OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError) as error:
        msg = f"{str(path)!r} is damaged, or a rare variant of {kind} ({error}). Copy or download it again."
        raise OSError(msg) from error


def _decode(path: Path, kind: str, factor: int, out: np.ndarray) -> None:
    """Decode a file and average over `factor` x `factor` pixels, into an uint8 array (h, w, 3)."""
    with _opened(path, kind) as image:
        image.load()
        width, height = image.size
        rows = max(1, STRIP // (width * factor)) * factor
        for top in range(0, height, rows):
            strip = _reduced(image.crop((0, top, width, min(top + rows, height))), factor)
            out[top // factor : top // factor + len(strip)] = strip


def _reduced(strip: Any, factor: int) -> np.ndarray:
    """Convert a part of a Pillow image to uint8 (h, w, 3) and average over `factor` x `factor` pixels."""
    if strip.mode.startswith("I"):  # grey of 16 bits
        return as_rgb(np.asarray(strip.convert("I").reduce(factor)).astype(np.uint16))
    transparent = strip.has_transparency_data or strip.mode in ("RGBA", "LA", "PA")
    return as_rgb(np.asarray(strip.convert("RGBA" if transparent else "RGB").reduce(factor)))
