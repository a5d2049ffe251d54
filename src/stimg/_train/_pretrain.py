"""Masked autoencoding of patches."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader

from stimg._slide._genes import vocabulary_rows
from stimg._train._module import TrainingModule
from stimg._train._sampler import EpochSampler
from stimg.nn import Config, GeneMAE, draw_hidden, get_config

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from stimg._data import PatchDataset
    from stimg._train._run import Run
    from stimg.models import Model

# An epoch has at least this many windows per slide: the 2 * 140^2 / 16^2 random crops of the paper.
CROPS_PER_SLIDE = 153
SAMPLED_SITES = 4096
SIZES = ("dim", "encoder_layers", "decoder_layers", "heads", "mlp_ratio", "token", "scaling", "n_programs")


class PretrainModule(TrainingModule):
    """Masked autoencoding; with an anchor, states also stay near those that the anchor gives to whole windows."""

    sample = "present"
    network: GeneMAE
    recipe: Config

    def __init__(self, network: GeneMAE, recipe: Config, run: Run, anchor: GeneMAE | None) -> None:
        super().__init__(network, recipe, run)
        self.anchor = anchor

    def loss(self, batch: dict[str, Tensor], seed: int) -> Tensor:
        """Return the loss of one batch, with masks drawn from the seed; in validation, without the anchor."""
        generator = torch.Generator().manual_seed(seed)
        hidden = draw_hidden(batch["present"], batch["channel_mask"], self.recipe, generator)
        return self.network(batch, hidden, self.anchor if self.training else None).loss


def train_autoencoder(
    train: PatchDataset, validation: PatchDataset | None, config: Config, run: Run, batch_size: int, start: Model | None
) -> tuple[GeneMAE, pd.DataFrame]:
    """Train a network, from scratch or from `start`; return it and its history."""
    identity = run.identify(train, config, init=start, batch_size=batch_size)
    with run.seeded():
        sizes = (len(train.labels), len(train.label_groups)) if config.label_loss else (0, 0)
        network = GeneMAE(config, len(train.genes), *sizes)
        if config.n_programs:
            programs = [torch.from_numpy(part) for part in gene_programs(train, config.dim // 2)]
            network.start_from_programs(*programs)
            network.judge_by_programs(*programs)
        anchor = None
        if start is not None:
            network.start_from(start.network, torch.from_numpy(vocabulary_rows(train.genes, start.genes)))
            anchor = deepcopy(network).requires_grad_(False) if config.anchor_loss else None
        repeats = -(-CROPS_PER_SLIDE * len(train.slides) // len(train))
        sampler = EpochSampler(len(train), run.seed, repeats, train.draw_weights())
        loader = DataLoader(train, batch_size, sampler=sampler, num_workers=run.num_workers)
        val_loader = None if validation is None else DataLoader(validation, batch_size, num_workers=run.num_workers)
        return network, run.fit(PretrainModule(network, config, run, anchor), loader, val_loader, identity)


def continued_config(config: str | Config | None, start: Model) -> Config:
    """Return the configuration of a run that continues `start`, whose network must have the same sizes."""
    if config is None:
        return start.config
    config = get_config(config)
    pairs = {name: (getattr(config, name), getattr(start.config, name)) for name in SIZES}
    if differ := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
        msg = f"Expected a `config` with the sizes of `init`, found (config, init) = {differ}. Leave `config` out."
        raise ValueError(msg)
    return config


def count_batch(patches: PatchDataset, units: PatchDataset, n_patches: int) -> int:
    """Return how many windows of `units` hold about as many occupied sites as `n_patches` patches."""
    sites = n_patches * patches.size**2 * _mean_tissue(patches)
    return min(max(1, round(sites / (units.size**2 * _mean_tissue(units)))), len(units))


def _mean_tissue(patches: PatchDataset) -> float:
    """Return the mean share of occupied sites over a sample of windows."""
    sample = np.linspace(0, len(patches) - 1, min(len(patches), 16)).astype(int)
    return float(np.mean([patches[int(i)]["present"].float().mean().item() for i in sample]))


def gene_programs(patches: PatchDataset, n_programs: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the principal components of a sample of sites, the same number from every slide.

    Genes that a slide lacks count as average there. Returns the loadings, float32 (n_genes, k), orthonormal columns by
    falling variance, and the variance of the scores, float32 (k,); k is below `n_programs` if genes or sites are few.
    """
    from sklearn.decomposition import PCA

    rng = np.random.default_rng([patches.seed, 2])
    share = max(1, SAMPLED_SITES // len(patches.slides))
    parts = []
    for slide, grid in zip(patches.slides, patches.grids, strict=True):
        allowed = grid[grid >= 0]
        sites = np.sort(rng.choice(allowed, min(share, len(allowed)), replace=False))
        dense = slide.expression[sites].toarray()
        every = np.arange(len(slide.genes))
        values = slide.standardise(dense, every) if patches.scaling == "zscore" else dense - slide.mean
        part = np.zeros((len(sites), len(patches.genes)), dtype=np.float32)
        part[:, np.searchsorted(patches.genes, slide.genes)] = values
        parts.append(part)
    sample = np.concatenate(parts)
    fitted = PCA(min(n_programs, *sample.shape), svd_solver="randomized", random_state=0).fit(sample)
    variance = np.maximum(fitted.explained_variance_, 1e-6).astype(np.float32)
    return np.ascontiguousarray(fitted.components_.T, dtype=np.float32), variance
