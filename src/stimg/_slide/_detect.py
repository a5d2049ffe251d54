"""The kind of lattice, its pitch and its name, chosen from the data."""

from __future__ import annotations

import numpy as np

from stimg._slide._lattice import axis_lengths
from stimg._slide._layout import default_pitch, grid_indices, is_checkerboard, regular_grid

FEWEST_TO_TELL = 8


def kind_with_pitch(kind: str | None, array: np.ndarray | None) -> str:
    """Return `"free"`, since a pitch means binned coordinates; refuse it for spots that lie on an array."""
    if array is not None or kind == "hex":
        msg = (
            "Expected no `pitch` for a slide with array positions, which have their own pitch. Leave it out, or pass "
            "`platform='free'` to bin the coordinates instead."
        )
        raise ValueError(msg)
    return "free"


def detect_kind(array: np.ndarray | None, coordinates: np.ndarray | None, members: list[np.ndarray]) -> str:
    """Choose the kind of lattice from all sections (row numbers in `members`); the smallest follow the others."""
    if array is not None:
        telling = [rows for rows in members if len(rows) >= FEWEST_TO_TELL] or members
        hexagonal = [is_checkerboard(*array[rows].T) for rows in telling]
        if any(hexagonal) and not all(hexagonal):
            msg = (
                f"Expected all sections on one kind of array, found {sum(hexagonal)} hexagonal and "
                f"{len(hexagonal) - sum(hexagonal)} square. Split the object, or pass `platform='free'`."
            )
            raise ValueError(msg)
        return "hex" if all(hexagonal) else "square"
    kinds = {_grid_kind(coordinates[rows]) for rows in members if coordinates is not None}
    return kinds.pop() or "free" if len(kinds) == 1 else "free"


def _grid_kind(coordinates: np.ndarray) -> str | None:
    """Return the kind of regular grid on which each coordinate has a site of its own, or `None`."""
    kind = regular_grid(coordinates)
    return None if kind is None or grid_indices(coordinates, kind) is None else kind


def free_pitch(coordinates: list[np.ndarray]) -> float:
    """Return one pitch for all sections: the median of their default pitches."""
    pitch = float(np.median([default_pitch(here) for here in coordinates]))
    if pitch == 0:
        msg = "Most observations have the same coordinates, so no pitch can be derived from them. Pass `pitch=`."
        raise ValueError(msg)
    return pitch


def name_platform(kind: str, affine: np.ndarray) -> str:
    """Name the platform that was detected: a hexagonal array with equal axes is Visium's, any other just `"hex"`."""
    if kind != "hex":
        return kind
    lengths = axis_lengths(affine)
    return "hex" if (np.abs(lengths[:, 1] / lengths[:, 0] - 1) > 0.1).any() else "visium"
