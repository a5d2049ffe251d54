"""The Lightning side of pretraining: module, epoch sampler, callbacks."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch.utils.data import Sampler

from stimg.nn import Config, GeneMAE, draw_hidden

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from torch import Tensor


class EpochSampler(Sampler[tuple[int, int]]):
    """Shuffled (epoch, index) pairs, so that every worker process crops the same windows for the same epoch.

    With `repeats`, an epoch visits every window that many times, each time with other channels, jitter and symmetry.
    With `weights` it draws as many windows, each with that probability. Lightning calls `set_epoch` at the start of
    each epoch, also after a resume.
    """

    def __init__(self, length: int, seed: int, repeats: int = 1, weights: np.ndarray | None = None) -> None:
        self.length = length
        self.weights = None if weights is None else torch.from_numpy(weights)
        self.repeats = repeats
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose windows come next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        if self.weights is not None:
            drawn = torch.multinomial(self.weights, len(self), replacement=True, generator=generator).tolist()
            return ((self.epoch * len(self) + i, window) for i, window in enumerate(drawn))
        first = self.epoch * self.repeats
        order = torch.randperm(len(self), generator=generator).tolist()
        return ((first + i // self.length, i % self.length) for i in order)

    def __len__(self) -> int:
        return self.length * self.repeats


class PretrainModule(L.LightningModule):
    """Masked autoencoding with AdamW, linear warm-up and cosine decay over steps, or over `max_seconds` if sooner."""

    def __init__(
        self, network: GeneMAE, config: Config, *, total_steps: int, max_seconds: float | None, seed: int
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.total_steps = total_steps
        self.max_seconds = max_seconds
        self.seed = seed
        self.started = time.monotonic()

    def _loss(self, batch: dict[str, Tensor], seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        hidden = draw_hidden(batch["present"], batch["channel_mask"], self.config, generator)
        return self.network(batch, hidden).loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch; the masks depend on the seed and the step alone."""
        loss = self._loss(batch, self.seed * 1_000_003 + self.global_step)
        if not torch.isfinite(loss):
            msg = (
                f"The training loss became {loss.item()} at step {self.global_step}. "
                "Lower `learning_rate`, or check the slides for extreme values."
            )
            raise ValueError(msg)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["present"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss on held-out windows, with the same masks at every epoch."""
        loss = self._loss(batch, batch_idx)
        self.log("val_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["present"]))

    def configure_optimizers(self) -> Any:
        """AdamW, without decay of vectors."""
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim == 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=self.config.learning_rate,
            betas=(0.9, 0.95),
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        progress = step / max(self.total_steps, 1)
        if self.max_seconds:
            progress = max(progress, (time.monotonic() - self.started) / self.max_seconds)
        warm = max(progress, (step + 1) / max(self.total_steps, 1)) / self.config.warmup if self.config.warmup else 1.0
        return min(warm, 1.0) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class History(L.Callback):
    """One row an epoch, and the weights of the epoch with the lowest validation loss."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.best_loss = math.inf
        self.best_weights: dict[str, Tensor] = {}
        self.clock = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record losses; keep the weights if they are the best so far."""
        metrics = trainer.callback_metrics
        value = float(metrics.get("val_loss", math.nan))
        now = time.monotonic()
        self.rows.append(
            {
                "epoch": trainer.current_epoch,
                "train_loss": float(metrics["train_loss"]),
                "val_loss": value,
                "lr": trainer.optimizers[0].param_groups[0]["lr"],
                "seconds": now - self.clock,
            }
        )
        self.clock = now
        if value < self.best_loss:
            self.best_loss = value
            weights = pl_module.get_submodule("network").state_dict()
            self.best_weights = {k: v.detach().cpu().clone() for k, v in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"rows": self.rows, "best_loss": self.best_loss, "best_weights": self.best_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.rows = list(state_dict["rows"])
        self.best_loss = state_dict["best_loss"]
        self.best_weights = state_dict["best_weights"]
