"""Train a network that predicts dense expression from H&E."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._data import ImagePatchDataset
from stimg._input._checks import check_made_by, checked
from stimg._train._expression import train_dense
from stimg._train._held_out import hold_out
from stimg._train._images import check_tuning, image_card
from stimg._train._run import Run
from stimg.models import ExpressionModel
from stimg.nn import DenseConfig
from stimg.nn._dense import COARSEST_STRIDE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from lightning import Callback

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

    As in PixNet (arXiv 2503.01347), an encoder's feature pyramid feeds a decoder that fuses the scales by attention
    into a map at a quarter of the image's resolution; values are read inside the disk of each spot with exact areas,
    and the loss is MSE + 0.5 x (1 - Pearson over the batch) on log-normalised expression. Unlike there, genes are
    standardised, the gene head starts from principal gene programs, and the network is added to a ridge regression on
    the stain around each place, compared with that of the slide's other spots. By default a spot's value is the mean
    over its disk (log-normalised values do not grow with the area), and the network also learns groups of neighbouring
    spots with summed counts.

    Parameters
    ----------
    patches
        From :func:`stimg.pp.to_image_patches`.
    config
        A `stimg.nn.DenseConfig`; its defaults are for laptops.
    encoder
        `"stimg-conv"`, small and trained from scratch; the name of a pathology foundation model (needs
        `stimg[histology]`); a `torch.nn.Module` that turns images in [0, 1] into a feature pyramid, a map or the tokens
        of a vision transformer; or an object with `encode_image_dense` and `get_transform`, as in lazyslide-models.
    tune_encoder
        Train an encoder other than `"stimg-conv"` (which is always trained) as well; by default it stays frozen.
    max_epochs, max_steps, max_time, val_fraction, early_stopping, checkpoint_dir, resume, name, num_workers, device, \
callbacks, trainer_kwargs, rng
        As in :func:`stimg.tl.pretrain`, including what happens on an interruption and which checkpoints are
        refused; held-out spots lie in square blocks of tissue.

    Returns
    -------
    ExpressionModel
        With `save`, `history` and `card`.

    Raises
    ------
    ValueError
        A bad argument, an encoder for a resolution other than that of the crops, or a loss that is not finite.
    TypeError, ModuleNotFoundError, FileNotFoundError, FileExistsError
        An encoder without dense features, a foundation model whose package is not installed, no file at `resume`, the
        checkpoint of another run in `checkpoint_dir`.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic_histology(n_rows=6, n_cols=6), "st", copy=True)
    >>> model = stimg.tl.train_expression(stimg.pp.to_image_patches(slide, mpp=4, size=128), max_steps=2)
    >>> model.save("expression.safetensors")
    """
    check_made_by("patches", patches, ImagePatchDataset, "stimg.pp.to_image_patches")
    config = DenseConfig() if config is None else config
    check_made_by("config", config, DenseConfig, "stimg.nn.DenseConfig")
    run = Run.of(locals())
    check_tuning(encoder, tune_encoder)
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
    held_out = hold_out(patches, val_fraction, run.seed)
    run.check_held_out(any(spots.any() for spots in held_out))
    network, history = train_dense(patches, config, held_out, run, encoder, tune_encoder)
    card = image_card(run, patches, encoder, patches.size, scale="log-normalised counts")
    model = ExpressionModel(network, np.asarray(patches.genes, dtype=str), card, history)
    logger.info("Trained %s", model)
    return model
