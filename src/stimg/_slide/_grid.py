"""Find the regular grid on which coordinates lie; arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from stimg._slide._geometry import ROW_HEIGHT, default_pitch, n_distinct

FOLD = {"hex": 6, "square": 4}  # neighbours of a site
SITE_AREA = {"hex": ROW_HEIGHT, "square": 1.0}  # in units of the squared pitch
FEWEST_TO_FIND = 16
FEWEST_TO_FIT = 7
ON_SITE = 0.25  # largest distance along an axis, in pitches, at which a quarter of any points lie on sites by chance
ON_SITE_OF_FEW = 0.15
NO_WORSE = 0.03
FEW = 50
OFF_SITE = 0.4
LEAST_ON_SITE = 0.9
LEAST_AT_FIRST = 0.7
MOST_STRETCHED = 1.6  # of the longer axis to the shorter; 1.1 on ST 2K arrays taken as square, 1.56 as hexagonal
MOST_SHARED = 0.05
MOST_SAMPLED = 20_000
FIRST_RADIUS = 2.5
CENTRES = 64  # points nearest to the middle, of which that with the most neighbours is started from
# Cells with rounded coordinates leave most sites empty, and meet on some of the others by chance, as bins do not.
LEAST_OCCUPIED = 0.1
HALF_OCCUPIED = 0.5
SAME_PLACE = 1e-3  # of the distance between neighbours


@dataclass(frozen=True)
class Grid:
    """Observations on a regular grid."""

    kind: str  # "hex" or "square"
    array: np.ndarray  # int64 (n, 2): row and column of an array; row + column is even on hexagonal ones
    n_off: int  # observations far from the middle of their site
    area: float  # of a site, in squared units of the coordinates


@dataclass(frozen=True)
class _Fit:
    sites: tuple[np.ndarray, np.ndarray]  # array rows and columns
    off: np.ndarray  # distance from the site along the worse axis, in pitches
    steps: np.ndarray  # float64 (2, 2): the axes of the grid, in units of the coordinates

    @property
    def on_site(self) -> float:
        return float(np.mean(self.off < (ON_SITE_OF_FEW if len(self.off) < FEW else ON_SITE)))

    @property
    def spread(self) -> float:
        return float(np.median(self.off))

    @property
    def step_area(self) -> float:
        return abs(float(np.linalg.det(self.steps)))

    @property
    def stretch(self) -> float:
        return float(np.linalg.cond(self.steps))


def find_grid(coordinates: np.ndarray, kind: str | None = None) -> Grid | None:
    """Return the regular grid on which coordinates lie, at any angle, with or without gaps; `None` if they lie on none.

    At least nine tenths of the observations must lie within a quarter of a pitch of their site, where random points do
    so by chance in a quarter of the cases. The others, if at most 5 % (`MOST_SHARED`) are far off, belong to the
    nearest site. Observations with the same coordinates count once. If both kinds fit, that with the more equal axes
    is meant: each grid is the other, stretched by the root of three. With a `kind`, only this one is tried, and fewer
    observations are enough.
    """
    points, place = _distinct(coordinates)
    if len(points) < (FEWEST_TO_FIND if kind is None else FEWEST_TO_FIT):
        return None
    fits = {one: _fit(points, one) for one in ([kind] if kind else FOLD)}
    found = {one: fit for one, fit in fits.items() if fit is not None}
    if not found:
        return None
    nearest = min(fit.spread for fit in found.values())
    best = min((one for one in found if found[one].spread < nearest + NO_WORSE), key=lambda one: found[one].stretch)
    fit = found[best]
    array = np.column_stack(fit.sites)
    off = fit.off > OFF_SITE
    if off.mean() > MOST_SHARED or len(points) - n_distinct(array - array.min(0)) > MOST_SHARED * len(points):
        return None
    area = SITE_AREA[best] * fit.step_area
    occupied, alone = area / default_pitch(points) ** 2, n_distinct(array[place] - array.min(0)) == len(coordinates)
    if occupied < (LEAST_OCCUPIED if alone else HALF_OCCUPIED):
        return None
    return Grid(best, array[place], int(off[place].sum()), area)


def _distinct(coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different places, and the number of each observation's place."""
    low, extent = coordinates.min(0), float(np.ptp(coordinates, axis=0).max())
    if not extent:
        return coordinates[:1], np.zeros(len(coordinates), dtype=np.int64)
    x, y = np.rint((coordinates - low) / (SAME_PLACE * extent / np.sqrt(len(coordinates)))).astype(np.int64).T
    _, first, place = np.unique(x * (y.max() + 1) + y, return_index=True, return_inverse=True)
    return coordinates[first], place


def _fit(points: np.ndarray, kind: str) -> _Fit | None:
    """Fit a grid of this kind, starting from several estimates of its pitch."""
    fold, tree = FOLD[kind], cKDTree(points)
    sample = points[_from_the_middle(points)]
    distances, neighbours = tree.query(sample, k=min(fold + 1, len(points)))
    offsets = points[neighbours[:, 1:]] - sample[:, None]
    nearest = distances[:, 1]
    # The neighbours' median is right on a full grid, the nearest on one with gaps, the lowest on a sparse one.
    pitches = [float(np.median(distances[:, 1:])), float(np.median(nearest)), float(np.quantile(nearest, 0.05))]
    best: _Fit | None = None
    for number, pitch in enumerate(pitches):
        if any(abs(pitch / earlier - 1) < 0.02 for earlier in pitches[:number]):
            continue
        near = np.abs(distances[:, 1:] / pitch - 1) < 0.25
        if not near.any():
            continue
        angle = _grid_angle(np.arctan2(offsets[near][:, 1], offsets[near][:, 0]), fold)
        start = np.argmax(near[:CENTRES].sum(1)) if near[:CENTRES].any() else np.argmax(near.any(1))
        fit = _grow(points, kind, pitch, angle, sample[start])
        if fit is not None and (best is None or fit.step_area > best.step_area):
            best = fit  # points off a grid may lie on a finer one
    return best


def _grow(points: np.ndarray, kind: str, pitch: float, angle: float, centre: np.ndarray) -> _Fit | None:
    """Round to sites near a centre, fit an affine map to them, and do the same further out, across the slide."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    units = (points - centre) @ turn / pitch
    design = np.column_stack([units, np.ones(len(units))])
    distance = np.linalg.norm(units, axis=1)
    order = np.argsort(distance, kind="stable")
    radius = FIRST_RADIUS
    while True:
        inside = order[: np.searchsorted(distance[order], radius, side="right")]
        if len(inside) >= 4:
            for _ in range(2):
                positions = _nearest_sites(units[inside], kind)[1]
                off = np.abs(units[inside] - positions).max(1)
                kept = inside[off < OFF_SITE]
                if len(kept) >= 4 and np.linalg.matrix_rank(design[kept]) == 3:
                    steps = np.linalg.lstsq(design[kept], positions[off < OFF_SITE], rcond=None)[0]
                    units = design @ steps
            if len(inside) >= 60 and np.mean(off < ON_SITE) < LEAST_AT_FIRST:
                return None
        if len(inside) == len(points):
            break
        radius *= 1.5
    sites, positions = _nearest_sites(units, kind)
    back = np.linalg.lstsq(np.column_stack([positions, np.ones(len(points))]), points, rcond=None)[0]
    fit = _Fit(sites, np.abs(units - positions).max(1), back[:2])
    flat = np.linalg.matrix_rank(positions - positions.mean(0)) < 2
    well = fit.on_site >= LEAST_ON_SITE and fit.spread < ON_SITE_OF_FEW and fit.stretch <= MOST_STRETCHED
    return fit if well and not flat else None


def _grid_angle(directions: np.ndarray, fold: int) -> float:
    """Return the direction of the grid's rows: the axis nearest to x or y, so that turned slides turn their lattice."""
    angle = float(np.angle(np.exp(1j * fold * directions).mean())) / fold
    axes = angle + 2 * np.pi / fold * np.arange(fold // 2)
    off = np.abs((axes + np.pi / 4) % (np.pi / 2) - np.pi / 4)
    return float(axes[np.argmin(np.round(off, 6))])


def _nearest_sites(units: np.ndarray, kind: str) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return the array indices (rows, cols) nearest to positions in units of the pitch, and where these lie."""
    if kind == "hex":
        rows = np.rint(units[:, 1] / ROW_HEIGHT)
        cols = rows + 2 * np.rint(units[:, 0] - 0.5 * rows)
        positions = np.column_stack([cols / 2, rows * ROW_HEIGHT])
    else:
        rows, cols = np.rint(units[:, 1]), np.rint(units[:, 0])
        positions = np.column_stack([cols, rows])
    return (rows.astype(np.int64), cols.astype(np.int64)), positions


def _from_the_middle(points: np.ndarray) -> np.ndarray:
    """Return the numbers of at most `MOST_SAMPLED` points, from the middle outwards, for any order of the rows."""
    offset = points - points.mean(0)
    order = np.lexsort((*offset.T, (offset**2).sum(1)))
    return order[np.linspace(0, len(order) - 1, min(len(order), MOST_SAMPLED)).astype(int)]
