"""Slide images of known resolution, read in pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from stimg._image._files import open_file
from stimg._image._pixels import WHITE, as_rgb, is_uint16
from stimg._image._stain import normalise_stain, optical_density
from stimg._image._tiff import same_shape
from stimg._image._tissue import tissue_mask
from stimg._image._whole import WholeFile

TISSUE_MPP = 8.0
DARK = 64  # H&E has at least some pixels brighter than this
AT_ONCE = 2**23  # pixels of a level read at once, unless its tiles are larger
AS_FLOATS = 2**21  # of these, turned to floats at once


@dataclass
class SlideImage:
    """An RGB slide image of known resolution that is read in pieces.

    The levels hold it at several resolutions, finest first. They are one `WholeFile`, or arrays (height, width),
    (height, width, channels) or (channels, height, width) that can be sliced (numpy, zarr, dask, levels of files), with
    1, 3 or 4 channels, uint8, uint16 or float in [0, 1].
    """

    levels: Sequence[Any] = field(repr=False)
    mpp: float  # micrometres per pixel of the finest level
    name: str = "image"  # for messages

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mpp) and self.mpp > 0):
            msg = f"Expected the micrometres per pixel of {self.name!r} to be above 0, found {self.mpp}."
            raise ValueError(msg)
        for level in self.levels:
            if not isinstance(level, WholeFile):
                check_image_array(level, self.name)

    @property
    def shape(self) -> tuple[int, int]:
        """Return height and width of the finest level in pixels."""
        return _size(self.levels[0])

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Tell which points (n, 2), row and column in micrometres, lie on the image, bool (n,)."""
        return np.all((points >= 0) & (points < np.array(self.shape) * self.mpp), axis=1)

    def read(
        self, top: float, left: float, size: tuple[int, int], mpp: float, *, stain_normalise: bool = False
    ) -> np.ndarray:
        """Read a window of `size` (height, width) pixels at any resolution, uint8 (height, width, 3).

        `top` and `left` are in micrometres from the image's upper-left corner; outside the image all is white. The
        coarsest level that is at least as fine as `mpp` is averaged over the area of each pixel; if all levels are
        coarser, the finest is interpolated bilinearly. The value of a pixel does not depend on the window it is in.
        `stain_normalise` matches the slide's colours to a reference.
        """
        level, level_mpp = self._level(mpp)
        factor = mpp / level_mpp
        rows, columns = (_resampling(first / level_mpp, factor, n) for first, n in zip((top, left), size, strict=True))
        # Whole rows of tiles, so that few are read twice, and no more than fit in little memory.
        at_once = max(AT_ONCE // (columns.stop - columns.start), 2 * _tile_rows(level))
        step = max(1, int(at_once / factor))
        parts = [_resampled(level, rows.part(first, first + step), columns) for first in range(0, size[0], step)]
        read = np.concatenate(parts)
        return normalise_stain(read, self.stain) if stain_normalise else read

    def _level(self, mpp: float) -> tuple[Any, float]:
        """Return the coarsest level that is at least as fine as `mpp`, and its micrometres per pixel."""
        if isinstance(self.levels[0], WholeFile):
            level, factor = self.levels[0].at(max(1, math.floor(mpp / self.mpp + 1e-6)))
            return level, self.mpp * factor
        height = self.shape[0]
        fits = [(level, self.mpp * height / _size(level)[0]) for level in self.levels]
        fine = [pair for pair in fits if pair[1] <= mpp * 1.01]
        return fine[-1] if fine else fits[0]

    def overview(self, mpp: float = TISSUE_MPP) -> np.ndarray:
        """Read the whole image, uint8 (h, w, 3), at `mpp` or at its own resolution if that is coarser.

        A `ValueError` if it is too dark for H&E.
        """
        mpp = max(mpp, self.mpp)
        height, width = (max(1, math.ceil(side * self.mpp / mpp)) for side in self.shape)
        strip = max(1, 2**22 // width)
        parts = [self.read(row * mpp, 0, (min(strip, height - row), width), mpp) for row in range(0, height, strip)]
        whole = np.concatenate(parts)
        inner = whole[: int(self.shape[0] * self.mpp / mpp), : int(self.shape[1] * self.mpp / mpp)]  # no white beyond
        if inner.size and (brightest := inner.max()) < DARK:
            msg = (
                f"The image {self.name!r} is too dark for H&E: its brightest pixel has {brightest} of 255. The 12 bits "
                "of a camera, say, may fill a small part of 16; or this is fluorescence, or a mask. Rescale the pixels "
                "so that white is the highest value of their type (1 for floats)."
            )
            raise ValueError(msg)
        return whole

    @cached_property
    def tissue(self) -> tuple[np.ndarray, float]:
        """Return a mask of the tissue, bool (h, w), and its micrometres per pixel; see `tissue_mask`."""
        mpp = max(TISSUE_MPP, self.mpp)
        return tissue_mask(self.overview(mpp), mpp), mpp

    @cached_property
    def stain(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and deviation of the optical density of tissue, float64 (3,) each."""
        mask, mpp = self.tissue
        density = optical_density(self.overview(mpp)[mask] if mask.any() else self.overview(mpp).reshape(-1, 3))
        return density.mean(0), np.maximum(density.std(0), 1e-3)


def open_image(source: Any, mpp: float, name: str) -> SlideImage:
    """Open an image that has `mpp` micrometres per pixel; `name` is for messages.

    `source` is the path of a PNG, JPEG, TIFF or scanner's file (pyramids are read lazily), an array, or a list with the
    levels of a pyramid. The errors are those of `open_file` and, for arrays that are not images, `ValueError`.
    """
    if isinstance(source, str | Path):
        return SlideImage(open_file(Path(source)), float(mpp), Path(source).name)
    image = SlideImage(list(source) if isinstance(source, list | tuple) else [source], float(mpp), name)
    sizes = [_size(level) for level in image.levels]
    if not sizes or any(size > sizes[0] or not same_shape(size, sizes[0]) for size in sizes):
        msg = f"Expected the levels of image {name!r} to be one picture, finest first, found sizes {sizes}."
        raise ValueError(msg)
    return image


def check_image_array(level: Any, name: str) -> None:
    """Require an image with 1, 3 or 4 channels of 8 or 16 bits or floats."""
    shape = tuple(getattr(level, "shape", ()))
    wide = (*shape, 1) if len(shape) == 2 else shape  # a grey image has one channel
    if len(wide) != 3 or wide[0 if _channels_first(wide) else 2] not in (1, 3, 4) or 0 in shape:
        msg = (
            f"Expected image {name!r} of shape (height, width), (height, width, channels) or (channels, height, width) "
            f"with 1, 3 or 4 channels, found {shape}."
        )
        raise ValueError(msg)
    if level.dtype != np.uint8 and not is_uint16(level.dtype) and level.dtype.kind != "f":
        cure = " If its values are 0 to 255, pass `image.astype('uint8')`." if level.dtype.kind in "iu" else ""
        msg = f"Expected image {name!r} as uint8, uint16 or float in [0, 1], found {level.dtype}.{cure}"
        raise ValueError(msg)


def _size(level: Any) -> tuple[int, int]:
    first = 1 if _channels_first(level.shape) else 0
    return int(level.shape[first]), int(level.shape[first + 1])


def _tile_rows(level: Any) -> int:
    """Return how many rows of pixels come together when a few are read."""
    chunks = getattr(level, "chunksize", getattr(level, "chunks", None))  # of dask, of zarr
    return int(getattr(level, "tile_rows", chunks[1 if _channels_first(level.shape) else 0] if chunks else 1))


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4)


def _window(level: Any, starts: Sequence[int], stops: Sequence[int]) -> np.ndarray:
    """Read pixels from `starts` to `stops` of a level, uint8 (h, w, 3); white outside."""
    height, width = _size(level)
    out = np.full((stops[0] - starts[0], stops[1] - starts[1], 3), WHITE, dtype=np.uint8)
    rows = slice(min(max(starts[0], 0), height), min(max(stops[0], 0), height))
    columns = slice(min(max(starts[1], 0), width), min(max(stops[1], 0), width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return out
    first = _channels_first(level.shape)
    part = np.asarray(level[:, rows, columns] if first else level[rows, columns])
    part = np.moveaxis(part, 0, 2) if first else part
    top, left = rows.start - starts[0], columns.start - starts[1]
    out[top : top + len(part), left : left + part.shape[1]] = as_rgb(part)
    return out


@dataclass(frozen=True)
class _Resampling:
    """The weight of each of a level's pixels, start to stop, in each new one along one axis."""

    weights: sparse.csr_array  # (new pixels, stop - start)
    start: int
    stop: int

    def part(self, first: int, last: int) -> _Resampling:
        """Return the weights of the new pixels first to last."""
        chosen = self.weights[first:last]
        low, high = int(chosen.indices.min()), int(chosen.indices.max()) + 1
        return _Resampling(chosen[:, low:high], self.start + low, self.start + high)


def _resampled(level: Any, rows: _Resampling, columns: _Resampling) -> np.ndarray:
    """Read a window of a level at another resolution, uint8 (h, w, 3)."""
    pixels = _window(level, (rows.start, columns.start), (rows.stop, columns.stop))
    height, width = rows.weights.shape[0], columns.weights.shape[0]
    blocks = np.array_split(pixels, max(1, len(pixels) * pixels.shape[1] // AS_FLOATS), axis=1)
    parts = [rows.weights @ block.astype(np.float32).reshape(len(block), -1) for block in blocks]
    down = np.concatenate([part.reshape(height, -1, 3) for part in parts], axis=1)
    across = columns.weights @ down.transpose(1, 0, 2).reshape(pixels.shape[1], -1)
    return np.clip(np.rint(across.reshape(width, height, 3).transpose(1, 0, 2)), 0, 255).astype(np.uint8)


def _resampling(first: float, factor: float, n_pixels: int) -> _Resampling:
    """Return the weights of a level's pixels in `n_pixels` new ones, each `factor` wide, from `first` on."""
    index = np.arange(n_pixels)
    if factor >= 1:  # average over areas
        low, high = first + index * factor, first + (index + 1) * factor
        taps = np.floor(low).astype(np.int64)[:, None] + np.arange(math.ceil(factor) + 1)
        weights = np.clip(np.minimum(taps + 1, high[:, None]) - np.maximum(taps, low[:, None]), 0, None) / factor
    else:  # interpolate between the centres of two pixels
        centre = first + (index + 0.5) * factor - 0.5
        taps = np.floor(centre).astype(np.int64)[:, None] + np.arange(2)
        share = (centre - np.floor(centre))[:, None]
        weights = np.concatenate([1 - share, share], 1)
    start, stop = int(taps.min()), int(taps.max()) + 1
    place = np.repeat(index, taps.shape[1]), (taps - start).ravel()
    matrix = sparse.csr_array((weights.ravel().astype(np.float32), place), shape=(n_pixels, stop - start))
    return _Resampling(matrix, start, stop)
