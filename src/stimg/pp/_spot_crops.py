"""Crops of H&E around single spots, with their expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from scipy.spatial import cKDTree
from torch.utils.data import Dataset

from stimg._image import normalise_stain

if TYPE_CHECKING:
    from stimg.pp._image_patch_dataset import ImagePatchDataset

MIN_SD = 1e-3
NEIGHBOUR_PITCHES = 1.6


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
        self.values = np.concatenate([gene_inputs(one.targets, one.centres) for one in slides])[chosen]

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
            `image` uint8 (3, size, size); `stain` float32 (2, n), of the slide; `values` float32
            (2 * n_genes,), from `gene_inputs`; `slide` int64 (); `centre` float32 (2,), in micrometres.
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


def gene_inputs(targets: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Give what a gene encoder reads: each spot's z-scores within the slide, and their mean over its neighbours.

    Parameters
    ----------
    targets
        Log-normalised expression (n_spots, n_genes); NaN for genes that the slide lacks, which count as average.
    centres
        (n_spots, 2) in micrometres. Neighbours lie within 1.6 times the median distance to the nearest spot.

    Returns
    -------
    ndarray
        float32 (n_spots, 2 * n_genes).
    """
    if not len(targets):
        return np.empty((0, 2 * targets.shape[1]), dtype=np.float32)
    with np.errstate(invalid="ignore"):
        values = np.nan_to_num((targets - targets.mean(0)) / np.maximum(targets.std(0), MIN_SD))
    around = np.zeros_like(values)
    if len(centres) > 1:
        tree = cKDTree(centres)
        reach = NEIGHBOUR_PITCHES * float(np.median(tree.query(centres, k=2)[0][:, 1]))
        near = sparse.csr_array(tree.sparse_distance_matrix(tree, reach, output_type="coo_matrix") > 0).astype(float)
        around = (near @ values) / np.maximum(near.sum(1), 1)[:, None]
    return np.concatenate([values, around], axis=1).astype(np.float32)
