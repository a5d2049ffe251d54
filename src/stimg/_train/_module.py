"""The optimiser and the training steps that all objectives share."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from stimg._input._device import set_seed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stimg._train._run import Run
    from stimg.nn import AlignConfig, Config, DenseConfig


class TrainingModule(L.LightningModule, ABC):
    """AdamW, linear warm-up and cosine decay over the run's steps, or over its seconds if these end sooner."""

    sample: str  # key of the batch whose length is the number of its samples

    def __init__(self, network: nn.Module, recipe: Config | DenseConfig | AlignConfig, run: Run) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.total_steps = 1
        self.max_seconds = run.max_seconds
        self.seed = run.seed
        self.started = time.monotonic()

    @abstractmethod
    def loss(self, batch: dict[str, Tensor], seed: int) -> Tensor:
        """Return the loss of one batch; everything random in it depends on the seed alone."""

    def n_samples(self, batch: dict[str, Tensor]) -> int:
        """Return the weight of a batch in the loss of its epoch."""
        return len(batch[self.sample])

    def relative_rate(self, name: str) -> float:
        """Return the learning rate of a parameter relative to that of the recipe."""
        return 1.0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of one batch; its random numbers depend on the seed, the step and the process alone."""
        seed = self.seed * 1_000_003 + self.global_step + self.global_rank * 1_000_000_007
        set_seed(seed, self.device.type)  # of dropout, which a resumed run would otherwise draw anew
        loss = self.loss(batch, seed)
        if not torch.isfinite(loss):
            msg = (
                f"The training loss became {loss.item()} at step {self.global_step}. "
                "Lower `learning_rate`, or check the slides for extreme values."
            )
            raise ValueError(msg)
        self._log("train_loss", loss, batch, across_processes=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Compute the loss on held-out data: all of them in every process, with the same draws in every epoch."""
        self._log("val_loss", self.loss(batch, batch_idx), batch)

    def _log(self, name: str, loss: Tensor, batch: dict[str, Tensor], *, across_processes: bool = False) -> None:
        options: dict[str, Any] = {"batch_size": self.n_samples(batch), "sync_dist": across_processes}
        self.log(name, loss, on_step=False, on_epoch=True, prog_bar=True, **options)

    def configure_optimizers(self) -> Any:
        """Set up AdamW, with weight decay of matrices but not of vectors."""
        self.total_steps = int(self.trainer.estimated_stepping_batches)
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((parameter.ndim > 1, self.relative_rate(name)), []).append(parameter)
        rate, decay = self.recipe.learning_rate, self.recipe.weight_decay
        parameters = [
            {"params": found, "weight_decay": decay if matrices else 0.0, "lr": rate * relative}
            for (matrices, relative), found in groups.items()
        ]
        optimizer = torch.optim.AdamW(parameters, rate, (0.9, 0.95), fused=True)  # one pass over the gene tables
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Return the learning rate of a step relative to the highest."""
        progress = step / max(self.total_steps, 1)
        if self.max_seconds:
            elapsed = time.monotonic() - self.started
            if self.trainer.world_size > 1:  # the same rate in all processes, or their weights would differ
                elapsed = self.trainer.strategy.broadcast(elapsed)
            progress = max(progress, elapsed / self.max_seconds)
        warm = max(progress, (step + 1) / max(self.total_steps, 1)) / self.recipe.warmup if self.recipe.warmup else 1.0
        return min(warm, 1.0) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
