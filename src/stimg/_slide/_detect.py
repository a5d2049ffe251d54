"""Choose the kind of lattice, its pitch and its name from the data."""

from __future__ import annotations

import numpy as np

from stimg._slide._lattice import axis_lengths
from stimg._slide._layout import default_pitch, grid_indices, is_checkerboard, regular_grid

FEWEST_TO_TELL = 8


def kind_with_pitch(kind: str | None, array: np.ndarray | None) -> str:
    """Refuse a pitch where spots have a place on an array; a pitch means bins of the coordinates."""
    if array is not None or kind == "hex":
        msg = (
            "Expected no `pitch` for a slide with array positions, which have their own. Leave it out, or pass "
            "`platform='free'` to bin the coordinates instead."
        )
        raise ValueError(msg)
    return "free"


def detect_kind(array: np.ndarray | None, coordinates: np.ndarray | None, members: list[np.ndarray]) -> str:
    """Choose the kind of lattice from the data of all libraries; those too small to tell follow the others."""
    if array is not None:
        telling = [rows for rows in members if len(rows) >= FEWEST_TO_TELL] or members
        hexagonal = [is_checkerboard(*array[rows].T) for rows in telling]
        if any(hexagonal) and not all(hexagonal):
            msg = (
                f"Expected libraries on one kind of array, found {sum(hexagonal)} hexagonal and "
                f"{len(hexagonal) - sum(hexagonal)} square. Split the object, or pass `platform='free'`."
            )
            raise ValueError(msg)
        return "hex" if all(hexagonal) else "square"
    kinds = {_grid_kind(coordinates[rows]) for rows in members if coordinates is not None}
    return kinds.pop() or "free" if len(kinds) == 1 else "free"


def _grid_kind(coordinates: np.ndarray) -> str | None:
    """Kind of the regular grid on which all coordinates have a site of their own, if there is one."""
    kind = regular_grid(coordinates)
    return None if kind is None or grid_indices(coordinates, kind) is None else kind


def free_pitch(coordinates: list[np.ndarray]) -> float:
    """One pitch for all libraries: the median of what each would take."""
    pitch = float(np.median([default_pitch(here) for here in coordinates]))
    if pitch == 0:
        msg = "Most observations lie on the same coordinates, so that no pitch can be derived. Pass `pitch=`."
        raise ValueError(msg)
    return pitch


def name_platform(kind: str, affine: np.ndarray) -> str:
    """Name what was detected: a hexagonal array with equal axes is Visium's, other sizes are only `"hex"`."""
    if kind != "hex":
        return kind
    lengths = axis_lengths(affine)
    return "hex" if (np.abs(lengths[:, 1] / lengths[:, 0] - 1) > 0.1).any() else "visium"
