"""The Lightning side of training: modules, epoch sampler, callbacks, one run of the trainer."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
import warnings
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.utils.data import Sampler

from stimg._settings import settings
from stimg.nn import Config, GeneMAE, draw_hidden

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

logger = logging.getLogger("stimg")


class EpochSampler(Sampler[tuple[int, int]]):
    """Shuffled (epoch, index) pairs, so that every worker process crops the same windows for the same epoch.

    With `repeats`, an epoch visits every window that many times, each time with other channels, jitter and symmetry.
    With `weights` it draws as many windows, each with that probability. Lightning calls `set_epoch` at the start of
    each epoch, also after a resume. Of several processes each takes every so manieth pair, so that their batches
    together are one of a single process.
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
        total = self.length * self.repeats
        rank, processes = _place()
        mine = slice(rank, len(self) * processes, processes)
        if self.weights is not None:
            drawn = torch.multinomial(self.weights, total, replacement=True, generator=generator).tolist()
            return ((self.epoch * total + i, drawn[i]) for i in range(total)[mine])
        first = self.epoch * self.repeats
        order = torch.randperm(total, generator=generator).tolist()
        return ((first + i // self.length, i % self.length) for i in order[mine])

    def __len__(self) -> int:
        return self.length * self.repeats // _place()[1]


def _place() -> tuple[int, int]:
    """Rank of this process among those that train together, and their number."""
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if running else (0, 1)


class Recipe(Protocol):
    """What a configuration says of the optimiser."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def warmup(self) -> float: ...


class TrainingModule(L.LightningModule, ABC):
    """AdamW, linear warm-up and cosine decay over the trainer's steps, or over `max_seconds` if sooner."""

    sample: str  # key of the batch whose length is the number of its samples

    def __init__(self, network: nn.Module, recipe: Recipe, *, max_seconds: float | None, seed: int) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.total_steps = 1
        self.max_seconds = max_seconds
        self.seed = seed
        self.started = time.monotonic()

    @abstractmethod
    def loss(self, batch: dict[str, Tensor], seed: int) -> Tensor:
        """Loss of one batch; what is drawn at random depends on the seed alone."""

    def relative_rate(self, name: str) -> float:
        """Learning rate of a parameter over that of the recipe."""
        return 1.0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch; what is drawn depends on the seed, the step and the process alone."""
        loss = self.loss(batch, self.seed * 1_000_003 + self.global_step + self.global_rank * 1_000_000_007)
        if not torch.isfinite(loss):
            msg = (
                f"The training loss became {loss.item()} at step {self.global_step}. "
                "Lower `learning_rate`, or check the slides for extreme values."
            )
            raise ValueError(msg)
        options: dict[str, Any] = {"prog_bar": True, "batch_size": len(batch[self.sample]), "sync_dist": True}
        self.log("train_loss", loss, on_step=False, on_epoch=True, **options)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss on what is held out, drawn alike at every epoch, and all of it in every process."""
        loss = self.loss(batch, batch_idx)
        self.log("val_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch[self.sample]))

    def configure_optimizers(self) -> Any:
        """AdamW, without decay of vectors."""
        self.total_steps = int(self.trainer.estimated_stepping_batches)
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((parameter.ndim > 1, self.relative_rate(name)), []).append(parameter)
        rate, decay = self.recipe.learning_rate, self.recipe.weight_decay
        optimizer = torch.optim.AdamW(
            [
                {"params": found, "weight_decay": decay if matrices else 0.0, "lr": rate * relative}
                for (matrices, relative), found in groups.items()
            ],
            lr=rate,
            betas=(0.9, 0.95),
            fused=True,  # one pass over the gene tables
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        progress = step / max(self.total_steps, 1)
        if self.max_seconds:
            elapsed = time.monotonic() - self.started
            if self.trainer.world_size > 1:  # one rate for all, or their weights part
                elapsed = self.trainer.strategy.broadcast(elapsed)
            progress = max(progress, elapsed / self.max_seconds)
        warm = max(progress, (step + 1) / max(self.total_steps, 1)) / self.recipe.warmup if self.recipe.warmup else 1.0
        return min(warm, 1.0) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class PretrainModule(TrainingModule):
    """Masked autoencoding."""

    sample = "present"
    network: GeneMAE
    recipe: Config

    def __init__(
        self, network: GeneMAE, recipe: Config, *, max_seconds: float | None, seed: int, anchor: GeneMAE | None = None
    ) -> None:
        super().__init__(network, recipe, max_seconds=max_seconds, seed=seed)
        self.anchor = anchor

    def loss(self, batch: dict[str, Tensor], seed: int) -> Tensor:
        """Loss of one batch of windows, with masks drawn from the seed; on held-out windows without the anchor."""
        generator = torch.Generator().manual_seed(seed)
        hidden = draw_hidden(batch["present"], batch["channel_mask"], self.recipe, generator)
        return self.network(batch, hidden, self.anchor if self.training else None).loss


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


def training_seconds(trainer_kwargs: dict[str, Any]) -> float | None:
    """Return the seconds of a run whose time is limited."""
    limit = trainer_kwargs["max_time"]
    return None if limit is None else Timer(duration=limit)._duration


def fit_module(
    module: TrainingModule,
    loader: Any,
    val_loader: Any,
    *,
    early_stopping: int | None,
    checkpoint_dir: str | Path | None,
    resume: str | Path | None,
    callbacks: Sequence[L.Callback],
    trainer_kwargs: dict[str, Any],
) -> list[dict[str, float]]:
    """Run Lightning's Trainer; leave the network with its best weights on the CPU and return the history's rows."""
    history = History()
    hooks: list[Any] = [history, *callbacks]
    if early_stopping is not None:
        hooks.append(EarlyStopping("val_loss", patience=early_stopping, strict=False))
    if checkpoint_dir is not None:
        hooks.append(ModelCheckpoint(checkpoint_dir, filename="{epoch}", save_last=True, every_n_epochs=1))
    on_gpu = torch.cuda.is_available() and trainer_kwargs["accelerator"] != "cpu"
    defaults: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": checkpoint_dir is not None,
        "enable_progress_bar": settings.progress,
        "enable_model_summary": False,
        "gradient_clip_val": 1.0,
        "num_sanity_val_steps": 0,
        "devices": 1,
        "precision": "bf16-mixed" if on_gpu else "32-true",
        "use_distributed_sampler": False,  # ours knows of epochs and shares them out
    }
    with _quiet_lightning():
        trainer = L.Trainer(**(defaults | trainer_kwargs), callbacks=hooks)
        if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            msg = (
                "Expected one process in a notebook, or `strategy='ddp'` in a script, found in `trainer_kwargs` a "
                "strategy that forks or spawns, from which weights do not come back. Write a script and start it with "
                "`python` or `torchrun`, or pass `devices=1`."
            )
            raise ValueError(msg)
        try:
            trainer.fit(module, loader, val_loader, ckpt_path=resume, weights_only=resume is not None or None)
        except (KeyboardInterrupt, SystemExit):
            if not trainer.interrupted:
                raise
            logger.warning("Interrupted: returning the best model so far.")
    if trainer.received_sigterm:  # Lightning ends the run without an error; half a training is no result
        raise SystemExit(128 + signal.SIGTERM)
    if history.best_weights:
        module.network.load_state_dict(history.best_weights)
    module.network.cpu().eval()
    return history.rows


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's banners and give the user's interrupt handler back, which Lightning drops on Ctrl-C."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*Skipping val loop.*")
            warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # a frozen encoder
            warnings.filterwarnings("ignore", message=".*number of training batches.*is smaller than the logging.*")
            yield
    finally:
        log.setLevel(level)
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)
