"""Whole-slide images in the formats of scanners, read by OpenSlide."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stimg._image._pixels import as_rgb
from stimg._image._resolution import aperio_mpp


@dataclass(frozen=True)
class ScannerLevel:
    """One level of a whole-slide image as an array, uint8 (h, w, 3); slicing reads the tiles that it needs."""

    path: Path
    level: int
    shape: tuple[int, int, int]
    scale: float  # pixels of the finest level per pixel

    dtype = np.dtype(np.uint8)
    ndim = 3
    tile_rows = 1024  # OpenSlide keeps the last tiles itself

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        """Read a window; all keys are slices."""
        (top, bottom, _), (left, right, _) = (one.indices(n) for one, n in zip(key, self.shape[:2], strict=False))
        place, size = (round(left * self.scale), round(top * self.scale)), (right - left, bottom - top)
        with _naming(self.path):
            found = as_rgb(np.asarray(_opened(self.path, os.getpid()).read_region(place, self.level, size)))
        return found[:, :, key[2]] if len(key) > 2 else found


def is_scanners(path: Path) -> bool:
    """Tell whether OpenSlide knows the file as a scanner's: Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana..."""
    import openslide

    with _naming(path):
        return openslide.OpenSlide.detect_format(path) not in (None, "generic-tiff")


def open_scanners(path: Path) -> list[ScannerLevel]:
    """Open the levels of a whole-slide image, finest first; `OSError` if it is damaged."""
    with _naming(path):
        slide = _opened(path, os.getpid())
        sizes = zip(slide.level_dimensions, slide.level_downsamples, strict=True)
        levels = [ScannerLevel(path, i, (height, width, 3), scale) for i, ((width, height), scale) in enumerate(sizes)]
    levels[-1][:1, :1]  # raises now if the pixels cannot be decoded
    return levels


def scanners_mpp(path: Path) -> tuple[float, float] | None:
    """Return the micrometres per pixel along x and y that the scanner stated, or `None`."""
    with _naming(path):
        slide = _opened(path, os.getpid())
        if slide.properties["openslide.vendor"] == "aperio":
            return aperio_mpp(slide.properties["tiff.ImageDescription"], *slide.dimensions)
        found = [slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    return None if None in found else (float(found[0]), float(found[1]))


@lru_cache(maxsize=8)
def _opened(path: Path, process: int) -> Any:
    """Open a file once a process: what a fork inherits is not used."""
    import openslide

    return openslide.OpenSlide(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn any error of OpenSlide into an `OSError` that names the file."""
    import openslide

    try:
        yield
    except (openslide.OpenSlideError, ValueError) as error:
        msg = f"{str(path)!r} cannot be read as a whole-slide image ({error}). Copy or download it again."
        raise OSError(msg) from error
