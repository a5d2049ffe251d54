"""Apply a dense network to slides of any size: read blocks with a margin, keep their cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from stimg._image._footprints import disk_footprints, polygon_footprints
from stimg._image._slide_image import normalise_stain
from stimg._settings import settings
from stimg._train._expression import as_tensor
from stimg.nn._dense import COARSEST_STRIDE
from stimg.nn._stain import MAP_STRIDE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from stimg._image._slide_image import SlideImage
    from stimg.models import ExpressionModel

CORE = 128  # side of a block in pixels of the map
MARGIN = 32  # least context on each side, in pixels of the map


@dataclass(frozen=True)
class Disks:
    """Circles on the map: centres (n, 2) as row and column, one radius, all in pixels of the map."""

    centres: np.ndarray
    radius: float

    @property
    def reach(self) -> float:
        """Largest distance from a centre to the edge."""
        return self.radius

    def take(self, chosen: np.ndarray) -> Disks:
        """Return some of them."""
        return Disks(self.centres[chosen], self.radius)

    def footprints(self, origin: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
        """Areas of the pixels of a block whose upper-left corner is `origin`."""
        return disk_footprints(self.centres - origin, self.radius, shape)


@dataclass(frozen=True)
class Polygons:
    """Cells or regions on the map: shapely geometries with x the column and y the row, in pixels of the map."""

    geometries: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        """Middles of the bounding boxes, (n, 2) as row and column."""
        import shapely

        x0, y0, x1, y1 = shapely.bounds(self.geometries).T
        return np.stack([(y0 + y1) / 2, (x0 + x1) / 2], 1)

    @property
    def reach(self) -> float:
        """Half of the longest side of a bounding box."""
        import shapely

        x0, y0, x1, y1 = shapely.bounds(self.geometries).T
        return float(max((x1 - x0).max(), (y1 - y0).max()) / 2)

    def take(self, chosen: np.ndarray) -> Polygons:
        """Return some of them."""
        return Polygons(self.geometries[chosen])

    def footprints(self, origin: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
        """Areas of the pixels of a block whose upper-left corner is `origin`."""
        import shapely

        return polygon_footprints(shapely.transform(self.geometries, lambda xy: xy - origin[::-1]), shape)


def map_pixel_um(model: ExpressionModel) -> float:
    """Side of a pixel of the dense map in micrometres."""
    return MAP_STRIDE * float(model.card["mpp"])


def read_shapes(
    model: ExpressionModel, image: SlideImage, shapes: Disks | Polygons, genes: np.ndarray, **options: Any
) -> np.ndarray:
    """Log-normalised expression float32 (n_shapes, len(genes)) of these rows of the gene head; never negative."""
    network = model.network
    blocks, of_shape = np.unique(np.floor(shapes.centres / CORE).astype(int), axis=0, return_inverse=True)
    of_shape = of_shape.ravel()
    margin = _whole(max(MARGIN, shapes.reach + MARGIN / 4))
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
    """Log-normalised maps float32 (len(genes), CORE, CORE) of blocks."""
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
    """Channels of the dense map, float32 (1, dim, side, side) on the CPU, of square blocks with a margin.

    Parameters
    ----------
    model, image
        The model and the slide's image.
    blocks
        int (n, 2), row and column of each block in units of `CORE` pixels of the map.
    margin
        Context on each side in pixels of the map, a multiple of `COARSEST_STRIDE / MAP_STRIDE`.
    statistics
        Of the slide's stain, from `slide_statistics`.
    symmetric
        Average over the eight flips and quarter turns of the image.
    device
        Where the network runs.
    """
    from tqdm.auto import tqdm

    network = model.network.to(device)
    mpp, side = float(model.card["mpp"]), (CORE + 2 * margin) * MAP_STRIDE
    stain = image.stain if model.card["stain_normalise"] else None
    slide = statistics[None].to(device)
    symmetries = [(turns, flip) for turns in range(4) for flip in (False, True)] if symmetric else [(0, False)]
    try:
        for block in tqdm(blocks, desc="Reading H&E", disable=not settings.progress, leave=False):
            top, left = (block * CORE - margin) * MAP_STRIDE * mpp
            crop = image.read(top, left, (side, side), mpp)
            crop = crop if stain is None else normalise_stain(crop, stain)
            pixels = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None].to(device)
            total: Any = 0
            with torch.no_grad():
                for turns, flip in symmetries:
                    turned = torch.rot90(pixels.flip(3) if flip else pixels, turns, (2, 3))
                    found = torch.rot90(network.features(turned, slide), -turns, (2, 3))
                    total = total + (found.flip(3) if flip else found).float()
            yield (total / len(symmetries)).cpu()
    finally:
        network.cpu()


def _whole(margin: float) -> int:
    """Round up, so that blocks begin at pixels of the coarsest level."""
    step = COARSEST_STRIDE // MAP_STRIDE
    return int(-(-margin // step) * step)
