"""Image encoders: a small convolutional one, and adapters for others."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BUNDLED_ENCODER = "stimg-conv"
CONV_CHANNELS = (32, 64, 128, 192)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel, so that a pixel does not depend on the window it is in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, channels, h, w)."""
        centred = x - x.mean(1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-6) * self.weight + self.bias


class ConvBlock(nn.Module):
    """Depthwise 5 x 5 convolution and a pointwise hidden layer, with a residual (Liu et al. 2022, ConvNeXt)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = ChannelNorm(channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.project = nn.Conv2d(2 * channels, channels, 1)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Transform (n, channels, h, w)."""
        return x + self.scale * self.project(F.gelu(self.expand(self.norm(self.depthwise(x)))))


class ConvEncoder(nn.Module):
    """The bundled encoder `"stimg-conv"`: four stages at strides 4, 8, 16 and 32, trained from scratch.

    `channels` and `strides` are those of its pyramid, finest level first.
    """

    channels = CONV_CHANNELS
    strides = (4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for previous, channels in pairwise((3, *CONV_CHANNELS)):
            kernel, stride, padding = (2, 2, 0) if stages else (7, 4, 3)
            down = nn.Conv2d(previous, channels, kernel, stride, padding)
            stages.append(nn.Sequential(down, ChannelNorm(channels), ConvBlock(channels), ConvBlock(channels)))
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return features (n, channels, height / stride, width / stride), finest first, of images in [0, 1].

        Images are float32 (n, 3, height, width) with sides that are multiples of 32.
        """
        features = []
        x = 4 * (images - 0.75)  # tissue and background lie on both sides of zero
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class ForeignEncoder(nn.Module):
    """Another encoder, such as a pathology foundation model, with the interface of `ConvEncoder`.

    Its output (a pyramid of maps, one map, or the tokens of a vision transformer) becomes the coarse levels; a light
    convolutional branch adds a map at stride 4, since patches of 14 or 16 pixels lack that detail.

    Parameters
    ----------
    encoder
        A `torch.nn.Module` whose `forward` takes images (n, 3, height, width) in [0, 1], or an object with
        `encode_image_dense` that returns `(class token, patch tokens)`, as in lazyslide-models. The `mean` and `std`
        of its `get_transform()` are applied, but no resizing or cropping, which would distort a dense map; sides are
        rounded to a multiple of `patch_size`.
    tuned
        Train the encoder as well (modules only).

    Raises
    ------
    TypeError
        The object has neither interface, or returns something else.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Any, *, tuned: bool = False) -> None:
        super().__init__()
        self.tuned = tuned
        self._dense = getattr(encoder, "encode_image_dense", None)
        network = encoder if isinstance(encoder, nn.Module) else getattr(encoder, "model", None)
        if self._dense is None and not isinstance(encoder, nn.Module):
            msg = (
                f"Expected `encoder` to be a `torch.nn.Module` or to have `encode_image_dense`, found "
                f"{type(encoder).__name__}."
            )
            raise TypeError(msg)
        if tuned and self._dense is not None:
            msg = f"Expected a `torch.nn.Module` to tune, found {type(encoder).__name__}, which has no gradients."
            raise TypeError(msg)
        self.network = network if isinstance(network, nn.Module) else None
        if self.network is not None:
            self.network.requires_grad_(tuned)
        transform = encoder.get_transform() if hasattr(encoder, "get_transform") else None
        steps = [step for step in getattr(transform, "transforms", [transform]) if hasattr(step, "mean")]
        mean, std = (steps[0].mean, steps[0].std) if steps else ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        patch = getattr(encoder, "patch_size", 1)
        self.patch = int(patch[0] if isinstance(patch, tuple | list) else patch)
        with torch.no_grad():
            maps = self._maps(torch.full((1, 3, 224, 224), 0.9))
        self.channels = (CONV_CHANNELS[0], *(found.shape[1] for found in maps))
        self.strides = (4, *(max(4, round(224 / found.shape[-1])) for found in maps))
        self.detail = nn.Sequential(
            nn.Conv2d(3, CONV_CHANNELS[0], 7, 4, padding=3), ChannelNorm(CONV_CHANNELS[0]), ConvBlock(CONV_CHANNELS[0])
        )

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Return the encoder's output as maps (n, channels, h, w)."""
        sides = [max(1, round(side / self.patch)) * self.patch for side in images.shape[-2:]]
        if sides != list(images.shape[-2:]):
            images = F.interpolate(images, sides, mode="bilinear", align_corners=False, antialias=True)
        images = (images - self.mean) / self.std
        if self._dense is not None:
            found = self._dense(images)[1].clone()  # made without gradients, in inference mode
        else:
            found = self.network(images)  # type: ignore[misc]
        maps = list(found) if isinstance(found, tuple | list) else [found]
        if all(isinstance(one, Tensor) and one.ndim == 4 for one in maps):
            return maps
        if len(maps) == 1 and isinstance(maps[0], Tensor) and maps[0].ndim == 3:
            tokens = maps[0]
            side = math.isqrt(tokens.shape[1])  # fewer than 2 side + 1 class and register tokens come first
            return [tokens[:, tokens.shape[1] - side**2 :].transpose(1, 2).unflatten(2, (side, side))]
        found = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in maps]
        msg = f"Expected `encoder` to return maps (n, channels, h, w) or tokens (n, tokens, channels), found {found}."
        raise TypeError(msg)

    def train(self, mode: bool = True) -> ForeignEncoder:
        """Switch to training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.network is not None and not self.tuned:
            self.network.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return features of images in [0, 1] as `ConvEncoder` does; for tokens, the images must be square."""
        with torch.set_grad_enabled(self.tuned and torch.is_grad_enabled()):
            maps = self._maps(images)
        return [self.detail(images), *maps]


def get_encoder(encoder: Any, *, tuned: bool = False) -> nn.Module:
    """Return an encoder from `"stimg-conv"`, a foundation model's name in lazyslide-models, a module or an object.

    Raises
    ------
    ModuleNotFoundError
        The name may be that of a foundation model, but lazyslide-models is not installed.
    ValueError
        No encoder has that name.
    TypeError
        The object does not return dense features.
    """
    if isinstance(encoder, ConvEncoder | ForeignEncoder):
        return encoder
    if not isinstance(encoder, str):
        return ForeignEncoder(encoder, tuned=tuned)
    if encoder == BUNDLED_ENCODER:
        return ConvEncoder()
    try:
        from lazyslide_models import MODEL_REGISTRY
    except ModuleNotFoundError as error:
        msg = (
            f"`encoder`={encoder!r} is not bundled. Pathology foundation models (uni, conch, phikon, h-optimus-0, ...) "
            "come with the extra `pip install stimg[histology]`, under their own licences; most need an account."
        )
        raise ModuleNotFoundError(msg) from error
    if encoder not in MODEL_REGISTRY:
        msg = f"Unknown `encoder` {encoder!r}. Expected {BUNDLED_ENCODER!r} or one of {sorted(MODEL_REGISTRY)}."
        raise ValueError(msg)
    return ForeignEncoder(MODEL_REGISTRY[encoder](), tuned=tuned)
