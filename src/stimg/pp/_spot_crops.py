"""Crops of H&E around single spots, with their expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from stimg._image import normalise_stain

if TYPE_CHECKING:
    from stimg.pp._image_patch_dataset import ImagePatchDataset

MIN_SD = 1e-3


class SpotCropDataset(Dataset[dict[str, Any]]):
    """One crop a spot of the slides of an `ImagePatchDataset`.

    Parameters
    ----------
    patches
        The slides, their resolution and their treatment of stain.
    size
        Side of a crop in pixels.
    chosen
        Which of all spots, one slide after another.
    augment
        Flip and turn crops.
    """

    def __init__(self, patches: ImagePatchDataset, size: int, chosen: np.ndarray, *, augment: bool) -> None:
        self.patches = patches
        self.size = size
        self.augment = augment
        slides = patches.slides
        self.slide = np.repeat(np.arange(len(slides)), [len(one.centres) for one in slides])[chosen]
        self.spot = np.concatenate([np.arange(len(one.centres)) for one in slides])[chosen]
        self.values = np.concatenate([standardise(one.targets) for one in slides])[chosen]

    def __len__(self) -> int:
        return len(self.slide)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """Read one crop.

        Parameters
        ----------
        index
            Of the spot, or `(visit, index)`: each visit has its own symmetry.

        Returns
        -------
        dict
            `image` uint8 (3, size, size); `stain` float32 (2, n), of the slide; `values` float32 (n_genes,),
            standardised within the slide; `slide` int64 (); `centre` float32 (2,), in micrometres.
        """
        visit, index = index if isinstance(index, tuple) else (0, index)
        k, spot = int(self.slide[index]), int(self.spot[index])
        slide = self.patches.slides[k]
        image = read_crop(slide.image, slide.centres[spot], self.size, self.patches.mpp, self.patches.stain_normalise)
        if self.augment:
            rng = np.random.default_rng([self.patches.seed, visit, index])
            image = image[:, ::-1] if rng.integers(2) else image
            image = np.rot90(image, int(rng.integers(4)))
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1),
            "stain": self.patches.stain_statistics(k),
            "values": torch.from_numpy(self.values[index]),
            "slide": torch.tensor(k),
            "centre": torch.from_numpy(slide.centres[spot].astype(np.float32)),
        }


def read_crop(image: Any, centre: np.ndarray, size: int, mpp: float, stain_normalise: bool) -> np.ndarray:
    """Square around a place, uint8 (size, size, 3)."""
    top, left = centre - size / 2 * mpp
    crop = image.read(top, left, (size, size), mpp)
    return normalise_stain(crop, image.stain) if stain_normalise else crop


def standardise(targets: np.ndarray) -> np.ndarray:
    """Log-normalised expression of a slide's spots as z-scores, float32; 0 for genes that it lacks."""
    if not len(targets):
        return targets
    with np.errstate(invalid="ignore"):
        values = (targets - targets.mean(0)) / np.maximum(targets.std(0), MIN_SD)
    return np.nan_to_num(values).astype(np.float32)
