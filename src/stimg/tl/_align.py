"""Align H&E and expression by contrastive learning."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._data import ImagePatchDataset
from stimg._input._checks import check_made_by, check_positive_int, checked
from stimg._train._align import config_for, train_alignment
from stimg._train._held_out import hold_out
from stimg._train._images import check_tuning, image_card
from stimg._train._run import Run
from stimg.models import AlignmentModel
from stimg.models._alignment_model import spatial_card
from stimg.nn import AlignConfig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from lightning import Callback

logger = logging.getLogger("stimg")

SMALLEST_CROP = 64
LARGEST_CROP = 4096
CROP_STEP = 32


@checked
def align(
    patches: ImagePatchDataset,
    config: AlignConfig | None = None,
    *,
    encoder: Any = None,
    tune_encoder: bool = False,
    crop_size: int = 224,
    max_epochs: int = 40,
    max_steps: int | None = None,
    max_time: str | timedelta | dict[str, int] | None = None,
    val_fraction: float = 0.1,
    early_stopping: int | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: str | Path | None = None,
    name: str = "stimg-alignment",
    num_workers: int = 0,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
    trainer_kwargs: dict[str, Any] | None = None,
    rng: int | np.random.Generator | None = 0,
) -> AlignmentModel:
    """Train an encoder of H&E and an encoder of expression so that a spot's two embeddings meet.

    Symmetric InfoNCE with a learned temperature: in each batch, every image has to find its expression and every
    expression its image (CLIP; for spatial transcriptomics Chen et al. 2024, arXiv 2406.06393). Here expression is
    standardised within each slide (or represented by a spatial embedding or network, see `config`). Images are
    represented by the stain around each spot, compared with that of the slide's other spots (on slides of hundreds of
    spots, this found the matching expression better than convolutions trained from scratch), and optionally also by an
    encoder. Neighbouring spots do not count as negatives of each other, and large batches are computed in chunks.
    Alignment is for retrieval and representation; it does not necessarily help to predict expression (arXiv
    2508.01490).

    Parameters
    ----------
    patches
        From :func:`stimg.pp.to_image_patches`. Its slides, spots, genes and resolution are used, but not its crops.
    config
        A `stimg.nn.AlignConfig`; its defaults are for laptops. `colour_jitter` only acts with an `encoder`.
    encoder
        By default only the stain is used. Otherwise as in :func:`stimg.tl.train_expression`: `"stimg-conv"`, the name
        of a foundation model, a module or an object.
    tune_encoder
        Train an encoder other than `"stimg-conv"` (which is always trained) as well; by default it stays frozen.
    crop_size
        Side of the square around each spot in pixels, a multiple of 32 of at least 64.
    max_epochs, max_steps, max_time, val_fraction, early_stopping, checkpoint_dir, resume, name, num_workers, device, \
callbacks, trainer_kwargs, rng
        As in :func:`stimg.tl.pretrain`, including what happens on an interruption and which checkpoints are
        refused; held-out spots lie in square blocks
        of tissue. With several devices (`trainer_kwargs={"devices": 2, "strategy": "ddp"}`), a pair is compared with
        the batches of all devices.

    Returns
    -------
    AlignmentModel
        With `save`, `history`, `card` and `encode_signature`.

    Raises
    ------
    ValueError
        A bad argument, fewer than two spots to train on, or a loss that is not finite.
    TypeError, ModuleNotFoundError, FileNotFoundError, FileExistsError
        An encoder without dense features, a foundation model whose package is not installed, no file at `resume`, the
        checkpoint of another run in `checkpoint_dir`.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic_histology(n_rows=6, n_cols=6), "st", copy=True)
    >>> model = stimg.tl.align(stimg.pp.to_image_patches(slide), max_steps=2)
    >>> model.encode_signature(["Gene0", "Gene3"]).shape
    (64,)
    """
    check_made_by("patches", patches, ImagePatchDataset, "stimg.pp.to_image_patches")
    config = AlignConfig() if config is None else config
    check_made_by("config", config, AlignConfig, "stimg.nn.AlignConfig")
    check_positive_int("crop_size", crop_size, SMALLEST_CROP, LARGEST_CROP)
    if crop_size % CROP_STEP:
        msg = f"Expected `crop_size` to be a multiple of {CROP_STEP} pixels, found {crop_size}."
        raise ValueError(msg)
    run = Run.of(locals())
    check_tuning(encoder, tune_encoder)
    config = config_for(patches, config)
    held = np.concatenate(hold_out(patches, val_fraction, run.seed))
    if (~held).sum() < 2:
        msg = f"Expected at least two spots to train on, found {(~held).sum()}."
        raise ValueError(msg)
    run.check_held_out(held.sum() > 1)
    network, history = train_alignment(patches, config, held, run, encoder, tune_encoder, crop_size)
    card = image_card(run, patches, encoder, crop_size)
    if config.gene_encoder == "tuned" and patches.spatial_model is not None:
        card["spatial"] = spatial_card(patches.spatial_model)
    model = AlignmentModel(network, np.asarray(patches.genes, dtype=str), card, history)
    logger.info("Trained %s", model)
    return model
