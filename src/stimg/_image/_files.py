"""Image files: PNG and JPEG are decoded whole, the tiles of a TIFF are read on demand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

WHITE = 255
TIFF_SUFFIXES = (".tif", ".tiff", ".svs", ".ndpi", ".qptiff", ".btf")


@dataclass
class WholeFile:
    """A PNG or JPEG file. It is decoded whole when first used, reduced to the resolution needed, and then kept."""

    path: Path
    shape: tuple[int, int]
    _kept: tuple[np.ndarray, int] | None = field(default=None, repr=False)

    def at(self, factor: int) -> tuple[np.ndarray, int]:
        """Return the image, uint8 (h, w, 3), reduced by at most `factor`, and the factor by which it was reduced."""
        if self._kept is None or self._kept[1] > factor:
            self._kept = _decode(self.path, factor), factor
        return self._kept


@dataclass(frozen=True)
class TiffLevel:
    """One level of a TIFF file. Slicing reads the tiles it needs; no file is held open."""

    path: Path
    index: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        """Read a window."""
        import tifffile
        import zarr

        with (
            _naming(self.path),
            tifffile.TiffFile(self.path) as file,
            file.aszarr(series=0, level=self.index) as store,
        ):
            return np.asarray(zarr.open(store, mode="r")[key])  # type: ignore[index]


def open_file(path: Path) -> list[Any]:
    """Open the levels of an image file, finest first; `OSError` if it is missing, damaged or of an unknown format."""
    if not path.is_file():
        msg = f"No image file at {str(path)!r}. Check the path."
        raise FileNotFoundError(msg)
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return [_open_whole(path)]
    import tifffile

    with _naming(path), tifffile.TiffFile(path) as file:  # the first image of the file
        levels = [TiffLevel(path, i, level.shape, level.dtype) for i, level in enumerate(file.series[0].levels)]
    levels[-1][:1, :1]  # raises now if the pixels cannot be decoded
    return levels


def file_mpp(source: Any) -> float | None:
    """Return the micrometres per pixel that a TIFF file states, or `None`."""
    if isinstance(source, str | Path) and Path(source).suffix.lower() in TIFF_SUFFIXES and Path(source).is_file():
        import tifffile

        with _naming(Path(source)), tifffile.TiffFile(source) as file:
            return _tiff_mpp(file)
    return None


def as_rgb(part: np.ndarray) -> np.ndarray:
    """Convert pixels to uint8 (h, w, 3): grey repeated, alpha laid on white, 16 bits over 257, floats times 255."""
    part = part[..., None] if part.ndim == 2 else part
    if part.dtype == np.uint16:
        part = (part // 257).astype(np.uint8)
    elif part.dtype.kind == "f":
        if part.size and (np.nanmin(part) < 0 or np.nanmax(part) > 1):
            msg = (
                f"Expected floating-point pixels in [0, 1], found {np.nanmin(part):g} to {np.nanmax(part):g}. "
                "Rescale the image."
            )
            raise ValueError(msg)
        part = np.rint(np.nan_to_num(part, nan=1.0) * 255).astype(np.uint8)
    if part.shape[2] == 4:
        alpha = part[..., 3:].astype(np.float32) / 255
        part = np.rint(part[..., :3] * alpha + WHITE * (1 - alpha)).astype(np.uint8)
    return np.broadcast_to(part, (*part.shape[:2], 3))


def _open_whole(path: Path) -> WholeFile:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return WholeFile(path, (image.height, image.width))
    except Image.DecompressionBombError as error:
        msg = f"{str(path)!r} is too large to be decoded whole ({error}). Save it as a tiled TIFF instead."
        raise OSError(msg) from error
    except UnidentifiedImageError as error:
        msg = f"{str(path)!r} cannot be read as an image. Expected PNG, JPEG or TIFF; copy or download it again."
        raise OSError(msg) from error


def _decode(path: Path, factor: int) -> np.ndarray:
    """Decode a PNG or JPEG file and average over `factor` x `factor` pixels, uint8 (h, w, 3)."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.mode in ("I;16", "I"):
                    return as_rgb(np.asarray(image).astype(np.uint16))[::factor, ::factor]
                found = image.convert("RGBA" if image.mode in ("RGBA", "LA", "PA") else "RGB")
                return np.ascontiguousarray(as_rgb(np.asarray(found if factor == 1 else found.reduce(factor))))
    except (OSError, SyntaxError) as error:
        msg = f"{str(path)!r} is damaged ({error}). Copy or download it again."
        raise OSError(msg) from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn any error of the TIFF reader into an `OSError` that names the file."""
    try:
        yield
    except Exception as error:
        msg = f"{str(path)!r} cannot be read as TIFF ({error}). Copy or download it again."
        raise OSError(msg) from error


def _tiff_mpp(file: Any) -> float | None:
    """Read the micrometres per pixel from OME metadata or, failing that, from the resolution tags."""
    if file.ome_metadata:
        import xml.etree.ElementTree as ElementTree

        for pixels in ElementTree.fromstring(file.ome_metadata).iter():
            if pixels.tag.endswith("Pixels") and "PhysicalSizeX" in pixels.attrib:
                unit = pixels.attrib.get("PhysicalSizeXUnit", "\u00b5m")
                factor = {"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}.get(unit, 1.0)
                return float(pixels.attrib["PhysicalSizeX"]) * factor
    tags = file.pages[0].tags
    per = {2: 25400.0, 3: 10000.0}.get(int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 1)
    if "XResolution" in tags and per is not None:
        numerator, denominator = tags["XResolution"].value
        if numerator and denominator and (per_unit := numerator / denominator) > 1000:  # not a screen's 72 per inch
            return per / per_unit
    return None
