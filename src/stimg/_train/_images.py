"""What both kinds of training on H&E share: colour jitter, the pitch of spots, a check of the encoder, the card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stimg._slide._geometry import spacing
from stimg.nn import ConvEncoder
from stimg.nn._encoder import BUNDLED_ENCODER

if TYPE_CHECKING:
    from torch import Tensor

    from stimg._data import ImagePatchDataset
    from stimg._train._run import Run


def check_tuning(encoder: Any, tune_encoder: bool) -> None:
    """Refuse `tune_encoder=True` if it would have no effect."""
    bundled = isinstance(encoder, ConvEncoder) or (isinstance(encoder, str) and encoder == BUNDLED_ENCODER)
    if tune_encoder and (encoder is None or bundled):
        msg = (
            f"`tune_encoder=True` has no effect here: {BUNDLED_ENCODER!r} is always trained, and without an encoder "
            "only the stain is read. Leave it out, or pass another `encoder`."
        )
        raise ValueError(msg)


def image_card(run: Run, patches: ImagePatchDataset, encoder: Any, size: int, **more: Any) -> dict[str, Any]:
    """Return the card of a model that reads crops of `size` pixels, with the entries of all such cards and `more`."""
    return run.card(
        patches,
        encoder=encoder if isinstance(encoder, str | None) else type(encoder).__name__,
        mpp=float(patches.mpp),
        size=int(size),
        diameter_um=float(np.median([slide.diameter_um for slide in patches.slides])),
        stain_normalise=bool(patches.stain_normalise),
        n_spots=sum(len(slide.centres) for slide in patches.slides),
        **more,
    )


def pitch_um(centres: np.ndarray) -> float:
    """Return the median distance to the nearest other spot, in the unit of the centres; 1 for a single spot."""
    return float(np.nan_to_num(spacing(centres), nan=1.0))


def jitter_colours(images: Tensor, sd: float, generator: torch.Generator) -> Tensor:
    """Scale and shift each channel's optical density at random, one draw per image; float32 in [0, 1]."""
    if not sd:
        return images
    scale, shift = torch.randn(2, len(images), 3, 1, 1, generator=generator).to(images.device) * sd
    density = -torch.log(images.clamp(min=1 / 255))
    return torch.exp(-(density * scale.exp() + 0.5 * shift * density.mean((2, 3), keepdim=True))).clamp(0, 1)
