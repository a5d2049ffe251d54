"""Whether the observations lie on the tissue of an image as they are, or would if they were turned or moved."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from stimg._input._checks import warn
from stimg._slide._geometry import spacing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stimg._image._slide_image import SlideImage

LEAST_SHARE = 0.5  # of the spots on the image, and on its tissue
LEAST_STEP_UM = 100.0
RIM, FARTHEST, N_DIRECTIONS = 1.3, (1.5, 2.5), 12  # steps from the spots of what is just outside them
# Shares of the spots on tissue, and of them and the places outside together, by which another position must be better.
WARN_BY, REFUSE_BY = (0.015, 0.05), (0.05, 0.2)
SURE = 0.9  # least share of the spots on tissue in a position for which the given one is refused
# For each symmetry, whether rows and columns are exchanged, and then in which direction each of them runs.
SYMMETRIES = {
    "with x and y exchanged": (True, (1, 1)),
    "flipped top to bottom": (False, (-1, 1)),
    "flipped left to right": (False, (1, -1)),
    "turned by 180 degrees": (False, (-1, -1)),
    "turned by 90 degrees anticlockwise": (True, (-1, 1)),
    "turned by 90 degrees clockwise": (True, (1, -1)),
    "with x and y exchanged and then turned by 180 degrees": (True, (-1, -1)),
}
ADVICE = (
    "Image and coordinates are probably not in the same coordinate system. Check that the coordinates are in pixels of "
    "this image, and that its scale factor is right."
)


def check_fit(image: SlideImage, centres: np.ndarray, name: str) -> None:
    """Refuse spots of which fewer than half lie on the image or on its tissue, or that fit far better if turned.

    Centres (n, 2) are row and column in micrometres. The spots should lie on tissue, and the places just outside them
    on glass. The other positions are those of the eight symmetries, about the middle of the image and that of the
    spots, and moves by up to three steps. If one of them is better but not by far, a warning names it.
    """
    inside = image.contains(centres)
    share, words, gain = _best_position(image, centres)
    better = f" They fit better {words}: {share + gain[0]:.0%} lie on tissue, against {share:.0%}." if words else ""
    if inside.mean() < LEAST_SHARE:
        low, high = centres.min(0) / image.mpp, centres.max(0) / image.mpp
        msg = (
            f"Only {inside.sum():,} of {len(centres):,} spots of {name!r} lie inside its image: the image has "
            f"{image.shape[0]} x {image.shape[1]} pixels (rows x columns), the spots span rows {low[0]:.0f} to "
            f"{high[0]:.0f} and columns {low[1]:.0f} to {high[1]:.0f}.{better} {ADVICE}"
        )
        raise ValueError(msg)
    if not image.tissue[0].any():
        msg = f"No tissue found in the image of {name!r}. Give H&E in bright field: stained tissue on brighter glass."
        raise ValueError(msg)
    if share < LEAST_SHARE:
        n_on = round(share * len(centres))
        msg = f"Only {n_on:,} of {len(centres):,} spots of {name!r} lie on tissue in its image.{better} {ADVICE}"
        raise ValueError(msg)
    if not words:
        return
    msg = f"The spots of {name!r} do not fit the tissue of its image.{better} Correct the coordinates or the image."
    if gain[0] >= REFUSE_BY[0] and gain[1] >= REFUSE_BY[1] and share + gain[0] >= SURE:
        raise ValueError(msg)
    warn(msg)


def _best_position(image: SlideImage, centres: np.ndarray) -> tuple[float, str, tuple[float, float]]:
    """Find where the spots fit the tissue best.

    Returns the share of the spots that lie on tissue as they are, what to do to them (empty if nothing is better), and
    by how much that raises the share, and the difference to the share of the places outside them that are tissue.
    """
    share = _share(image, centres)
    if share > 1 - WARN_BY[0]:
        return share, "", (0.0, 0.0)
    step = max(spacing(centres), LEAST_STEP_UM)
    cells = np.unique(np.floor(centres / (step / 2)).astype(int), axis=0, return_index=True)[1]
    centres = centres[cells]  # one of several cells in a place
    around = _around(centres, step)
    middle = (centres.min(0) + centres.max(0)) / 2
    best = ("", (0.0, 0.0))
    own, outside = _share(image, centres), _share(image, around)
    moved = zip(*(_positions(part, image, middle, step) for part in (centres, around)), strict=True)
    for (words, spots), (_, others) in moved:
        more = _share(image, spots) - own
        gain = (more, more - _share(image, others) + outside)
        if more >= WARN_BY[0] and gain[1] >= WARN_BY[1] and gain[1] > best[1][1] + 1e-9:
            best = (words, gain)
    return share, *best


def _share(image: SlideImage, points: np.ndarray) -> float:
    """Return the share of points, row and column in micrometres, that lie on tissue."""
    mask, mpp = image.tissue
    inside = points[image.contains(points)]
    place = np.minimum((inside / mpp).astype(int), np.array(mask.shape) - 1)
    return float(mask[place[:, 0], place[:, 1]].sum() / max(1, len(points)))


def _around(centres: np.ndarray, step: float) -> np.ndarray:
    """Return places just outside the spots, about two in each step along their rim and holes."""
    from scipy.spatial import cKDTree

    angle = 2 * np.pi * np.arange(N_DIRECTIONS) / N_DIRECTIONS
    away = np.concatenate([reach * step * np.column_stack([np.cos(angle), np.sin(angle)]) for reach in FARTHEST])
    places = (centres[:, None] + away).reshape(-1, 2)
    cells = np.unique(np.floor(places / (step / 2)).astype(int), axis=0, return_index=True)[1]
    places = places[cells]
    return places[cKDTree(centres).query(places)[0] > RIM * step]


def _positions(
    points: np.ndarray, image: SlideImage, middle: np.ndarray, step: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield points turned about the middle of the image and of the spots, and moved, each with the words for it."""
    half = np.array(image.shape) * image.mpp / 2
    for words, (exchange, signs) in SYMMETRIES.items():
        order = [1, 0] if exchange else [0, 1]
        for before, after in ((half[order], half), (middle, middle)):
            yield words, (points - before)[:, order] * signs + after
    for n, down, right in product((1, 2, 3), (-1, 0, 1), (-1, 0, 1)):
        parts = [
            f"{n * step:.0f} um {w}"
            for w, d in (("down", down), ("up", -down), ("right", right), ("left", -right))
            if d > 0
        ]
        if parts:
            yield "moved by " + " and ".join(parts), points + np.array([down, right]) * n * step
