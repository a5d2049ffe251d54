"""Contrastive alignment of images and expression."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from stimg._data._spot_crops import SpotCropDataset
from stimg._train._images import jitter_colours, pitch_um
from stimg._train._module import TrainingModule
from stimg._train._sampler import EpochSampler
from stimg.nn import AlignConfig, AlignNetwork, get_encoder
from stimg.nn._losses import contrastive_loss

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from stimg._data import ImagePatchDataset
    from stimg._train._run import Run


class AlignModule(TrainingModule):
    """Symmetric InfoNCE over the spots of a batch; in training, over the batches of all devices together."""

    sample = "look"
    network: AlignNetwork
    recipe: AlignConfig

    def __init__(self, network: AlignNetwork, recipe: AlignConfig, run: Run, patches: ImagePatchDataset) -> None:
        super().__init__(network, recipe, run)
        reach = [pitch_um(slide.centres) * recipe.neighbour_pitches for slide in patches.slides]
        self.register_buffer("reach", torch.tensor(reach, dtype=torch.float32), persistent=False)
        self.reach: Tensor

    def relative_rate(self, name: str) -> float:
        """Return the learning rate relative to the recipe's, which is lower for a pretrained spatial network."""
        return self.recipe.spatial_rate if name.startswith("network.spatial.") else 1.0

    def loss(self, batch: dict[str, Tensor], seed: int) -> Tensor:
        """Return the loss of one batch; in training, colours change at random."""
        images = None
        if "image" in batch:
            images = batch["image"].float() / 255
            if self.training:
                images = jitter_colours(images, self.recipe.colour_jitter, torch.Generator().manual_seed(seed))
        found = self.network.encode_images(batch["look"], images)
        if "tokens" in batch:
            expressed = self.network.encode_surroundings(batch["tokens"], batch["positions"], batch["present"])
        else:
            expressed = batch["values"]
        genes = self.network.encode_genes(expressed)
        slide, centre = batch["slide"], batch["centre"]
        if self.training and self.trainer.world_size > 1:
            found, genes, slide, centre = (self._of_all(part) for part in (found, genes, slide, centre))
        return contrastive_loss(found, genes, self.network.scale, neighbours_of(slide, centre, self.reach))

    def _of_all(self, part: Tensor) -> Tensor:
        """Gather the rows of all devices; gradients flow back to each of them."""
        gathered: Any = self.all_gather(part, sync_grads=True)
        return gathered.flatten(0, 1)


def neighbours_of(slide: Tensor, centre: Tensor, reach: Tensor) -> Tensor:
    """Tell which pairs of spots lie on the same slide and within its reach, bool (n, n)."""
    near = torch.cdist(centre, centre) <= reach[slide][:, None]
    return near & (slide[:, None] == slide[None])


def train_alignment(
    patches: ImagePatchDataset, config: AlignConfig, held: np.ndarray, run: Run, encoder: Any, tuned: bool, size: int
) -> tuple[AlignNetwork, pd.DataFrame]:
    """Train both encoders on the spots that are not held out; return the network and its history."""
    identity = run.identify(patches, config, encoder=encoder, tune_encoder=tuned, crop_size=size)
    base = patches.spatial_model if config.gene_encoder == "tuned" else None
    with run.seeded():
        seen = None if encoder is None else get_encoder(encoder, tuned=tuned)
        network = AlignNetwork(config, len(patches.genes), seen)
        if base is not None:
            network.spatial.start_from(base.network, torch.arange(len(base.genes)))
        options: dict[str, Any] = {"crops": encoder is not None, "gene_encoder": config.gene_encoder}
        spots = SpotCropDataset(patches, size, np.flatnonzero(~held), augment=True, **options)
        sampler = EpochSampler(len(spots), run.seed)
        batch_size = min(config.batch_size, len(spots))
        loader = DataLoader(spots, batch_size, sampler=sampler, drop_last=True, num_workers=run.num_workers)
        val_loader = None
        if held.sum() > 1:
            plain = SpotCropDataset(patches, size, np.flatnonzero(held), augment=False, **options)
            val_loader = DataLoader(plain, config.batch_size, num_workers=run.num_workers)
        return network, run.fit(AlignModule(network, config, run, patches), loader, val_loader, identity)


def config_for(patches: ImagePatchDataset, config: AlignConfig) -> AlignConfig:
    """Check that the patches hold what the gene encoder reads; return the configuration with its sizes filled in."""
    if config.gene_encoder == "embedding":
        widths = {0 if slide.embedding is None else slide.embedding.shape[1] for slide in patches.slides}
        if widths != {config.embedding_dim}:
            msg = (
                f"Expected `patches` with embeddings of {config.embedding_dim} dimensions (`embedding_dim`) for "
                f"`gene_encoder='embedding'`, found {sorted(widths)}. Pass `use_rep` to `stimg.pp.to_image_patches`."
            )
            raise ValueError(msg)
    if config.gene_encoder != "tuned":
        return config
    base = patches.spatial_model
    if base is None:
        msg = (
            "Expected `patches` with a spatial model for `gene_encoder='tuned'`, found none. Pass `spatial_model` "
            "to `stimg.pp.to_image_patches`."
        )
        raise ValueError(msg)
    return replace(config, spatial=base.config, n_spatial_genes=len(base.genes))
