"""Pretrain the masked autoencoder on patches."""

from __future__ import annotations

import logging
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._input._checks import check_choice, check_made_by, check_training, checked
from stimg._slide._genes import vocabulary_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from lightning import Callback

    from stimg._data import PatchDataset
    from stimg.models import Model
    from stimg.nn import Config

logger = logging.getLogger("stimg")

# Least windows of an epoch, a slide: the paper's 2 * 140^2 / 16^2 random crops.
CROPS_A_SLIDE = 153


@checked
def pretrain(
    patches: PatchDataset,
    config: str | Config | None = None,
    *,
    init: Model | str | Path | None = None,
    unit: str = "patch",
    max_epochs: int = 20,
    max_steps: int | None = None,
    max_time: str | timedelta | dict[str, int] | None = None,
    val_fraction: float = 0.1,
    early_stopping: int | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: str | Path | None = None,
    name: str = "stimg",
    num_workers: int = 0,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
    trainer_kwargs: dict[str, Any] | None = None,
    rng: int | np.random.Generator | None = 0,
) -> Model:
    """Pretrain a masked autoencoder on patches of slides.

    Parts of each patch are hidden (regions of sites, and genes inside the spots that stay; see
    `stimg.nn.Config.mask`) and predicted from the rest by a vision transformer with gene-indexed first and last layers
    (after Zhu et al. 2026, arXiv 2603.13432).

    Parameters
    ----------
    patches
        From :func:`stimg.pp.to_patches`; slides with different gene panels may be mixed.
    config
        `"tiny"` (laptops, the default), `"small"`, `"base"`, `"paper"`, or a `stimg.nn.Config`. With `init` the
        network's sizes must be those of `init`; by default all of its configuration is taken.
    init
        Weights to continue from: a model, a name of :func:`stimg.models.available`, or the path of a file. Genes that
        it does not know start at nothing; those that only it knows are kept. States stay near those that the given
        weights would give to whole patches (`stimg.nn.Config.anchor_loss`), so that what they learned from other
        slides and labels is kept (Li and Hoiem 2016, arXiv 1606.09282).
    unit
        What one sample is: a `"patch"`, a single `"spot"` (1 x 1 window) or a whole `"slide"`. Batches hold about as
        many sites whatever the unit.
    max_epochs, max_steps, max_time
        Whichever comes first ends training; `max_time` as Lightning takes it, e.g. `"00:00:10:00"` for ten minutes.
        The learning rate is annealed to the end of the shortest of them.
    val_fraction
        Share of non-overlapping windows of each slide held out for the validation loss; 0 for none. The weights of
        the epoch with the lowest validation loss are returned.
    early_stopping
        Stop after this many epochs without a better validation loss.
    checkpoint_dir
        Folder for Lightning checkpoints, written every epoch (`last.ckpt`).
    resume
        A checkpoint to continue from; with the same arguments the result is that of an uninterrupted run.
    name
        Name on the model's card.
    num_workers
        Processes that crop patches; 0 crops in this one.
    device
        `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
    callbacks, trainer_kwargs
        Passed to `lightning.Trainer`.
    rng
        Seed or generator of initial weights, order and masks. The same seed gives the same weights on the CPU.

    Returns
    -------
    Model
        With `save`, `history` and `card`. An interrupt from the keyboard returns the best model so far.

    Raises
    ------
    ValueError
        A bad argument, or a loss that is not finite.
    FileNotFoundError
        `resume` does not exist.
    SystemExit
        The process was asked to end (SIGTERM). What `checkpoint_dir` holds can be resumed.
    """
    import torch

    from stimg._data import PatchDataset
    from stimg.models import Model
    from stimg.models._given import given_model
    from stimg.nn import get_config

    check_made_by("patches", patches, PatchDataset, "stimg.pp.to_patches")
    start = None if init is None else given_model(Model, init, "init")
    config = get_config(config or "tiny") if start is None else _continued_config(config, start)
    check_choice("unit", unit, ("patch", "spot", "slide"))
    check_training(device, max_epochs, val_fraction, resume)
    seed = int(np.random.default_rng(rng).integers(2**31))
    if start is not None:
        patches = patches.with_vocabulary(start.genes)
    train, validation = patches.with_scaling(config.scaling).split(val_fraction)
    if early_stopping is not None and validation is None:
        msg = "Expected held-out windows for `early_stopping`, found none. Raise `val_fraction` or give larger slides."
        raise ValueError(msg)
    sites = config.batch_size * patches.size**2 * _mean_tissue(train)
    train = train.with_unit(unit)
    validation = None if validation is None else validation.with_unit(unit)
    batch_size = max(1, round(sites / (train.size**2 * _mean_tissue(train))))
    with torch.random.fork_rng(devices=[]):
        network, history = _fit(
            train,
            validation,
            config,
            start=start,
            batch_size=min(batch_size, len(train)),
            seed=seed,
            num_workers=num_workers,
            resume=resume,
            checkpoint_dir=checkpoint_dir,
            early_stopping=early_stopping,
            callbacks=callbacks,
            trainer_kwargs={
                "max_epochs": max_epochs,
                "max_steps": -1 if max_steps is None else max_steps,
                "max_time": max_time,
                "accelerator": {"cuda": "gpu"}.get(device, device),
                **(trainer_kwargs or {}),
            },
        )
    return _make_model(network, history, patches, start=start, unit=unit, size=train.size, name=name, seed=seed)


def _continued_config(config: str | Config | None, start: Model) -> Config:
    """Return the configuration of a run that continues `start`, which fixes the network's sizes."""
    from stimg.nn import get_config

    if config is None:
        return start.config
    config = get_config(config)
    sizes = ("dim", "encoder_layers", "decoder_layers", "heads", "mlp_ratio", "token", "scaling", "n_programs")
    differ = {name: (getattr(config, name), getattr(start.config, name)) for name in sizes}
    if differ := {name: pair for name, pair in differ.items() if pair[0] != pair[1]}:
        msg = f"Expected a `config` with the sizes of `init`, found (config, init) = {differ}. Leave out `config`."
        raise ValueError(msg)
    return config


def _mean_tissue(dataset: PatchDataset) -> float:
    """Mean share of present sites over a sample of windows."""
    sample = np.linspace(0, len(dataset) - 1, min(len(dataset), 16)).astype(int)
    return float(np.mean([dataset[int(i)]["present"].float().mean().item() for i in sample]))


def _fit(
    train: PatchDataset,
    validation: PatchDataset | None,
    config: Config,
    *,
    start: Model | None,
    batch_size: int,
    seed: int,
    num_workers: int,
    resume: str | Path | None,
    checkpoint_dir: str | Path | None,
    early_stopping: int | None,
    callbacks: Sequence[Callback],
    trainer_kwargs: dict[str, Any],
) -> tuple[Any, list[dict[str, float]]]:
    """Run Lightning's Trainer; return the network with its best weights and the history's rows."""
    import torch
    from torch.utils.data import DataLoader

    from stimg._train._loop import EpochSampler, PretrainModule, fit_module, training_seconds
    from stimg._train._programs import gene_programs
    from stimg.nn import GeneMAE

    torch.manual_seed(seed)
    network = GeneMAE(config, len(train.genes), len(train.labels) if config.label_loss else 0)
    if config.n_programs:
        programs = [torch.from_numpy(part) for part in gene_programs(train, config.dim // 2)]
        network.start_from_programs(*programs)
        network.judge_by_programs(*programs)
    anchor = None
    if start is not None:
        network.start_from(start.network, torch.from_numpy(vocabulary_rows(train.genes, start.genes)))
        anchor = deepcopy(network).requires_grad_(False) if config.anchor_loss else None
    repeats = -(-CROPS_A_SLIDE * len(train.slides) // len(train))
    sampler = EpochSampler(len(train), seed, repeats, train.draw_weights())
    loader = DataLoader(train, batch_size, sampler=sampler, num_workers=num_workers)
    val_loader = None if validation is None else DataLoader(validation, batch_size, num_workers=num_workers)
    seconds = training_seconds(trainer_kwargs)
    module = PretrainModule(network, config, max_seconds=seconds, seed=seed, anchor=anchor)
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
    return network, rows


def _make_model(
    network: Any,
    rows: list[dict[str, float]],
    patches: PatchDataset,
    *,
    start: Model | None,
    unit: str,
    size: int,
    name: str,
    seed: int,
) -> Model:
    import pandas as pd

    from stimg import __version__
    from stimg.models import Model
    from stimg.models._trained_model import HISTORY_COLUMNS

    card = {
        "name": name,
        "slides": [s.name for s in patches.slides],
        "n_sites": int(sum(s.n_sites for s in patches.slides)),
        "kinds": sorted({s.kind for s in patches.slides}),
        "unit": unit,
        "size": size,
        "n_channels": patches.n_channels,
        "labels": patches.labels if network.n_labels else [],
        "genes_per_slide": int(np.median([len(s.genes) for s in patches.slides])),
        "scale": "log-normalised counts",
        "target_sum": patches.target_sum,
        "init": {} if start is None else {"name": start.card["name"], "sha256": start.sha256},
        "licence": "that of the training slides",
        "seed": seed,
        "stimg_version": __version__,
    }
    model = Model(network, np.asarray(patches.genes, dtype=str), card, pd.DataFrame(rows, columns=HISTORY_COLUMNS))
    logger.info("Pretrained %s", model)
    return model
