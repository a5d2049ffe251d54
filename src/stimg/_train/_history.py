"""What a training run remembers: one row per epoch, and the best weights."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import lightning as L

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class History(L.Callback):
    """One row per epoch, and the weights of the epoch with the lowest validation loss."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.best_loss = math.inf
        self.best_weights: dict[str, Tensor] = {}
        self.learned = False
        self.clock = time.monotonic()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Note whether a step changes the weights: near the end of the run's time, the learning rate is zero."""
        wanted = pl_module.recipe.learning_rate
        self.learned = self.learned or not wanted or any(group["lr"] > 0 for group in optimizer.param_groups)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record losses; keep the weights if they are the best so far."""
        losses = {name: float(trainer.callback_metrics.get(name, math.nan)) for name in ("train_loss", "val_loss")}
        rate, now = trainer.optimizers[0].param_groups[0]["lr"], time.monotonic()
        self.rows.append({"epoch": trainer.current_epoch, **losses, "lr": rate, "seconds": now - self.clock})
        self.clock = now
        if losses["val_loss"] < self.best_loss:
            self.best_loss = losses["val_loss"]
            weights = pl_module.get_submodule("network").state_dict()
            self.best_weights = {k: v.detach().cpu().clone() for k, v in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what is saved in a checkpoint."""
        kept = {"rows": self.rows, "best_loss": self.best_loss, "best_weights": self.best_weights}
        return {**kept, "learned": self.learned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.rows, self.learned = list(state_dict["rows"]), state_dict["learned"]
        self.best_loss, self.best_weights = state_dict["best_loss"], state_dict["best_weights"]
