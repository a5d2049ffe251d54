"""Both sides of single spots: the image around them, and their expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from scipy.spatial import cKDTree
from torch.utils.data import Dataset

from stimg._image._crops import crop_statistics, read_crop
from stimg._slide._geometry import spacing
from stimg.nn._align import GeneEncoder

if TYPE_CHECKING:
    from stimg._data._image_patches import ImagePatchDataset, Surroundings
    from stimg._image._slide_image import SlideImage

MIN_SD = 1e-3
NEIGHBOUR_PITCHES = 1.6


class SpotCropDataset(Dataset[dict[str, Any]]):
    """The spots of an `ImagePatchDataset`, one by one, each with a crop of `size` pixels around it.

    `chosen` numbers the spots to use, counted over one slide after another. With `crops`, items hold the crops
    themselves as well, for an encoder; `augment` flips and turns crops and flips surroundings. Expression is read as
    `gene_encoder` of `stimg.nn.AlignConfig` says: genes, the slides' embeddings, or (`"tuned"`) the tokens of the
    surroundings.
    """

    def __init__(
        self,
        patches: ImagePatchDataset,
        size: int,
        chosen: np.ndarray,
        *,
        crops: bool,
        augment: bool,
        gene_encoder: GeneEncoder = "mlp",
    ) -> None:
        self.patches = patches
        self.size = size
        self.crops = crops
        self.augment = augment
        slides = patches.slides
        self.options: dict[str, Any] = {"mpp": patches.mpp, "stain_normalise": patches.stain_normalise}
        self.slide = np.repeat(np.arange(len(slides)), [len(one.centres) for one in slides])[chosen]
        self.spot = np.concatenate([np.arange(len(one.centres)) for one in slides])[chosen]
        self.values = None
        if gene_encoder == "embedding":
            self.values = np.concatenate([z_scores(np.asarray(one.embedding)) for one in slides])[chosen]
        elif gene_encoder != "tuned":
            self.values = np.concatenate([gene_inputs(one.targets, one.centres) for one in slides])[chosen]
        if size not in patches.looks:
            looks = [stain_inputs(one.image, one.centres, size=size, **self.options) for one in slides]
            patches.looks[size] = np.concatenate(looks)
        self.looks = patches.looks[size][chosen]

    def __len__(self) -> int:
        return len(self.slide)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """Read one spot by its number, or by `(visit, number)`: each visit has its own symmetry.

        Items hold `look` float32 (n,), from `stain_inputs`; `slide` int64 (); `centre` float32 (2,), in micrometres;
        with crops also `image` uint8 (3, size, size). Expression is `values` float32, from `gene_inputs` or the
        z-scored embedding; or `tokens` float32 (m, d), `positions` float32 (m, 2) in pitches and `present` bool (m,) of
        the m sites around the spot.
        """
        visit, index = index if isinstance(index, tuple) else (0, index)
        rng = np.random.default_rng([self.patches.seed, visit, index])
        k, spot = int(self.slide[index]), int(self.spot[index])
        slide = self.patches.slides[k]
        item = {
            "look": torch.from_numpy(self.looks[index]),
            "slide": torch.tensor(k),
            "centre": torch.from_numpy(slide.centres[spot].astype(np.float32)),
        }
        if self.values is not None:
            item["values"] = torch.from_numpy(self.values[index])
        else:
            around: Any = slide.surroundings
            item |= window_inputs(around, spot)
            if self.augment:
                item["positions"] *= torch.from_numpy(rng.choice([-1, 1], 2))
        if self.crops:
            flip, turns = (int(rng.integers(n)) for n in (2, 4)) if self.augment else (0, 0)
            corner = slide.centres[spot] - self.size / 2 * self.patches.mpp
            item["image"] = read_crop(slide.image, corner, self.size, **self.options, flip=bool(flip), turns=turns)
        return item


def window_inputs(surroundings: Surroundings, spots: Any) -> dict[str, torch.Tensor]:
    """Return `tokens`, `positions` and `present` for the windows around one or several spots."""
    sites = surroundings.windows[spots]
    return {
        "tokens": torch.from_numpy(surroundings.tokens[sites]),
        "positions": torch.from_numpy(surroundings.positions[sites]),
        "present": torch.from_numpy(sites >= 0),
    }


def stain_inputs(image: SlideImage, centres: np.ndarray, *, size: int, mpp: float, stain_normalise: bool) -> np.ndarray:
    """Return the `crop_statistics` around each spot as z-scores within the slide, float32 (n, 2 * n_statistics)."""
    corners = centres - size / 2 * mpp
    return z_scores(crop_statistics(image, corners, size, mpp, stain_normalise=stain_normalise).double().numpy())


def z_scores(values: np.ndarray) -> np.ndarray:
    """Scale columns to a mean of zero and a deviation of one, float32; missing values become 0."""
    if not len(values):
        return values.astype(np.float32)
    with np.errstate(invalid="ignore"):
        scaled = (values - values.mean(0)) / np.maximum(values.std(0), MIN_SD)
    return np.nan_to_num(scaled).astype(np.float32)


def gene_inputs(targets: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return each spot's z-scores within the slide, and their mean over its neighbours, float32 (n, 2 * n_genes).

    Genes that the slide lacks (NaN) count as average. Neighbours lie within 1.6 times the median distance to the
    nearest spot.
    """
    values = z_scores(targets)
    around = np.zeros_like(values)
    if len(centres) > 1:
        tree = cKDTree(centres)
        reach = NEIGHBOUR_PITCHES * spacing(centres)
        near = sparse.csr_array(tree.sparse_distance_matrix(tree, reach, output_type="coo_matrix") > 0).astype(float)
        around = (near @ values) / np.maximum(near.sum(1), 1)[:, None]
    return np.concatenate([values, around], axis=1).astype(np.float32)
