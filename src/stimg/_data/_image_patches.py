"""Crops of H&E images with the spots inside them."""

from __future__ import annotations

from copy import copy
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from stimg._image._crops import read_crop, slide_statistics
from stimg._image._footprints import wholly_inside
from stimg.nn._stain import StainStatistics

if TYPE_CHECKING:
    from scipy import sparse

    from stimg._image._slide_image import SlideImage
    from stimg.models import Model


@dataclass(frozen=True)
class Surroundings:
    """Tokens of a table's sites, and the window of sites around each of some observations."""

    tokens: np.ndarray  # float32 (n_sites, d)
    positions: np.ndarray  # float32 (n_sites, 2): true x and y in units of the pitch
    windows: np.ndarray  # int32 (n, size * size): sites around each observation, its own in the middle; -1: none


@dataclass(frozen=True)
class ImageSlide:
    """One slide: its image, and the spots with expression that lie on it."""

    name: str  # in messages and on the model's card
    image: SlideImage
    centres: np.ndarray  # float64 (n_spots, 2): row and column in micrometres from the image's upper-left corner
    diameter_um: float  # of a spot
    counts: sparse.csr_array  # raw counts of the dataset's genes (n_spots, n_genes); zero for genes the slide lacks
    totals: np.ndarray  # float64 (n_spots,): counts over all genes of the slide
    targets: np.ndarray  # float32 (n_spots, n_genes): log-normalised expression; NaN for genes the slide lacks
    obs_index: np.ndarray  # int64 (n_spots,): row of each spot in its table
    embedding: np.ndarray | None = None  # float32 (n_spots, d)
    surroundings: Surroundings | None = None  # what a spatial network sees around the spots


@dataclass(eq=False, repr=False)
class ImagePatchDataset(Dataset[dict[str, Any]]):
    """Square crops of H&E images, each with the spots that lie wholly inside it.

    Made by :func:`stimg.pp.to_image_patches`. Crops are read when they are needed.

    Attributes
    ----------
    slides
        The slides.
    genes
        Names of the genes, str (n_genes,).
    mpp
        Micrometres per pixel of the crops.
    size
        Side of a crop in pixels.
    windows
        int64 (n, 3): slide, top and left of each crop in pixels at `mpp`, before jitter.
    spatial_model
        The model whose tokens the slides' surroundings hold, or `None`.
    looks
        For each size of crops, the stain around every spot, one slide after another; filled by `SpotCropDataset`.
    """

    slides: list[ImageSlide]
    _: KW_ONLY
    genes: np.ndarray
    mpp: float
    size: int
    stride: int
    stain_normalise: bool
    augment: bool
    target_sum: float
    seed: int
    spatial_model: Model | None = None

    def __post_init__(self) -> None:
        # In shared memory, so that what one process measures while reading crops is known to the others.
        self._stains = torch.full((len(self.slides), 2, StainStatistics.channels), torch.nan).share_memory_()
        self.looks: dict[int, np.ndarray] = {}
        windows = [(k, *corner) for k, slide in enumerate(self.slides) for corner in self._corners(slide)]
        self.windows = np.array([w for w in windows if len(self._spots(*w)[0])], dtype=np.int64).reshape(-1, 3)

    def _corners(self, slide: ImageSlide) -> list[tuple[int, int]]:
        """List corners of crops that cover the spots' bounding box, evenly spaced by at most `stride`."""
        margin = slide.diameter_um / 2 / self.mpp
        low = slide.centres.min(0) / self.mpp - margin - 1
        high = slide.centres.max(0) / self.mpp + margin + 1
        axes = []
        for first, last in zip(low, high, strict=True):
            spare = last - first - self.size
            shift = min(spare, 0) / 2  # a crop that is larger than the spots' box is centred on it
            steps = np.linspace(0, max(spare, 0), int(np.ceil(max(spare, 0) / self.stride)) + 1)
            axes.append(np.floor(first + shift + steps).astype(int))
        return [(int(top), int(left)) for top in axes[0] for left in axes[1]]

    def _spots(self, k: int, top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the spots wholly inside a crop, int64 (k,), and their centres in its pixels, float64 (k, 2)."""
        slide = self.slides[k]
        places = slide.centres / self.mpp - [top, left]
        inside = np.flatnonzero(wholly_inside(places, slide.diameter_um / 2 / self.mpp, self.size))
        return inside, places[inside]

    def stain_statistics(self, k: int) -> torch.Tensor:
        """Return the stain statistics of a slide's spots, measured once, by the process that first needs them."""
        if not torch.isfinite(self._stains[k]).all():
            image, centres = self.slides[k].image, self.slides[k].centres
            self._stains[k] = slide_statistics(image, centres, self.mpp, stain_normalise=self.stain_normalise)
        return self._stains[k]

    def __len__(self) -> int:
        return len(self.windows)

    def __repr__(self) -> str:
        n_spots = sum(len(slide.centres) for slide in self.slides)
        return (
            f"ImagePatchDataset: {len(self)} crops of {self.size} x {self.size} pixels at {self.mpp:g} um with "
            f"{n_spots:,} spots and {len(self.genes)} genes, from {len(self.slides)} slides"
        )

    def with_augment(self, augment: bool) -> ImagePatchDataset:
        """Return the same crops with or without jitter, flips and quarter turns."""
        other = copy(self)
        other.augment = augment
        return other

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """Read one crop by its number, or by `(visit, number)`: each visit has its own jitter and symmetry.

        Returns
        -------
        dict
            `image` uint8 (3, size, size); `stain` float32 (2, n), mean and deviation of the stain statistics over
            the slide's spots; `centres` float32 (k, 2), row and column in pixels of the crop; `radius` float32 (), in
            pixels; `spots` int64 (k,), rows of the slide; `targets` float32 (k, n_genes); `slide` int64 ().
        """
        visit, index = index if isinstance(index, tuple) else (0, index)
        if not -len(self) <= index < len(self):
            msg = f"Expected the number of one of {len(self)} crops, found {index}."
            raise IndexError(msg)
        index %= len(self)
        rng = np.random.default_rng([self.seed, visit, index])
        k, top, left = (int(value) for value in self.windows[index])
        if self.augment:
            down, right = rng.integers(-(self.stride // 2), self.stride // 2 + 1, size=2)
            if len(self._spots(k, top + down, left + right)[0]):
                top, left = top + int(down), left + int(right)
        spots, centres = self._spots(k, top, left)
        slide = self.slides[k]
        flip, turns = (int(rng.integers(n)) for n in (2, 4)) if self.augment else (0, 0)
        options: dict[str, Any] = {"stain_normalise": self.stain_normalise, "flip": bool(flip), "turns": turns}
        if flip:
            centres = np.stack([centres[:, 0], self.size - centres[:, 1]], 1)
        for _ in range(turns):
            centres = np.stack([self.size - centres[:, 1], centres[:, 0]], 1)
        return {
            "image": read_crop(slide.image, (top * self.mpp, left * self.mpp), self.size, self.mpp, **options),
            "stain": self.stain_statistics(k),
            "centres": torch.from_numpy(centres.astype(np.float32)),
            "radius": torch.tensor(slide.diameter_um / 2 / self.mpp, dtype=torch.float32),
            "spots": torch.from_numpy(spots),
            "targets": torch.from_numpy(slide.targets[spots]),
            "slide": torch.tensor(k),
        }

    @staticmethod
    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Combine crops into a batch: images stacked, spots joined, and `batch`, the crop in which each spot lies."""
        stacked = {key: torch.stack([item[key] for item in items]) for key in ("image", "stain", "radius", "slide")}
        joined = {key: torch.cat([item[key] for item in items]) for key in ("centres", "spots", "targets")}
        number = torch.tensor([len(item["spots"]) for item in items])
        return {**stacked, **joined, "batch": torch.repeat_interleave(torch.arange(len(items)), number)}
