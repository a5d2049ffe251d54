"""Slide images of known resolution, read in pieces."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from stimg._image._files import WHITE, WholeFile, as_rgb, open_file
from stimg._image._stain import normalise_stain, optical_density

TISSUE_MPP = 8.0
SMALLEST_PART_UM = 100.0
LEAST_STAINED = 0.1


@dataclass
class SlideImage:
    """An RGB slide image of known resolution that is read in pieces.

    Parameters
    ----------
    levels
        The image at several resolutions, finest first: arrays (height, width), (height, width, channels) or
        (channels, height, width) that can be sliced (numpy, zarr, dask), with 1, 3 or 4 channels, uint8, uint16 or
        float in [0, 1]; or one `WholeFile`.
    mpp
        Micrometres per pixel of the finest level.
    name
        For messages.
    """

    levels: Sequence[Any] = field(repr=False)
    mpp: float
    name: str = "image"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mpp) and self.mpp > 0):
            msg = f"Expected micrometres per pixel of {self.name!r} above 0, found {self.mpp}."
            raise ValueError(msg)
        for level in self.levels:
            if not isinstance(level, WholeFile):
                check_image_array(level, self.name)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the finest level in pixels."""
        return _size(self.levels[0])

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Tell which points (n, 2), row and column in micrometres, lie on the image, bool (n,)."""
        return np.all((points >= 0) & (points < np.array(self.shape) * self.mpp), axis=1)

    def read(
        self, top: float, left: float, size: tuple[int, int], mpp: float, *, stain_normalise: bool = False
    ) -> np.ndarray:
        """Read a window at any resolution.

        The coarsest level that is at least as fine is averaged over the areas of the pixels asked for; if all levels
        are coarser, the finest is interpolated bilinearly. A pixel does not depend on the window it is in.

        Parameters
        ----------
        top, left
            Upper-left corner of the window in micrometres from that of the image.
        size
            Height and width in pixels.
        mpp
            Micrometres per pixel asked for.
        stain_normalise
            Bring the slide's colours to a reference.

        Returns
        -------
        ndarray
            uint8 (height, width, 3); white outside the image.
        """
        level, level_mpp = self._level(mpp)
        weights, starts, stops = [], [], []
        for first, n_pixels in ((top, size[0]), (left, size[1])):
            matrix, start, stop = _resampling(first / level_mpp, mpp / level_mpp, n_pixels)
            weights.append(matrix)
            starts.append(start)
            stops.append(stop)
        pixels = _window(level, starts, stops).astype(np.float32)
        rows = weights[0] @ pixels.reshape(len(pixels), -1)
        columns = rows.reshape(size[0], -1, 3).transpose(1, 0, 2).reshape(pixels.shape[1], -1)
        found = (weights[1] @ columns).reshape(size[1], size[0], 3).transpose(1, 0, 2)
        read = np.clip(np.rint(found), 0, 255).astype(np.uint8)
        return normalise_stain(read, self.stain) if stain_normalise else read

    def _level(self, mpp: float) -> tuple[Any, float]:
        """Coarsest level that is at least as fine as `mpp`, and its micrometres per pixel."""
        if isinstance(self.levels[0], WholeFile):
            level, factor = self.levels[0].at(max(1, math.floor(mpp / self.mpp + 1e-6)))
            return level, self.mpp * factor
        height = self.shape[0]
        fits = [(level, self.mpp * height / _size(level)[0]) for level in self.levels]
        fine = [pair for pair in fits if pair[1] <= mpp * 1.01]
        return fine[-1] if fine else fits[0]

    def overview(self, mpp: float = TISSUE_MPP) -> np.ndarray:
        """Whole image at a coarse resolution, uint8 (h, w, 3), at most its own."""
        mpp = max(mpp, self.mpp)
        height, width = (max(1, math.ceil(side * self.mpp / mpp)) for side in self.shape)
        strip = max(1, 2**22 // width)
        parts = [self.read(row * mpp, 0, (min(strip, height - row), width), mpp) for row in range(0, height, strip)]
        return np.concatenate(parts)

    @cached_property
    def tissue(self) -> tuple[np.ndarray, float]:
        """Where tissue is, bool (h, w), and the micrometres per pixel of that mask.

        Saturation (in grey images, darkness) above Otsu's threshold, or above 0.1 if that is lower (an image without
        glass); parts and holes less than 100 micrometres across are dropped.
        """
        from skimage.filters import threshold_otsu
        from skimage.morphology import remove_small_holes, remove_small_objects

        mpp = max(TISSUE_MPP, self.mpp)
        pixels = self.overview(mpp).astype(np.float32)
        brightest = np.maximum(pixels.max(2), 1)
        stained = (brightest - pixels.min(2)) / brightest
        if not stained.any():
            stained = 1 - pixels[..., 0] / 255
        mask = stained > min(threshold_otsu(stained), LEAST_STAINED)
        smallest = max(1, int((SMALLEST_PART_UM / mpp) ** 2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # scikit-image renamed the size's argument
            mask = remove_small_holes(remove_small_objects(mask, smallest), smallest)
        return mask, mpp

    @cached_property
    def stain(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of the optical density of tissue, float64 (3,) each."""
        mask, mpp = self.tissue
        density = optical_density(self.overview(mpp)[mask] if mask.any() else self.overview(mpp).reshape(-1, 3))
        return density.mean(0), np.maximum(density.std(0), 1e-3)


def open_image(source: Any, mpp: float, name: str) -> SlideImage:
    """Open an image at `mpp` micrometres per pixel.

    `source` is the path of a PNG, JPEG, TIFF or OME-TIFF file (pyramids are read lazily), an array, or a list with the
    levels of a pyramid; `name` is for messages.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    OSError
        The file is damaged or of an unknown format.
    ValueError
        The array is not an image.
    """
    if isinstance(source, str | Path):
        return SlideImage(open_file(Path(source)), float(mpp), Path(source).name)
    return SlideImage(list(source) if isinstance(source, list | tuple) else [source], float(mpp), name)


def check_image_array(level: Any, name: str) -> None:
    """Refuse what is not an image with 1, 3 or 4 channels of 8 or 16 bits or floats."""
    shape = tuple(getattr(level, "shape", ()))
    channels = _channels(shape)
    if channels not in (1, 3, 4) or 0 in shape:
        msg = (
            f"Expected image {name!r} of shape (height, width), (height, width, channels) or (channels, height, width) "
            f"with 1, 3 or 4 channels, found {shape}."
        )
        raise ValueError(msg)
    if level.dtype not in (np.uint8, np.uint16) and level.dtype.kind != "f":
        msg = f"Expected image {name!r} as uint8, uint16 or float in [0, 1], found {level.dtype}."
        raise ValueError(msg)


def _size(level: Any) -> tuple[int, int]:
    shape = level.shape
    first = isinstance(level, WholeFile) or not _channels_first(shape)
    return (int(shape[0]), int(shape[1])) if first else (int(shape[1]), int(shape[2]))


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4)


def _channels(shape: tuple[int, ...]) -> int:
    if len(shape) == 2:
        return 1
    if len(shape) != 3:
        return 0
    return shape[0] if _channels_first(shape) else shape[2]


def _window(level: Any, starts: list[int], stops: list[int]) -> np.ndarray:
    """Pixels uint8 (h, w, 3) of a level; white outside."""
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


def _resampling(first: float, factor: float, n_pixels: int) -> tuple[sparse.csr_array, int, int]:
    """Weights (n_pixels, stop - start) of a level's pixels start to stop in each pixel asked for, along one axis."""
    index = np.arange(n_pixels)
    if factor >= 1:  # areas
        low, high = first + index * factor, first + (index + 1) * factor
        n_taps = math.ceil(factor) + 1
        taps = np.floor(low).astype(np.int64)[:, None] + np.arange(n_taps)
        weights = np.clip(np.minimum(taps + 1, high[:, None]) - np.maximum(taps, low[:, None]), 0, None) / factor
    else:  # between the centres of two pixels
        centre = first + (index + 0.5) * factor - 0.5
        taps = np.floor(centre).astype(np.int64)[:, None] + np.arange(2)
        share = (centre - np.floor(centre))[:, None]
        weights = np.concatenate([1 - share, share], 1)
    start, stop = int(taps.min()), int(taps.max()) + 1
    rows = np.repeat(index, taps.shape[1])
    matrix = sparse.csr_array(
        (weights.ravel().astype(np.float32), (rows, (taps - start).ravel())), shape=(n_pixels, stop - start)
    )
    return matrix, start, stop
