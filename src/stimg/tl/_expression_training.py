"""The Lightning side of training on H&E."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from scipy.spatial import cKDTree

from stimg._footprints import disk_footprints
from stimg.nn import DenseConfig, DenseNetwork
from stimg.nn._dense import MAP_STRIDE
from stimg.tl._training import TrainingModule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from stimg.pp import ImagePatchDataset

MIN_SD = 1e-3


class ExpressionModule(TrainingModule):
    """Mean squared error and correlation of spots, and of groups of neighbouring spots, read from the dense map.

    Parameters
    ----------
    network, recipe
        The network and its configuration.
    patches
        The slides.
    held_out
        For each slide, bool (n_spots,): spots for the validation loss alone.
    total_steps, max_seconds, seed
        As of `TrainingModule`.
    """

    sample = "image"
    network: DenseNetwork
    recipe: DenseConfig

    def __init__(
        self,
        network: DenseNetwork,
        recipe: DenseConfig,
        patches: ImagePatchDataset,
        held_out: list[np.ndarray],
        *,
        total_steps: int,
        max_seconds: float | None,
        seed: int,
    ) -> None:
        super().__init__(network, recipe, total_steps=total_steps, max_seconds=max_seconds, seed=seed)
        self.patches = patches
        self.held_out = held_out
        self.pitches = [pitch_px(slide.centres, patches.mpp) for slide in patches.slides]

    def loss(self, batch: dict[str, Tensor], seed: int) -> Tensor:
        """Loss of one batch of crops: of training spots, with random colours and groups; else of those held out."""
        generator = torch.Generator().manual_seed(seed)
        images = batch["image"].float() / 255
        stain = self.network.statistics(images, batch["stain"])
        group = 0.0
        if self.training:
            images = jitter_colours(images, self.recipe.colour_jitter, generator)
            sizes = self.recipe.group_sizes
            group = sizes[int(torch.randint(len(sizes), (1,), generator=generator))]
        footprints, targets = self.read_spots(batch, group)
        features = torch.cat([self.network.decode(images), stain], 1)
        predicted = self.network.read(features, footprints.to(images.device))
        truth = (targets.to(images.device) - self.network.gene_mean) / self.network.gene_sd
        return spot_loss(predicted, truth, self.recipe.pearson_loss)

    def kept(self, batch: dict[str, Tensor]) -> np.ndarray:
        """Which of a batch's spots are for training, or those held out where the module is not being trained."""
        crop, spots = batch["batch"].cpu().numpy(), batch["spots"].cpu().numpy()
        held = [self.held_out[s][spots[crop == i]] for i, s in enumerate(batch["slide"].tolist())]
        return np.flatnonzero(np.concatenate(held) != self.training)

    def read_spots(self, batch: dict[str, Tensor], group: float) -> tuple[Tensor, Tensor]:
        """Footprints, sparse (n, pixels of the batch's maps), and log-normalised targets (n, n_genes)."""
        crop, slide = batch["batch"].cpu().numpy(), batch["slide"].cpu().numpy()
        spots, centres = batch["spots"].cpu().numpy(), batch["centres"].cpu().numpy()
        radii, of_slide = batch["radius"].cpu().numpy()[crop], slide[crop]
        kept = self.kept(batch)
        side = batch["image"].shape[-1] // MAP_STRIDE
        places = centres[kept] / MAP_STRIDE + np.stack([crop[kept] * side, np.zeros(len(kept))], 1)
        radii = radii[kept] / MAP_STRIDE
        areas = disk_footprints(places, radii, (len(slide) * side, side))
        members = sparse.eye_array(len(kept), format="csr")
        if group:
            reach = group * np.array(self.pitches)[of_slide[kept]] / MAP_STRIDE
            members = neighbours(places, crop[kept], reach)
        counts, totals = self._counts(of_slide[kept], spots[kept])
        targets = log_normalised_sums(members, counts, totals, self.patches.target_sum)
        missing = np.stack([np.isnan(self.patches.slides[s].targets).all(0) for s in slide])
        targets[missing[crop[kept]]] = np.nan
        areas = members @ areas
        if self.recipe.aggregation == "mean":
            weights = areas.multiply(1 / areas.sum(1)[:, None])
        else:
            weights = areas.multiply(1 / (np.pi * radii**2)[:, None])
        return as_tensor(sparse.csr_array(weights)), torch.from_numpy(targets)

    def _counts(self, slides: np.ndarray, spots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Raw counts float64 (n, n_genes) and totals over all genes (n,) of spots."""
        counts = np.zeros((len(spots), len(self.patches.genes)))
        totals = np.zeros(len(spots))
        for s in np.unique(slides):
            chosen = np.flatnonzero(slides == s)
            counts[chosen] = self.patches.slides[s].counts[spots[chosen]].toarray()
            totals[chosen] = self.patches.slides[s].totals[spots[chosen]]
        return counts, totals


def stain_regression(module: ExpressionModule, loader: Iterable[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Ridge regression of standardised targets on the stain statistics of the training spots.

    The penalty is the one with the least error left out (generalised cross-validation).

    Returns
    -------
    tuple
        Weight float32 (n_genes, n_statistics) and bias (n_genes,), on the statistics as they are.
    """
    from sklearn.linear_model import RidgeCV

    network, found, wanted, names = module.network, [], [], []
    module.train()
    with torch.no_grad():
        for batch in loader:
            footprints, targets = module.read_spots(batch, 0.0)
            statistics = network.statistics(batch["image"].float() / 255, batch["stain"]).movedim(1, -1).flatten(0, 2)
            found.append(torch.sparse.mm(footprints, statistics))
            wanted.append((targets - network.gene_mean) / network.gene_sd)
            names.append(torch.stack([batch["slide"][batch["batch"]], batch["spots"]], 1)[module.kept(batch)])
    once = np.unique(torch.cat(names).numpy(), axis=0, return_index=True)[1]  # a spot may lie in several crops
    statistics, truth = torch.cat(found).numpy()[once].astype(np.float64), torch.cat(wanted).numpy()[once]
    truth = np.nan_to_num(truth)
    mean, sd = statistics.mean(0), np.maximum(statistics.std(0), 1e-6) / network.stain.weights.numpy()
    ridge = RidgeCV(np.logspace(-1, 5, 13)).fit((statistics - mean) / sd, truth)
    weight = np.atleast_2d(ridge.coef_) / sd
    bias = np.atleast_1d(ridge.intercept_) - weight @ mean
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


def pitch_px(centres: np.ndarray, mpp: float) -> float:
    """Median distance to the nearest other spot in pixels of the crops."""
    if len(centres) < 2:
        return 1.0
    return float(np.median(cKDTree(centres).query(centres, k=2)[0][:, 1])) / mpp


def neighbours(places: np.ndarray, crop: np.ndarray, reach: np.ndarray) -> sparse.csr_array:
    """Which spots of the same crop lie within `reach` of each, sparse (n, n) of ones, itself among them."""
    far = np.column_stack([places, crop * (places.max(initial=0) + reach.max(initial=0)) * 10])
    near = ((far[:, None] - far[None]) ** 2).sum(2) <= reach[:, None] ** 2
    return sparse.csr_array(near.astype(float))


def log_normalised_sums(
    members: sparse.csr_array, counts: np.ndarray, totals: np.ndarray, target_sum: float
) -> np.ndarray:
    """Log-normalised expression float32 (n_groups, n_genes) of the summed counts of groups."""
    total = members @ totals
    share = (members @ counts) / np.where(total > 0, total, 1)[:, None]
    return np.log1p(target_sum * share).astype(np.float32)


def jitter_colours(images: Tensor, sd: float, generator: torch.Generator) -> Tensor:
    """Scale and shift each channel's optical density at random, one draw an image; float32 in [0, 1]."""
    if not sd:
        return images
    scale, shift = torch.randn(2, len(images), 3, 1, 1, generator=generator).to(images.device) * sd
    density = -torch.log(images.clamp(min=1 / 255))
    return torch.exp(-(density * scale.exp() + 0.5 * shift * density.mean((2, 3), keepdim=True))).clamp(0, 1)


def spot_loss(predicted: Tensor, truth: Tensor, pearson_weight: float) -> Tensor:
    """Mean squared error plus `pearson_weight` x (1 - Pearson over the batch, mean over genes), as PixNet's loss.

    NaN in `truth` (a gene that the slide was not measured for) is left out.
    """
    known = torch.isfinite(truth)
    truth = torch.where(known, truth, predicted.detach())
    error = F.mse_loss(predicted, truth, reduction="none")
    loss = (error * known).sum() / known.sum().clamp(min=1)
    if not pearson_weight or len(truth) < 3:
        return loss
    number = known.sum(0).clamp(min=1)
    centred = [known * (x - (x * known).sum(0) / number) for x in (predicted, truth)]
    product = (centred[0] * centred[1]).sum(0)
    norms = [x.square().sum(0) for x in centred]
    judged = (known.sum(0) > 2) & (norms[1] > 1e-8)
    pearson = product / (norms[0] * norms[1] + 1e-8).sqrt()
    return loss + pearson_weight * ((1 - pearson) * judged).sum() / judged.sum().clamp(min=1)


def as_tensor(matrix: sparse.csr_array) -> Tensor:
    """Return a sparse float32 tensor; its gradient flows to what it is multiplied with."""
    coo = matrix.tocoo()
    place = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
    values = torch.from_numpy(coo.data.astype(np.float32))
    return torch.sparse_coo_tensor(place, values, matrix.shape, check_invariants=False).coalesce()


def standard_targets(patches: ImagePatchDataset, n_programs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation of each gene over all spots, and the principal programs of the standardised targets.

    Returns
    -------
    tuple
        float32 (n_genes,), (n_genes,) and (n, n_genes), with n of at most `n_programs`; a program's length is the
        deviation of its scores.
    """
    from sklearn.decomposition import PCA

    targets = np.concatenate([slide.targets for slide in patches.slides])
    mean, sd = np.nanmean(targets, 0), np.nanstd(targets, 0)
    sd = np.maximum(sd, MIN_SD)
    standard = np.nan_to_num((targets - mean) / sd)
    n_programs = min(n_programs, *standard.shape)
    programs = np.empty((0, standard.shape[1]))
    if n_programs:
        pca = PCA(n_programs, random_state=0).fit(standard)
        programs = pca.components_ * np.sqrt(pca.explained_variance_)[:, None]
    return tuple(torch.from_numpy(part.astype(np.float32)) for part in (mean, sd, programs))  # type: ignore[return-value]
