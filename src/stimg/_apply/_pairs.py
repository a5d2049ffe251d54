"""Embed both sides of spots, image and expression, with an aligned model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from stimg._data._image_patches import Surroundings
from stimg._data._spot_crops import gene_inputs, stain_inputs, window_inputs, z_scores
from stimg._image._crops import read_crops
from stimg._settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from stimg._image._slide_image import SlideImage
    from stimg.models import AlignmentModel


def embed_images(
    model: AlignmentModel, image: SlideImage, centres: np.ndarray, *, batch_size: int, device: str
) -> np.ndarray:
    """Embed the image around centres (n, 2), row and column in micrometres, float32 (n, dim)."""
    network, mpp, size = model.network, float(model.card["mpp"]), int(model.card["size"])
    normalise = bool(model.card["stain_normalise"])
    looks = torch.from_numpy(stain_inputs(image, centres, size=size, mpp=mpp, stain_normalise=normalise))
    corners = centres - size / 2 * mpp

    def encode(some: slice) -> Tensor:
        pixels = None
        if network.encoder is not None:
            pixels = read_crops(image, corners[some], size, mpp, stain_normalise=normalise).to(device)
        return network.encode_images(looks[some].to(device), pixels)

    return _in_batches(model, encode, len(centres), batch_size, device, "Reading H&E")


def embed_genes(
    model: AlignmentModel, read: np.ndarray | Surroundings, centres: np.ndarray, *, batch_size: int, device: str
) -> np.ndarray:
    """Embed the expression of the spots at centres (n, 2), float32 (n, dim).

    The model reads the spots' surroundings, a spatial embedding (n, d), or log-normalised expression (n, n_genes) with
    NaN for genes that the slide lacks.
    """
    network = model.network

    if isinstance(read, Surroundings):

        def encode(some: slice) -> Tensor:
            windows = {key: part.to(device) for key, part in window_inputs(read, some).items()}
            return network.encode_genes(network.encode_surroundings(**windows))
    else:
        is_embedding = model.config.gene_encoder == "embedding"
        values = torch.from_numpy(z_scores(read) if is_embedding else gene_inputs(read, centres))

        def encode(some: slice) -> Tensor:
            return network.encode_genes(values[some].to(device))

    return _in_batches(model, encode, len(centres), batch_size, device, "Reading expression")


def _in_batches(
    model: AlignmentModel, encode: Callable[[slice], Tensor], n_spots: int, batch_size: int, device: str, title: str
) -> np.ndarray:
    """Encode the spots in batches on a device."""
    from tqdm.auto import tqdm

    starts = range(0, n_spots, batch_size)
    network = model.network.to(device).eval()
    try:
        with torch.no_grad():
            bar = tqdm(starts, desc=title, disable=not settings.progress, leave=False)
            return np.concatenate([encode(slice(start, start + batch_size)).cpu().numpy() for start in bar])
    finally:
        network.cpu()
