"""The kind of lattice, its pitch and its name, chosen from the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stimg._input._checks import warn
from stimg._slide._geometry import default_pitch
from stimg._slide._grid import FEWEST_TO_FIND, Grid, find_grid
from stimg._slide._lattice import axis_lengths
from stimg._slide._layout import FEWEST_FOR_STEP, is_checkerboard

if TYPE_CHECKING:
    from collections.abc import Sequence

FEWEST_TO_TELL = 8
MOST_UNEQUAL = 3.0


@dataclass(frozen=True)
class Plan:
    """How the sections are laid out."""

    kind: str  # "hex", "square" or "free"
    arrays: Sequence[np.ndarray | None]  # array rows and columns of each section, int64 (n, 2); `None` if it is binned
    pitches: Sequence[float | None]  # side of the bins of each section; `None` if it lies on an array
    n_off: list[int]  # observations of each section that are far from their site


def plan_sections(
    kind: str | None,
    array: np.ndarray | None,
    coordinates: np.ndarray | None,
    members: list[np.ndarray],
    pitch: float | None,
) -> Plan:
    """Choose the kind of lattice, and find each section's array positions or pitch; `members` are their row numbers.

    Array positions count before coordinates, and a regular grid of coordinates before bins. A `pitch` means bins; for
    spots with array positions it is a `ValueError`.
    """
    nowhere: list[None] = [None] * len(members)
    if pitch is not None and (array is not None or kind == "hex"):
        msg = (
            "Expected no `pitch` for a slide with array positions, which have their own pitch. Leave it out, or pass "
            "`platform='free'` to bin the coordinates instead."
        )
        raise ValueError(msg)
    if array is not None:
        kind = kind or array_kind(array, members)
        if kind == "square" and any(
            len(rows) >= FEWEST_FOR_STEP and is_checkerboard(*array[rows].T) for rows in members
        ):
            msg = (
                "Expected a square array, found a hexagonal one: `array_row + array_col` is even for all spots, or odd "
                "for all. Pass `platform='auto'`, or the platform's name, such as 'visium'."
            )
            raise ValueError(msg)
        return Plan(kind, [array[rows] for rows in members], nowhere, [0] * len(members))
    if pitch is None and kind != "free" and (grids := grids_of(coordinates, members, kind)):
        return Plan(grids[0].kind, [grid.array for grid in grids], nowhere, [grid.n_off for grid in grids])
    pitches: list[float] = [pitch] * len(members) if pitch is not None else []
    if coordinates is not None and not pitches:
        pitches = free_pitches([coordinates[rows] for rows in members])
    return Plan("free", nowhere, pitches or nowhere, [0] * len(members))


def array_kind(array: np.ndarray, members: list[np.ndarray]) -> str:
    """Choose the kind of array from all sections (row numbers in `members`); the smallest follow the others."""
    telling = [rows for rows in members if len(rows) >= FEWEST_TO_TELL] or members
    return _one_kind(["hex" if is_checkerboard(*array[rows].T) else "square" for rows in telling])


def _one_kind(kinds: list[str]) -> str:
    if len(set(kinds)) > 1:
        hexagonal = kinds.count("hex")
        msg = (
            f"Expected all sections on one kind of array, found {hexagonal} hexagonal and {len(kinds) - hexagonal} "
            "square. Split the object, or pass `platform='free'`."
        )
        raise ValueError(msg)
    return kinds[0]


def grids_of(coordinates: np.ndarray | None, members: list[np.ndarray], kind: str | None) -> list[Grid]:
    """Return the grid of each section, whose coordinates have no array positions; empty if they lie on none.

    The kind, if it is not known, is that of the sections which are large enough to tell. If it is known but sections do
    not lie on such a grid, it is a `ValueError`; if some sections lie on a grid and others do not, there is a warning.
    """
    found: list[Grid | None] = [None] * len(members)
    if coordinates is not None:
        telling = [kind is not None or len(rows) >= FEWEST_TO_FIND for rows in members]
        found = [
            find_grid(coordinates[rows], kind) if tells else None for tells, rows in zip(telling, members, strict=True)
        ]
    grids = [grid for grid in found if grid is not None]
    if kind is None and grids and coordinates is not None:
        same = _one_kind([grid.kind for grid in grids])
        small = (grid is None and len(rows) < FEWEST_TO_FIND for grid, rows in zip(found, members, strict=True))
        found = [
            find_grid(coordinates[rows], same) if again else grid
            for again, grid, rows in zip(small, found, members, strict=True)
        ]
        grids = [grid for grid in found if grid is not None]
    if len(grids) == len(members):
        return grids
    if kind is not None:
        msg = (
            f"Expected `adata.obs['array_row']` and `['array_col']`, or coordinates on a regular {kind} grid; "
            "found neither. Pass `platform='free'` to bin the coordinates."
        )
        raise ValueError(msg)
    if grids:
        warn(
            f"{len(grids)} of {len(members)} sections lie on a regular {grids[0].kind} grid and the others do not, so "
            f"all are binned. Pass `platform={grids[0].kind!r}` to each slide alone, or add its array positions."
        )
    return []


def free_pitches(coordinates: list[np.ndarray]) -> list[float]:
    """Return the pitch of each section: the root of the area of a site on a grid, or else the default pitch.

    All sections have one pitch, the median, unless some differ threefold from it: their coordinates must have another
    unit, so each keeps its own, with a warning.
    """
    own = []
    for here in coordinates:
        grid = find_grid(here)
        own.append(default_pitch(here) if grid is None else float(np.sqrt(grid.area)))
    pitch = float(np.median(own))
    if pitch == 0:
        msg = "Most observations have the same coordinates, so no pitch can be derived from them. Pass `pitch=`."
        raise ValueError(msg)
    sizes = np.array([len(here) for here in coordinates])
    away = np.divide(own, pitch)
    unequal = (sizes >= FEWEST_TO_FIND) & ((away > MOST_UNEQUAL) | (away < 1 / MOST_UNEQUAL)) & (away > 0)
    if not unequal.any():
        return [pitch] * len(own)
    warn(
        f"Distances between neighbours differ up to {max(own) / min(one for one in own if one):.3g} times between "
        "sections, whose coordinates seem to have different units. Each section gets a pitch of its own. If the unit "
        "is the same, pass one `pitch`."
    )
    return [one if large and one else pitch for one, large in zip(own, sizes >= FEWEST_TO_FIND, strict=True)]


def name_platform(kind: str, affine: np.ndarray) -> str:
    """Name the platform that was detected: a hexagonal array with equal axes is Visium's, any other just `"hex"`."""
    if kind != "hex":
        return kind
    lengths = axis_lengths(affine)
    return "hex" if (np.abs(lengths[:, 1] / lengths[:, 0] - 1) > 0.1).any() else "visium"
