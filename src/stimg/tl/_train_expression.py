"""Train a network that predicts dense expression from H&E."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._input._checks import check_made_by, check_training, checked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from lightning import Callback

    from stimg._data import ImagePatchDataset
    from stimg.models import ExpressionModel
    from stimg.nn import DenseConfig

logger = logging.getLogger("stimg")


@checked
def train_expression(
    patches: ImagePatchDataset,
    config: DenseConfig | None = None,
    *,
    encoder: Any = "stimg-conv",
    tune_encoder: bool = False,
    max_epochs: int = 60,
    max_steps: int | None = None,
    max_time: str | timedelta | dict[str, int] | None = None,
    val_fraction: float = 0.1,
    early_stopping: int | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: str | Path | None = None,
    name: str = "stimg-expression",
    num_workers: int = 0,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
    trainer_kwargs: dict[str, Any] | None = None,
    rng: int | np.random.Generator | None = 0,
) -> ExpressionModel:
    """Train a network from H&E images to a dense expression map, with sparse spots as the only supervision.

    After PixNet (arXiv 2503.01347): an encoder's feature pyramid, a decoder with attentive fusion of scales to a map at
    a quarter of the image's resolution, values read inside the disk of each spot with exact areas, and the loss MSE +
    0.5 x (1 - Pearson over the batch) on log-normalised expression. Here genes are standardised, the gene head starts
    from principal gene programs, and the network adds to a ridge regression on the stain around each place compared
    with the slide's other spots; a spot is by default the mean over its disk (log-normalised values do not grow with
    the area), and besides single spots, groups of neighbouring spots with summed counts are learned.

    Parameters
    ----------
    patches
        From :func:`stimg.pp.to_image_patches`.
    config
        A `stimg.nn.DenseConfig`; its defaults are for laptops.
    encoder
        `"stimg-conv"`, small and trained from nothing; the name of a pathology foundation model (needs
        `stimg[histology]`); a `torch.nn.Module` that gives a feature pyramid, a map or vision transformer tokens from
        images in [0, 1]; or an object with `encode_image_dense` and `get_transform`, as lazyslide-models has them.
    tune_encoder
        Train another encoder as well; by default it stays as it is.
    max_epochs, max_steps, max_time
        Whichever comes first ends training; `max_time` as Lightning takes it.
    val_fraction
        Share of the spots, in square blocks of tissue, held out for the validation loss; 0 for none. The weights of
        the epoch with the lowest validation loss are returned.
    early_stopping
        Stop after this many epochs without a better validation loss.
    checkpoint_dir
        Folder for Lightning checkpoints, written every epoch (`last.ckpt`).
    resume
        A checkpoint to continue from.
    name
        Name on the model's card.
    num_workers
        Processes that read crops; 0 reads in this one.
    device
        `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
    callbacks, trainer_kwargs
        Passed to `lightning.Trainer`.
    rng
        Seed or generator of initial weights, order, colours and groups.

    Returns
    -------
    ExpressionModel
        With `save`, `history` and `card`. An interrupt from the keyboard returns the best model so far.

    Raises
    ------
    ValueError
        A bad argument, an encoder for another resolution than the crops', or a loss that is not finite.
    TypeError
        An encoder without dense features.
    ModuleNotFoundError
        A foundation model whose package is not installed.
    FileNotFoundError
        `resume` does not exist.
    SystemExit
        The process was asked to end (SIGTERM).
    """
    import torch
    from torch.utils.data import DataLoader

    from stimg._data import ImagePatchDataset
    from stimg._train._expression import ExpressionModule, stain_regression, standard_targets
    from stimg._train._loop import EpochSampler, fit_module, training_seconds
    from stimg.nn import DenseConfig, DenseNetwork, get_encoder
    from stimg.nn._dense import COARSEST_STRIDE

    check_made_by("patches", patches, ImagePatchDataset, "stimg.pp.to_image_patches")
    config = DenseConfig() if config is None else config
    check_made_by("config", config, DenseConfig, "stimg.nn.DenseConfig")
    check_training(device, max_epochs, val_fraction, resume)
    if early_stopping is not None and not val_fraction:
        msg = "Expected held-out spots for `early_stopping`, found `val_fraction=0`. Raise it."
        raise ValueError(msg)
    if patches.size % COARSEST_STRIDE:
        msg = f"Expected patches with a `size` that is a multiple of {COARSEST_STRIDE} pixels, found {patches.size}."
        raise ValueError(msg)
    wanted = getattr(encoder, "mpp", None)
    if wanted is not None and not np.isclose(wanted, patches.mpp, rtol=0.05):
        msg = (
            f"Expected patches at the encoder's {wanted} micrometres per pixel, found {patches.mpp}. Pass "
            f"`mpp={wanted}` to `stimg.pp.to_image_patches`."
        )
        raise ValueError(msg)
    seed = int(np.random.default_rng(rng).integers(2**31))
    trainer_kwargs = {
        "max_epochs": max_epochs,
        "max_steps": -1 if max_steps is None else max_steps,
        "max_time": max_time,
        "accelerator": {"cuda": "gpu"}.get(device, device),
        **(trainer_kwargs or {}),
    }
    held_out = hold_out(patches, val_fraction, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, sd, programs = standard_targets(patches, config.n_programs)
        network = DenseNetwork(config, len(patches.genes), get_encoder(encoder, tuned=tune_encoder))
        network.start_from_programs(mean, sd, programs)
        sampler = EpochSampler(len(patches), seed)
        options: dict[str, Any] = {"num_workers": num_workers, "collate_fn": patches.collate}
        loader = DataLoader(patches, config.batch_size, sampler=sampler, **options)
        plain = patches.with_augment(False)
        val_loader = DataLoader(plain, config.batch_size, **options) if val_fraction else None
        seconds = training_seconds(trainer_kwargs)
        module = ExpressionModule(network, config, patches, held_out, max_seconds=seconds, seed=seed)
        network.start_from_stain(*stain_regression(module, DataLoader(plain, config.batch_size, **options)))
        rows = fit_module(
            module,
            loader,
            val_loader,
            early_stopping=early_stopping,
            checkpoint_dir=checkpoint_dir,
            resume=resume,
            callbacks=callbacks,
            trainer_kwargs=trainer_kwargs,
        )
    return _make_model(network, rows, patches, encoder=encoder, name=name, seed=seed)


def hold_out(patches: ImagePatchDataset, fraction: float, seed: int) -> list[np.ndarray]:
    """Spots held out of each slide, bool (n_spots,): those in randomly chosen square blocks as wide as half a crop."""
    generator = np.random.default_rng(seed)
    side = patches.size * patches.mpp / 2
    held = []
    for slide in patches.slides:
        blocks, of_spot = np.unique(np.floor(slide.centres / side), axis=0, return_inverse=True)
        rank = generator.permutation(len(blocks))[of_spot.ravel()]
        order = np.argsort(rank, kind="stable")
        out = np.zeros(len(slide.centres), dtype=bool)
        n_out = int(fraction * len(out))
        if n_out:
            out = rank <= rank[order[n_out - 1]]
        held.append(out if not out.all() else np.zeros_like(out))
    return held


def _make_model(
    network: Any, rows: list[dict[str, float]], patches: ImagePatchDataset, *, encoder: Any, name: str, seed: int
) -> ExpressionModel:
    import pandas as pd

    from stimg import __version__
    from stimg.models import ExpressionModel
    from stimg.models._trained_model import HISTORY_COLUMNS

    card = {
        "name": name,
        "encoder": encoder if isinstance(encoder, str) else type(encoder).__name__,
        "mpp": float(patches.mpp),
        "size": int(patches.size),
        "diameter_um": float(np.median([slide.diameter_um for slide in patches.slides])),
        "stain_normalise": bool(patches.stain_normalise),
        "slides": [slide.name for slide in patches.slides],
        "n_spots": int(sum(len(slide.centres) for slide in patches.slides)),
        "scale": "log-normalised counts",
        "target_sum": float(patches.target_sum),
        "licence": "that of the training slides",
        "seed": seed,
        "stimg_version": __version__,
    }
    model = ExpressionModel(
        network, np.asarray(patches.genes, dtype=str), card, pd.DataFrame(rows, columns=HISTORY_COLUMNS)
    )
    logger.info("Trained %s", model)
    return model
