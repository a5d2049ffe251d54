"""Contrastive alignment of H&E and expression."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._input._checks import check_made_by, check_positive_int, check_training, checked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from lightning import Callback

    from stimg._data import ImagePatchDataset
    from stimg.models import AlignmentModel
    from stimg.nn import AlignConfig

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
    standardised within each slide (or told by a spatial embedding or network, see `config`), images are told by the
    stain around the spot compared with the slide's other spots (which found expression better on slides of hundreds of
    spots than convolutions trained from nothing) and on request by an encoder, neighbouring spots are no negatives of
    each other, and large batches are computed in chunks. Alignment is for retrieval and representation; it need not
    help to predict expression (arXiv 2508.01490).

    Parameters
    ----------
    patches
        From :func:`stimg.pp.to_image_patches`; its crops are not used, but its slides, spots, genes and resolution.
    config
        A `stimg.nn.AlignConfig`; its defaults are for laptops.
    encoder
        By default the stain is all that is seen. Or as of :func:`stimg.tl.train_expression`: `"stimg-conv"`, the name
        of a foundation model, a module or an object.
    tune_encoder
        Train another encoder as well; by default it stays as it is.
    crop_size
        Side of the square around each spot in pixels, a multiple of 32 of at least 64.
    max_epochs, max_steps, max_time
        Whichever comes first ends training.
    val_fraction
        Share of the spots, in square blocks of tissue, held out for the validation loss; 0 for none. The weights of
        the epoch with the lowest validation loss are returned.
    early_stopping, checkpoint_dir, resume, name, num_workers, device, callbacks, trainer_kwargs, rng
        As of :func:`stimg.tl.train_expression`. With several devices each tells its own batch apart from those of all
        (`trainer_kwargs={"devices": 2, "strategy": "ddp"}`).

    Returns
    -------
    AlignmentModel
        With `save`, `history`, `card` and `encode_signature`.

    Raises
    ------
    ValueError
        A bad argument, fewer than two spots to train on, or a loss that is not finite.
    TypeError
        An encoder without dense features.
    ModuleNotFoundError
        A foundation model whose package is not installed.
    FileNotFoundError
        `resume` does not exist.
    """
    import pandas as pd
    import torch
    from torch.utils.data import DataLoader

    from stimg import __version__
    from stimg._data import ImagePatchDataset
    from stimg._data._spot_crops import SpotCropDataset
    from stimg._train._align import AlignModule
    from stimg._train._loop import EpochSampler, fit_module, training_seconds
    from stimg.models import AlignmentModel
    from stimg.models._trained_model import HISTORY_COLUMNS
    from stimg.nn import AlignConfig, AlignNetwork, get_encoder
    from stimg.tl._train_expression import hold_out

    check_made_by("patches", patches, ImagePatchDataset, "stimg.pp.to_image_patches")
    config = AlignConfig() if config is None else config
    check_made_by("config", config, AlignConfig, "stimg.nn.AlignConfig")
    check_training(device, max_epochs, val_fraction, resume)
    if early_stopping is not None and not val_fraction:
        msg = "Expected held-out spots for `early_stopping`, found `val_fraction=0`. Raise it."
        raise ValueError(msg)
    check_positive_int("crop_size", crop_size, SMALLEST_CROP, LARGEST_CROP)
    if crop_size % CROP_STEP:
        msg = f"Expected `crop_size` to be a multiple of {CROP_STEP} pixels, found {crop_size}."
        raise ValueError(msg)
    seed = int(np.random.default_rng(rng).integers(2**31))
    widths = {0 if slide.embedding is None else slide.embedding.shape[1] for slide in patches.slides}
    if config.gene_encoder == "embedding" and widths != {config.embedding_dim}:
        msg = (
            f"Expected `patches` with embeddings of `embedding_dim`={config.embedding_dim} dimensions for "
            f"`gene_encoder='embedding'`, found {sorted(widths)}. Pass `use_rep` to `stimg.pp.to_image_patches`."
        )
        raise ValueError(msg)
    base = patches.spatial_model
    if config.gene_encoder == "tuned":
        if base is None:
            msg = (
                "Expected `patches` with a spatial model for `gene_encoder='tuned'`, found none. Pass `spatial_model` "
                "to `stimg.pp.to_image_patches`."
            )
            raise ValueError(msg)
        config = replace(config, spatial=base.config, n_spatial_genes=len(base.genes))
    held = np.concatenate(hold_out(patches, val_fraction, seed))
    if (~held).sum() < 2:
        msg = f"Expected at least two spots to train on, found {(~held).sum()}."
        raise ValueError(msg)
    trainer_kwargs = {
        "max_epochs": max_epochs,
        "max_steps": -1 if max_steps is None else max_steps,
        "max_time": max_time,
        "accelerator": {"cuda": "gpu"}.get(device, device),
        **(trainer_kwargs or {}),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chosen = None if encoder is None else get_encoder(encoder, tuned=tune_encoder)
        network = AlignNetwork(config, len(patches.genes), chosen)
        if config.gene_encoder == "tuned" and base is not None:
            network.spatial.start_from(base.network, torch.arange(len(base.genes)))
        options: dict[str, Any] = {"crops": encoder is not None, "gene_encoder": config.gene_encoder}
        spots = SpotCropDataset(patches, crop_size, np.flatnonzero(~held), augment=True, **options)
        size = min(config.batch_size, len(spots))
        loader = DataLoader(
            spots, size, sampler=EpochSampler(len(spots), seed), drop_last=True, num_workers=num_workers
        )
        val_loader = None
        if held.sum() > 1:
            plain = SpotCropDataset(patches, crop_size, np.flatnonzero(held), augment=False, **options)
            val_loader = DataLoader(plain, config.batch_size, num_workers=num_workers)
        seconds = training_seconds(trainer_kwargs)
        module = AlignModule(network, config, patches, max_seconds=seconds, seed=seed)
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
    card: dict[str, Any] = {
        "name": name,
        "encoder": encoder if isinstance(encoder, str | None) else type(encoder).__name__,
        "mpp": float(patches.mpp),
        "size": int(crop_size),
        "diameter_um": float(np.median([slide.diameter_um for slide in patches.slides])),
        "stain_normalise": bool(patches.stain_normalise),
        "slides": [slide.name for slide in patches.slides],
        "n_spots": len(held),
        "target_sum": float(patches.target_sum),
        "licence": "that of the training slides",
        "seed": seed,
        "stimg_version": __version__,
    }
    if config.gene_encoder == "tuned" and base is not None:
        card["spatial"] = {"genes": base.genes.tolist(), "sha256": base.sha256, **base.card}
    genes = np.asarray(patches.genes, dtype=str)
    model = AlignmentModel(network, genes, card, pd.DataFrame(rows, columns=HISTORY_COLUMNS))
    logger.info("Trained %s", model)
    return model
