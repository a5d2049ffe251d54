"""One training run: when it ends, where it runs, its history, and what the cards of all models say about it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from stimg import __version__
from stimg._input._checks import check_positive_int
from stimg._input._device import resolve_device, seeded
from stimg._settings import settings
from stimg._train._checkpoint import ENTRY, CheckpointFiles, read_checkpoint
from stimg._train._fingerprint import Fingerprint, differences, fingerprint
from stimg._train._history import History
from stimg.models._content import HISTORY_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.utils.data import DataLoader

    from stimg._data import ImagePatchDataset, PatchDataset

logger = logging.getLogger("stimg")

NO_WEIGHTS = (
    "Training returns no weights if it forks or spawns processes (as in notebooks), or if not one epoch ends. Pass "
    "`devices=1`; or start a script that passes `trainer_kwargs={'devices': n, 'strategy': 'ddp'}` with `python` or "
    "`torchrun`; or allow more time or batches."
)
UNHELPFUL = (
    "LeafSpec|Skipping val loop|callbacks used to create the checkpoint|does not have many workers|"
    "Checkpoint directory .* exists and is not empty|in eval mode at the start of training|"  # a frozen encoder
    "number of training batches.*is smaller than the logging|The dirpath has changed"  # of a folder that was moved
)


@dataclass(frozen=True)
class Run:
    """The arguments that all training functions share, as in `stimg.tl.pretrain`; checked on creation."""

    max_epochs: int
    max_steps: int | None = None
    max_time: str | timedelta | dict[str, int] | None = None
    val_fraction: float = 0.0
    early_stopping: int | None = None
    checkpoint_dir: str | Path | None = None
    resume: str | Path | None = None
    name: str = "stimg"
    num_workers: int = 0
    device: str = "auto"
    callbacks: Sequence[L.Callback] = ()
    trainer_kwargs: dict[str, Any] | None = None
    rng: int | np.random.Generator | None = 0

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Run:
        """Pick the shared arguments from those of a training function."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    def __post_init__(self) -> None:
        check_positive_int("max_epochs", self.max_epochs)
        if not 0 <= self.val_fraction < 1:
            msg = f"Expected `val_fraction` in [0, 1), found {self.val_fraction}."
            raise ValueError(msg)
        if self.resume is not None and not Path(self.resume).is_file():
            msg = f"No checkpoint at `resume`={str(self.resume)!r}. Pass the path of a `last.ckpt` in `checkpoint_dir`."
            raise FileNotFoundError(msg)
        if wrong := [one for one in self.callbacks if not hasattr(one, "on_train_start")]:
            msg = f"Expected `callbacks` to hold `lightning.Callback` objects, found {wrong[0]!r}."
            raise TypeError(msg)
        if self.max_seconds is not None and self.max_seconds <= 0:
            msg = (
                "Expected `max_time` to be a positive time ('DD:HH:MM:SS', a `timedelta` or a dict of its arguments), "
                f"found {self.trainer_options['max_time']!r}."
            )
            raise ValueError(msg)
        if self.checkpoint_dir is not None:
            self._check_folder(Path(self.checkpoint_dir))

    def _check_folder(self, folder: Path) -> None:
        """Make the folder; refuse one that cannot be used, or that holds the checkpoint of another run."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            msg = f"Expected `checkpoint_dir` to be a folder, found {str(folder)!r} ({e.strerror}). Choose another one."
            raise NotADirectoryError(msg) from e
        if not os.access(folder, os.W_OK):
            msg = f"The folder `checkpoint_dir`={str(folder)!r} cannot be written to. Choose another one."
            raise PermissionError(msg)
        if self.resume is not None and Path(self.resume).resolve().parent == folder.resolve():
            return
        if found := sorted(folder.glob("*.ckpt")):
            msg = (
                f"`checkpoint_dir`={str(folder)!r} holds the checkpoint of an earlier run. Pass "
                f"`resume={str(found[-1])!r}` to continue that run, or choose another folder."
            )
            raise FileExistsError(msg)

    @cached_property
    def resumed(self) -> Fingerprint:
        """Return the fingerprint of the run that is resumed, empty if there is none."""
        return {} if self.resume is None else read_checkpoint(self.resume)[ENTRY]

    @cached_property
    def seed(self) -> int:
        """Return the seed of everything random in this run."""
        if self.rng is None and self.resume is not None:
            return int(self.resumed.get("seed (`rng`)", 0))
        return int(np.random.default_rng(self.rng).integers(2**31))

    @cached_property
    def place(self) -> str:
        """Return the torch device."""
        return resolve_device(self.device)

    @cached_property
    def trainer_options(self) -> dict[str, Any]:
        """Return the arguments of `lightning.Trainer`; the user's own take precedence."""
        kind, _, number = self.place.partition(":")
        options: dict[str, Any] = {
            "max_epochs": self.max_epochs,
            "max_steps": -1 if self.max_steps is None else self.max_steps,
            "max_time": self.max_time,
            "accelerator": "gpu" if kind == "cuda" else kind,
            "devices": [int(number)] if number else 1,
            "logger": False,
            "enable_checkpointing": self.checkpoint_dir is not None,
            "enable_progress_bar": settings.progress,
            "enable_model_summary": False,
            "gradient_clip_val": 1.0,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,  # `EpochSampler` knows about epochs and processes
        } | (self.trainer_kwargs or {})
        on_gpu = torch.cuda.is_available() and options["accelerator"] != "cpu"
        return {"precision": "bf16-mixed" if on_gpu else "32-true"} | options

    @cached_property
    def max_seconds(self) -> float | None:
        """Return the seconds after which training ends, if its time is limited."""
        try:
            return Timer(duration=self.trainer_options["max_time"]).time_remaining()
        except (AttributeError, TypeError, MisconfigurationException):  # not a duration
            return 0.0

    def check_held_out(self, found: bool) -> None:
        """Refuse early stopping if no data are held out."""
        if self.early_stopping is not None and not found:
            msg = "Expected held-out data for `early_stopping`, found none. Raise `val_fraction`, or give more slides."
            raise ValueError(msg)

    def seeded(self) -> AbstractContextManager[None]:
        """Draw torch's random numbers from the run's seed, and leave the user's random state as it was."""
        return seeded(self.seed, self.place)

    def identify(self, patches: PatchDataset | ImagePatchDataset, config: Any, **more: Any) -> Fingerprint:
        """Return the fingerprint of this run, empty if it has nothing to do with checkpoints.

        A checkpoint of another run is refused before anything is computed. Limits of training, the device and the
        number of processes may change.
        """
        if self.checkpoint_dir is None and self.resume is None:
            return {}
        found = {"seed (`rng`)": self.seed, "val_fraction": float(self.val_fraction)}
        found |= fingerprint(patches, config, **more)
        if self.resume is not None and (differ := differences(self.resumed, found)):
            named = ", ".join(differ[:5]) + (f", and {len(differ) - 5} more" if len(differ) > 5 else "")
            msg = (
                f"The checkpoint {str(self.resume)!r} (`resume`) is of another run. What differs: {named}. Pass the "
                "arguments and slides of that run, or train without `resume`."
            )
            raise ValueError(msg)
        return found

    def fit(
        self,
        module: L.LightningModule,
        loader: DataLoader[Any],
        val_loader: DataLoader[Any] | None,
        identity: Fingerprint | None = None,
    ) -> pd.DataFrame:
        """Train and return the history; the network ends with its best weights, in evaluation mode on the CPU.

        `identity` comes from `identify` and goes into checkpoints.
        """
        options = dict(self.trainer_options)
        if identity:
            given = options.get("plugins") or []
            given = given if isinstance(given, list) else [given]
            options["plugins"] = [CheckpointFiles(identity, resumed=self.resume is not None), *given]
        history = History()
        hooks: list[L.Callback] = [history, *self.callbacks]
        if self.early_stopping is not None:
            hooks.append(EarlyStopping("val_loss", patience=self.early_stopping, strict=False))
        if self.checkpoint_dir is not None:
            naming: dict[str, Any] = {"filename": "last", "enable_version_counter": False}
            hooks.append(ModelCheckpoint(self.checkpoint_dir, every_n_epochs=1, **naming))
        with _quiet_lightning():
            trainer = L.Trainer(**options, callbacks=hooks)
            launcher = trainer.strategy.launcher
            if launcher is not None and not hasattr(launcher, "cluster_environment"):  # it forks or spawns
                raise ValueError(NO_WEIGHTS)
            try:
                trainer.fit(module, loader, val_loader, ckpt_path=self.resume, weights_only=bool(self.resume) or None)
            except (KeyboardInterrupt, SystemExit):
                if not trainer.interrupted:
                    raise
                if not history.rows:
                    msg = "Interrupted before one epoch ended, so there is no trained model to return."
                    raise KeyboardInterrupt(msg) from None
                logger.warning("Interrupted: the best model so far is returned.")
        if trainer.received_sigterm:  # Lightning ends the run without an error; a half-trained model is not a result
            raise SystemExit(128 + signal.SIGTERM)
        if not history.rows:
            raise ValueError(NO_WEIGHTS)
        if not history.learned:
            msg = f"Training ended (`max_time`={self.trainer_options['max_time']}) before one step. Allow more time."
            raise ValueError(msg)
        network = module.get_submodule("network")
        if history.best_weights:
            network.load_state_dict(history.best_weights)
        network.cpu().eval()
        return pd.DataFrame(history.rows, columns=HISTORY_COLUMNS)

    def card(self, patches: PatchDataset | ImagePatchDataset, **more: Any) -> dict[str, Any]:
        """Return a model's card, with the entries of all cards and `more`."""
        return {
            "name": self.name,
            "slides": [slide.name for slide in patches.slides],
            "target_sum": float(patches.target_sum),
            "licence": "that of the training slides",
            "seed": self.seed,
            "stimg_version": __version__,
            **more,
        }


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's banners, and restore the user's interrupt handler, which Lightning drops on Ctrl-C."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f".*({UNHELPFUL})")
            yield
    finally:
        log.setLevel(level)
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)
