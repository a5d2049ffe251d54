"""Apply a dense network to slides of any size: read blocks with a margin, keep their cores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from stimg._image._crops import read_crop
from stimg._image._footprints import as_tensor
from stimg._settings import settings
from stimg.nn._dense import COARSEST_STRIDE
from stimg.nn._stain import MAP_STRIDE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from stimg._image._shapes import Disks, Polygons
    from stimg._image._slide_image import SlideImage
    from stimg.models import ExpressionModel

CORE = 128  # side of a block in pixels of the map
MARGIN = 32  # least context on each side, in pixels of the map


def map_pixel_um(model: ExpressionModel) -> float:
    """Side of a pixel of the dense map in micrometres."""
    return MAP_STRIDE * float(model.card["mpp"])


def read_shapes(
    model: ExpressionModel, image: SlideImage, shapes: Disks | Polygons, genes: np.ndarray, **options: Any
) -> np.ndarray:
    """Log-normalised expression float32 (n_shapes, len(genes)) of the model's genes at these rows; never negative."""
    network = model.network
    blocks, of_shape = np.unique(np.floor(shapes.centres / CORE).astype(int), axis=0, return_inverse=True)
    of_shape = of_shape.ravel()
    step = COARSEST_STRIDE // MAP_STRIDE  # blocks begin at pixels of the coarsest level
    margin = int(-(-max(MARGIN, shapes.reach.max() + MARGIN / 4) // step) * step)
    values = np.empty((len(of_shape), len(genes)), dtype=np.float32)
    trained_area = np.pi * (model.card["diameter_um"] / 2 / map_pixel_um(model)) ** 2
    for i, features in enumerate(block_features(model, image, blocks, margin=margin, **options)):
        chosen = np.flatnonzero(of_shape == i)
        origin = blocks[i] * CORE - margin
        areas = shapes.take(chosen).footprints(origin, (features.shape[2], features.shape[3]))
        scale = 1 / areas.sum(1) if model.config.aggregation == "mean" else np.full(len(chosen), 1 / trained_area)
        weights = as_tensor(sparse.csr_array(areas.multiply(scale[:, None])))
        with torch.no_grad():
            found = network.expression(network.read(features, weights))[:, genes]
        values[chosen] = found.clamp(min=0).numpy()
    return values


def dense_blocks(
    model: ExpressionModel, image: SlideImage, blocks: np.ndarray, genes: np.ndarray, **options: Any
) -> Iterator[np.ndarray]:
    """Yield a log-normalised map float32 (len(genes), CORE, CORE) of each block."""
    rows = torch.from_numpy(genes)
    core = slice(MARGIN, MARGIN + CORE)
    for features in block_features(model, image, blocks, margin=MARGIN, **options):
        with torch.no_grad():
            yield model.network.gene_map(features[..., core, core], rows)[0].clamp(min=0).numpy()


def block_features(
    model: ExpressionModel,
    image: SlideImage,
    blocks: np.ndarray,
    *,
    margin: int,
    statistics: Tensor,
    symmetric: bool,
    device: str,
) -> Iterator[Tensor]:
    """Yield the map's channels, float32 (1, dim, side, side) on the CPU, of each square block with its margin.

    Blocks (n, 2) are rows and columns in units of `CORE` pixels of the map, the margin is a multiple of
    `COARSEST_STRIDE / MAP_STRIDE` such pixels, and `statistics` are from `slide_statistics`. `symmetric` averages over
    the eight flips and quarter turns of the image.
    """
    from tqdm.auto import tqdm

    network = model.network.to(device)
    mpp, side = float(model.card["mpp"]), (CORE + 2 * margin) * MAP_STRIDE
    stain_normalise = bool(model.card["stain_normalise"])
    slide = statistics[None].to(device)
    symmetries = [(turns, flip) for turns in range(4) for flip in (False, True)] if symmetric else [(0, False)]
    try:
        for block in tqdm(blocks, desc="Reading H&E", disable=not settings.progress, leave=False):
            corner = (block * CORE - margin) * MAP_STRIDE * mpp
            pixels = read_crop(image, corner, side, mpp, stain_normalise=stain_normalise)[None].to(device)
            total: Any = 0
            with torch.no_grad():
                for turns, flip in symmetries:
                    turned = torch.rot90(pixels.flip(3) if flip else pixels, turns, (2, 3))
                    found = torch.rot90(network.features(turned, slide), -turns, (2, 3))
                    total = total + (found.flip(3) if flip else found).float()
            yield (total / len(symmetries)).cpu()
    finally:
        network.cpu()
