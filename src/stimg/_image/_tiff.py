"""TIFF files: windows in RGB, whatever colours they are stored in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stimg._image._colours import Colours, colours_of, not_one_image, only_pillow_decodes
from stimg._image._tiff_file import main_image, opened_tiff, size_of
from stimg._image._whole import AS_TILED_TIFF, ORIENTATION, WholeFile, open_whole, scratch, tell_orientation

MOST_STREAMED = 2**24  # bytes of a tile or strip that is decoded again for every window
MOST_DECODED = 2**30  # and of one that is decoded once; while it is, it takes up to three times that memory
SAME_SHAPE = 0.02  # how much the ratio of height and width may differ between the levels of a pyramid


@dataclass
class TiffLevel:
    """One level of a TIFF file as an array, uint8 (h, w, 3). No file is held open.

    Slicing reads the tiles or strips that it needs. If these are so large that reading one for every window would be
    slow, uncompressed files are memory-mapped, and others are decoded once, when they are first used.
    """

    path: Path
    image: int  # number of the image in the file
    level: int
    shape: tuple[int, int, int]
    access: Literal["tiles", "mapped", "decoded"]
    colours: Colours
    rows: int  # of a tile or strip
    _kept: np.ndarray | None = field(default=None, repr=False)

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        """Read a window; all keys are slices."""
        rows, columns, *channels = key
        stored = (slice(None), rows, columns) if self.colours.planes else (rows, columns)
        if self.access == "decoded":
            self._kept = self._decode() if self._kept is None else self._kept
            part = self._kept[stored]
        else:
            part = self._read(stored)
        found = self.colours.rgb(part)
        return found[:, :, channels[0]] if channels else found

    @property
    def tile_rows(self) -> int:
        """Return how many rows are decoded together."""
        return self.rows if self.access == "tiles" else 1

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}

    def _read(self, key: tuple[slice, ...]) -> np.ndarray:
        import zarr

        with opened_tiff(self.path) as file:
            level = file.series[self.image].levels[self.level]
            if self.access == "mapped":
                dtype = level.dtype.newbyteorder(file.byteorder)
                return np.asarray(np.memmap(self.path, dtype, "r", level.dataoffset, level.shape)[key])
            # Sparse files have no tile where there is nothing but glass.
            glass = min(self.colours.white, 1) if level.dtype.kind == "f" else self.colours.white
            with file.aszarr(series=self.image, level=self.level, fillvalue=glass) as store:
                return np.asarray(zarr.open(store, mode="r")[key])  # type: ignore[index]

    def _decode(self) -> np.ndarray:
        with opened_tiff(self.path) as file:
            level = file.series[self.image].levels[self.level]
        out = scratch(level.shape, level.dtype)
        with opened_tiff(self.path) as file:
            file.series[self.image].levels[self.level].asarray(out=out, maxworkers=1)
        return out


def open_tiff(path: Path) -> list[TiffLevel] | list[WholeFile]:
    """Open the levels of the largest image of a TIFF file, finest first.

    `OSError` if the file is damaged; `ValueError` if it is not one image in colours that can be converted to RGB.
    """
    with opened_tiff(path) as file:
        number, series = main_image(file)
        tags = series.keyframe.tags
        orientation = tags[ORIENTATION].value if ORIENTATION in tags else None
        segment = _segment(series)
        by_pillow = only_pillow_decodes(series.keyframe)
        found = not_one_image(file, number) or ("" if by_pillow else colours_of(file, number))
        levels = [
            TiffLevel(path, number, i, (*size_of(level), 3), _access(level), found, level.keyframe.chunks[0])
            for i, level in enumerate(series.levels)
            if isinstance(found, Colours) and same_shape(size_of(level), size_of(series))
        ]
    if isinstance(found, str) and found:
        msg = (
            f"{str(path)!r} holds {found}. Expected one image of H&E in RGB or grey, of 8 or 16 bits or as floats in "
            "[0, 1]. Export it as RGB, or pass the pixels as an array."
        )
        raise ValueError(msg)
    if by_pillow:
        return [open_whole(path, "TIFF")]
    if segment > MOST_DECODED and levels[0].access == "decoded":
        msg = (
            f"The pixels of {str(path)!r} are compressed in pieces of {segment / 1e9:.1f} GB, more than the "
            f"{MOST_DECODED / 1e9:.1f} GB for which stimg makes room. {AS_TILED_TIFF}"
        )
        raise OSError(msg)
    tell_orientation(path, orientation)
    levels[-1][:1, :1]  # raises now if the pixels cannot be decoded
    return levels


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Tell whether a level is the same picture, and not that of a label."""
    return abs(one[1] * other[0] - one[0] * other[1]) <= max(other) + SAME_SHAPE * one[0] * other[1]


def _segment(level: Any) -> int:
    """Return the bytes of a decoded tile or strip."""
    return math.prod(level.keyframe.chunks) * level.dtype.itemsize


def _access(level: Any) -> Literal["tiles", "mapped", "decoded"]:
    page = level.keyframe
    if _segment(level) <= MOST_STREAMED:
        return "tiles"
    return "mapped" if page.is_memmappable and level.dataoffset is not None else "decoded"
