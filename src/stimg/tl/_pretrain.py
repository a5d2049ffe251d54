"""Pretrain the masked autoencoder on patches."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._apply._names import keep_names
from stimg._data import PatchDataset
from stimg._input._checks import check_choice, check_made_by, check_positive_int, checked, warn
from stimg._train._pretrain import continued_config, count_batch, train_autoencoder
from stimg._train._run import Run
from stimg.models import Model
from stimg.models._content import LARGEST_SIZE
from stimg.models._given import given_model
from stimg.nn import Config, get_config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from lightning import Callback

logger = logging.getLogger("stimg")


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

    Parts of each patch are hidden (regions of sites, and genes of the remaining spots; see `stimg.nn.Config.mask`)
    and predicted from the rest by a vision transformer with gene-indexed first and last layers (after Zhu et al. 2026,
    arXiv 2603.13432).

    Parameters
    ----------
    patches
        From :func:`stimg.pp.to_patches`; slides with different gene panels may be mixed.
    config
        `"tiny"` (for laptops, the default), `"small"`, `"base"`, `"paper"`, or a `stimg.nn.Config`. With `init`, the
        default is the configuration of `init`, and another one must have the same sizes.
    init
        Weights to continue from: a model, a name of :func:`stimg.models.available`, or the path of a file. Genes that
        are new to it start from zero; genes that the slides lack are kept. The network's states are held near those
        that the given weights produce from whole patches (`stimg.nn.Config.anchor_loss`), so that it does not forget
        what it learned from other slides and labels (Li and Hoiem 2016, arXiv 1606.09282). The names of its labels are
        not kept: :func:`stimg.tl.annotate` knows those of `patches`.
    unit
        What one sample is: a `"patch"`, a single `"spot"` (a 1 x 1 window) or a whole `"slide"`. A batch holds about
        the same number of sites whatever the unit.
    max_epochs, max_steps, max_time
        Training ends at the first of these limits, and the learning rate falls to zero by then. `max_time` as in
        Lightning, e.g. `"00:00:10:00"` for ten minutes or a `datetime.timedelta`.
    val_fraction
        Share of non-overlapping windows of each slide that are held out for the validation loss; 0 for none. The
        weights of the epoch with the lowest validation loss are returned.
    early_stopping
        Stop after this many epochs without a better validation loss.
    checkpoint_dir
        Folder for Lightning's checkpoint, written after every epoch (`last.ckpt`). One that holds the checkpoint of an
        earlier run is only accepted to resume that run.
    resume
        A checkpoint to continue from, on the same slides, with the same configuration, seed and version of stimg;
        limits of training and the device may change. With the same arguments, the result is that of a run without
        interruption.
    name
        Name on the model's card.
    num_workers
        Number of extra processes that read the samples; with 0, this process reads them.
    device
        `"auto"` (that of `stimg.settings`), `"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"`.
    callbacks, trainer_kwargs
        Passed to `lightning.Trainer`; they override the arguments above.
    rng
        Seed or generator for everything random. On the CPU, the same seed gives the same weights.

    Returns
    -------
    Model
        With `save`, `history` and `card`. If interrupted from the keyboard, the best model so far.

    Raises
    ------
    ValueError
        A bad argument, a loss that is not finite, no time for one step, or a checkpoint in `resume` that is damaged,
        is not stimg's, or belongs to another run (the message says what differs).
    FileNotFoundError, FileExistsError
        `resume` does not exist, or `checkpoint_dir` holds the checkpoint of another run.
    KeyboardInterrupt, SystemExit
        Interrupted before the first epoch ended, or asked to end (SIGTERM); `checkpoint_dir` can be resumed.

    Warns
    -----
    UserWarning
        The patches have labels which are not learned: `stimg.nn.Config.label_loss` is 0, or there is only one label.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic(n_obs=300), copy=True)
    >>> stimg.pp.select_genes(slide)
    >>> model = stimg.tl.pretrain(stimg.pp.to_patches(slide, size=8), max_steps=2)
    >>> model.save("pretrained.safetensors")
    """
    check_made_by("patches", patches, PatchDataset, "stimg.pp.to_patches")
    check_choice("unit", unit, ("patch", "spot", "slide"))
    run = Run.of(locals())
    start = None if init is None else given_model(Model, init, "init")
    config = get_config(config or "tiny") if start is None else continued_config(config, start)
    if start is not None:
        patches = patches.with_vocabulary(start.genes)
    train, validation = patches.with_scaling(config.scaling).split(val_fraction)
    run.check_held_out(validation is not None)
    named = bool(config.label_loss and patches.label_groups)
    if patches.labels and not named:
        why = "there is one label only" if config.label_loss else "`label_loss` of the configuration is 0"
        warn(f"The labels of `patches` are not learned, since {why}. `stimg.tl.annotate` will need a `reference`.")
    units = train.with_unit(unit)
    check_positive_int("patches.size", units.size, maximum=LARGEST_SIZE.get(unit, np.inf))
    batch_size = count_batch(train, units, config.batch_size)
    validation = None if validation is None else validation.with_unit(unit)
    network, history = train_autoencoder(units, validation, config, run, batch_size, start)
    card = run.card(
        patches,
        n_sites=int(sum(slide.n_sites for slide in patches.slides)),
        kinds=sorted({slide.kind for slide in patches.slides}),
        unit=unit,
        size=units.size,
        n_channels=patches.n_channels,
        labels=patches.labels if network.n_labels else [],
        label_groups=patches.label_groups if named else [],
        genes_per_slide=int(np.median([len(slide.genes) for slide in patches.slides])),
        scale="log-normalised counts",
        init={} if start is None else {"name": start.card["name"], "sha256": start.sha256},
    )
    model = Model(network, np.asarray(patches.genes, dtype=str), card, history)
    if named:
        keep_names(model, patches.with_scaling(config.scaling), run.place)
    logger.info("Pretrained %s", model)
    return model
