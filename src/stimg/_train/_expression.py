"""Dense expression from H&E, supervised by spots alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from scipy.spatial import cKDTree
from torch import Tensor
from torch.utils.data import DataLoader

from stimg._image._footprints import disk_footprints, pixel_weights
from stimg._train._images import jitter_colours, pitch_um
from stimg._train._module import TrainingModule
from stimg._train._sampler import EpochSampler
from stimg.nn import DenseConfig, DenseNetwork, get_encoder
from stimg.nn._losses import negative_binomial_loss, uncorrelated
from stimg.nn._stain import MAP_STRIDE

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from stimg._data import ImagePatchDataset
    from stimg._train._run import Run

MIN_SD = 1e-3
SHARPNESS = 10.0  # of the softplus that keeps expression positive in the likelihood of counts
DISPERSIONS = (1e-3, 10.0)


@dataclass(frozen=True)
class Spots:
    """Spots of a batch, or groups of neighbouring ones."""

    footprints: Tensor  # sparse (n, pixels of the batch's maps)
    targets: Tensor  # log-normalised expression (n, n_genes); NaN for genes not measured
    counts: Tensor  # raw counts (n, n_genes)
    totals: Tensor  # counts over all genes (n,)


class ExpressionModule(TrainingModule):
    """Error (squared, or of counts) and correlation of spots, and of groups of neighbours, read from the dense map.

    `held_out` marks the spots of each slide, bool (n_spots,), that only the validation loss sees.
    """

    network: DenseNetwork
    recipe: DenseConfig

    def __init__(
        self,
        network: DenseNetwork,
        recipe: DenseConfig,
        run: Run,
        patches: ImagePatchDataset,
        held_out: list[np.ndarray],
    ) -> None:
        super().__init__(network, recipe, run)
        self.patches = patches
        self.held_out = held_out
        self.pitches = [pitch_um(slide.centres) / patches.mpp for slide in patches.slides]
        self.register_buffer("dispersion", dispersions(patches), persistent=False)
        self.dispersion: Tensor

    def loss(self, batch: dict[str, Tensor], seed: int) -> Tensor:
        """Return the loss of one batch of crops; in training, colours and the size of groups change at random."""
        generator = torch.Generator().manual_seed(seed)
        images = batch["image"].float() / 255
        stain = self.network.statistics(images, batch["stain"])
        group = 0.0
        if self.training:
            images = jitter_colours(images, self.recipe.colour_jitter, generator)
            sizes = self.recipe.group_sizes
            group = sizes[int(torch.randint(len(sizes), (1,), generator=generator))]
        spots = self.read_spots(batch, group)
        features = torch.cat([self.network.decode(images), stain], 1)
        device = images.device
        predicted = self.network.read(features, spots.footprints.to(device))
        truth = (spots.targets.to(device) - self.network.gene_mean) / self.network.gene_sd
        known = torch.isfinite(truth)
        if self.recipe.likelihood == "gaussian":
            errors = F.mse_loss(predicted, torch.where(known, truth, 0.0), reduction="none")
        else:
            expression = F.softplus(self.network.expression(predicted), beta=SHARPNESS)
            means = spots.totals.to(device)[:, None] * torch.expm1(expression) / self.patches.target_sum
            errors = negative_binomial_loss(means, spots.counts.to(device), self.dispersion)
        error = (errors * known).sum() / known.sum().clamp(min=1)
        return error + self.recipe.pearson_loss * uncorrelated(predicted, truth)

    def n_samples(self, batch: dict[str, Tensor]) -> int:
        """Count the crops of a batch, or in validation its held-out spots."""
        return len(batch["image"]) if self.training else len(self.kept(batch))

    def kept(self, batch: dict[str, Tensor]) -> np.ndarray:
        """Find the spots of a batch that are used: those for training, or in validation those held out."""
        crop, spots = batch["batch"].cpu().numpy(), batch["spots"].cpu().numpy()
        held = [self.held_out[s][spots[crop == i]] for i, s in enumerate(batch["slide"].tolist())]
        return np.flatnonzero(np.concatenate(held) != self.training)

    def read_spots(self, batch: dict[str, Tensor], group: float) -> Spots:
        """Collect the spots of a batch that are used, each together with its neighbours within `group` pitches."""
        crop, slide = batch["batch"].cpu().numpy(), batch["slide"].cpu().numpy()
        kept = self.kept(batch)
        crop, of_slide = crop[kept], slide[crop[kept]]
        spots, centres = batch["spots"].cpu().numpy()[kept], batch["centres"].cpu().numpy()[kept]
        side = batch["image"].shape[-1] // MAP_STRIDE
        places = centres / MAP_STRIDE + np.stack([crop * side, np.zeros(len(kept))], 1)  # the maps one below the other
        radii = batch["radius"].cpu().numpy()[crop] / MAP_STRIDE
        areas = disk_footprints(places, radii, (len(slide) * side, side))
        members = sparse.eye_array(len(kept), format="csr")
        if group:
            members = neighbours(places, crop, group * np.array(self.pitches)[of_slide] / MAP_STRIDE)
        counts, totals = self._counts(of_slide, spots)
        counts, totals = members @ counts, members @ totals
        targets = log_normalised(counts, totals, self.patches.target_sum)
        missing = np.stack([np.isnan(self.patches.slides[s].targets).all(0) for s in slide])
        targets[missing[crop]] = np.nan
        weights = pixel_weights(members @ areas, self.recipe.aggregation, np.pi * radii**2)
        raw = torch.from_numpy(counts).float(), torch.from_numpy(totals).float()
        return Spots(weights, torch.from_numpy(targets), *raw)

    def _counts(self, slides: np.ndarray, spots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up the raw counts of spots, float64 (n, n_genes), and their totals over all genes (n,)."""
        counts = np.zeros((len(spots), len(self.patches.genes)))
        totals = np.zeros(len(spots))
        for s in np.unique(slides):
            chosen = np.flatnonzero(slides == s)
            counts[chosen] = self.patches.slides[s].counts[spots[chosen]].toarray()
            totals[chosen] = self.patches.slides[s].totals[spots[chosen]]
        return counts, totals


def train_dense(
    patches: ImagePatchDataset, config: DenseConfig, held_out: list[np.ndarray], run: Run, encoder: Any, tuned: bool
) -> tuple[DenseNetwork, pd.DataFrame]:
    """Train a network on the spots that are not held out; return it and its history."""
    identity = run.identify(patches, config, encoder=encoder, tune_encoder=tuned)
    options: dict[str, Any] = {"num_workers": run.num_workers, "collate_fn": patches.collate}
    with run.seeded():
        mean, sd, programs = standard_targets(patches, config.n_programs)
        network = DenseNetwork(config, len(patches.genes), get_encoder(encoder, tuned=tuned))
        network.start_from_programs(mean, sd, programs)
        module = ExpressionModule(network, config, run, patches, held_out)
        for k in range(len(patches.slides)):
            patches.stain_statistics(k)  # here, so that processes which read crops do not each measure them
        plain = DataLoader(patches.with_augment(False), config.batch_size, **options)
        network.start_from_stain(*stain_regression(module, plain))
        loader = DataLoader(patches, config.batch_size, sampler=EpochSampler(len(patches), run.seed), **options)
        validated = any(spots.any() for spots in held_out)
        return network, run.fit(module, loader, plain if validated else None, identity)


def stain_regression(module: ExpressionModule, loader: Iterable[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Regress standardised targets on the stain statistics of the training spots.

    The penalty of this ridge regression is chosen by generalised cross-validation. Returns the weight, float32
    (n_genes, n_statistics), and the bias (n_genes,), for statistics that are not standardised.
    """
    from sklearn.linear_model import RidgeCV

    network, found, wanted, names = module.network, [], [], []
    module.train()
    with torch.no_grad():
        for batch in loader:
            spots = module.read_spots(batch, 0.0)
            maps = network.statistics(batch["image"].float() / 255, batch["stain"]).movedim(1, -1).flatten(0, 2)
            found.append(torch.sparse.mm(spots.footprints, maps))
            wanted.append((spots.targets - network.gene_mean) / network.gene_sd)
            names.append(torch.stack([batch["slide"][batch["batch"]], batch["spots"]], 1)[module.kept(batch)])
    once = np.unique(torch.cat(names).numpy(), axis=0, return_index=True)[1]  # a spot may lie in several crops
    statistics = torch.cat(found).numpy()[once].astype(np.float64)
    truth = np.nan_to_num(torch.cat(wanted).numpy()[once])
    mean, sd = statistics.mean(0), np.maximum(statistics.std(0), 1e-6) / network.stain.weights.numpy()
    ridge = RidgeCV(np.logspace(-1, 5, 13)).fit((statistics - mean) / sd, truth)
    weight = np.atleast_2d(ridge.coef_) / sd
    bias = np.atleast_1d(ridge.intercept_) - weight @ mean
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


def neighbours(places: np.ndarray, crop: np.ndarray, reach: np.ndarray) -> sparse.csr_array:
    """Find the spots of the same crop within `reach` of each spot, itself included: sparse (n, n) of ones."""
    far = np.column_stack([places, crop * (places.max(initial=0) + reach.max(initial=0)) * 10])
    near = cKDTree(far).query_ball_point(far, reach) if len(far) else []
    counts = np.array([len(found) for found in near], dtype=np.int64)
    columns = np.concatenate([*near, []]).astype(np.int64)
    found = sparse.csr_array((np.ones(len(columns)), columns, np.append(0, counts.cumsum())), shape=(len(far),) * 2)
    found.sort_indices()
    return found


def log_normalised(counts: np.ndarray, totals: np.ndarray, target_sum: float) -> np.ndarray:
    """Log-normalise counts by their totals (n,), float32 (n, n_genes)."""
    share = counts / np.where(totals > 0, totals, 1)[:, None]
    return np.log1p(target_sum * share).astype(np.float32)


def dispersions(patches: ImagePatchDataset) -> Tensor:
    """Estimate each gene's dispersion (variance = mean + dispersion x mean^2) by moments, float32 (n_genes,).

    The mean of a spot's count is its total times the gene's share of all counts.
    """
    excess, squares = np.zeros(len(patches.genes)), np.zeros(len(patches.genes))
    for slide in patches.slides:
        share = np.asarray(slide.counts.sum(0)).ravel() / max(slide.totals.sum(), 1)
        means = slide.totals[:, None] * share
        excess += ((slide.counts.toarray() - means) ** 2 - means).sum(0)
        squares += (means**2).sum(0)
    return torch.from_numpy(np.clip(excess / np.maximum(squares, 1e-12), *DISPERSIONS)).float()


def standard_targets(patches: ImagePatchDataset, n_programs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and deviation of each gene over all spots, and the principal components of standardised targets.

    They are float32 (n_genes,), (n_genes,) and (n, n_genes), with n of at most `n_programs`; the length of a component
    is the deviation of its scores.
    """
    from sklearn.decomposition import PCA

    targets = np.concatenate([slide.targets for slide in patches.slides])
    mean, sd = np.nanmean(targets, 0), np.maximum(np.nanstd(targets, 0), MIN_SD)
    standard = np.nan_to_num((targets - mean) / sd)
    n_programs = min(n_programs, *standard.shape)
    programs = np.empty((0, standard.shape[1]))
    if n_programs:
        pca = PCA(n_programs, random_state=0).fit(standard)
        programs = pca.components_ * np.sqrt(pca.explained_variance_)[:, None]
    return tuple(torch.from_numpy(part.astype(np.float32)) for part in (mean, sd, programs))  # type: ignore[return-value]
