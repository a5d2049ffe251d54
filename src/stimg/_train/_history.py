"""What is kept of a training."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import lightning as L

if TYPE_CHECKING:
    from torch import Tensor


class History(L.Callback):
    """One row per epoch, and the weights of the epoch with the lowest validation loss."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.best_loss = math.inf
        self.best_weights: dict[str, Tensor] = {}
        self.clock = time.monotonic()

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
        """Return what a checkpoint keeps."""
        return {"rows": self.rows, "best_loss": self.best_loss, "best_weights": self.best_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.rows = list(state_dict["rows"])
        self.best_loss = state_dict["best_loss"]
        self.best_weights = state_dict["best_weights"]
