"""Apply a dense network to images of any size: read blocks with a margin, and keep their cores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stimg._image._crops import read_crop
from stimg._image._footprints import pixel_weights
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
    """Return the side of a pixel of the dense map in micrometres."""
    return MAP_STRIDE * float(model.card["mpp"])


def read_shapes(
    model: ExpressionModel, image: SlideImage, shapes: Disks | Polygons, genes: np.ndarray, **options: Any
) -> np.ndarray:
    """Predict log-normalised expression, never negative, of `genes` (rows of the model's), float32 (n_shapes, n)."""
    blocks, of_shape = np.unique(np.floor(shapes.centres / CORE).astype(int), axis=0, return_inverse=True)
    of_shape = of_shape.ravel()
    step = COARSEST_STRIDE // MAP_STRIDE  # blocks start at pixels of the coarsest level
    margin = int(-(-max(MARGIN, shapes.reach.max() + MARGIN / 4) // step) * step)
    values = np.empty((len(of_shape), len(genes)), dtype=np.float32)
    trained_area = np.pi * (model.card["diameter_um"] / 2 / map_pixel_um(model)) ** 2
    for i, features in enumerate(block_features(model, image, blocks, margin=margin, **options)):
        chosen = np.flatnonzero(of_shape == i)
        origin = blocks[i] * CORE - margin
        areas = shapes.take(chosen).footprints(origin, (features.shape[2], features.shape[3]))
        weights = pixel_weights(areas, model.config.aggregation, trained_area)
        with torch.no_grad():
            found = model.network.expression(model.network.read(features, weights))[:, genes]
        values[chosen] = found.clamp(min=0).numpy()
    return values


def dense_blocks(
    model: ExpressionModel, image: SlideImage, blocks: np.ndarray, genes: np.ndarray, **options: Any
) -> Iterator[np.ndarray]:
    """Yield a log-normalised map of each block, float32 (len(genes), CORE, CORE)."""
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

    Blocks (n, 2) are given by row and column in units of `CORE` pixels of the map, `margin` in such pixels, a multiple
    of `COARSEST_STRIDE / MAP_STRIDE`; `statistics` come from `slide_statistics`. `symmetric` averages over the eight
    flips and quarter turns of the image.
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
