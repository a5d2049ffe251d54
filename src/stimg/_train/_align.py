"""The Lightning side of alignment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from stimg._train._expression import jitter_colours, pitch_px
from stimg._train._loop import TrainingModule
from stimg.nn import AlignConfig, AlignNetwork
from stimg.nn._losses import contrastive_loss

if TYPE_CHECKING:
    from torch import Tensor

    from stimg._data import ImagePatchDataset


class AlignModule(TrainingModule):
    """Symmetric InfoNCE over the spots of a batch, and of those of all devices."""

    sample = "look"
    network: AlignNetwork
    recipe: AlignConfig

    def __init__(
        self,
        network: AlignNetwork,
        recipe: AlignConfig,
        patches: ImagePatchDataset,
        *,
        max_seconds: float | None,
        seed: int,
    ) -> None:
        super().__init__(network, recipe, max_seconds=max_seconds, seed=seed)
        reach = [pitch_px(slide.centres, 1.0) * recipe.neighbour_pitches for slide in patches.slides]
        self.register_buffer("reach", torch.tensor(reach, dtype=torch.float32), persistent=False)
        self.reach: Tensor

    def relative_rate(self, name: str) -> float:
        """Learning rate of a parameter over that of the recipe: what is pretrained moves slowly."""
        return self.recipe.spatial_rate if name.startswith("network.spatial.") else 1.0

    def loss(self, batch: dict[str, Tensor], seed: int) -> Tensor:
        """Loss of one batch; colours of training batches change at random."""
        images = None
        if "image" in batch:
            images = batch["image"].float() / 255
            if self.training:
                images = jitter_colours(images, self.recipe.colour_jitter, torch.Generator().manual_seed(seed))
        found = self.network.encode_images(batch["look"], images)
        if "tokens" in batch:
            read = self.network.encode_surroundings(batch["tokens"], batch["positions"], batch["present"])
        else:
            read = batch["values"]
        genes = self.network.encode_genes(read)
        slide, centre = batch["slide"], batch["centre"]
        if self.training and self.trainer.world_size > 1:
            found, genes, slide, centre = (self._of_all(part) for part in (found, genes, slide, centre))
        return contrastive_loss(found, genes, self.network.scale, neighbours_of(slide, centre, self.reach))

    def _of_all(self, part: Tensor) -> Tensor:
        """Rows of all devices; gradients flow back to each."""
        gathered: Any = self.all_gather(part, sync_grads=True)
        return gathered.flatten(0, 1)


def neighbours_of(slide: Tensor, centre: Tensor, reach: Tensor) -> Tensor:
    """Which pairs are of one slide and within its reach, bool (n, n)."""
    near = torch.cdist(centre, centre) <= reach[slide][:, None]
    return near & (slide[:, None] == slide[None])
