"""What the readers of all data sets share: a file is read or refused, and spots get their coordinates."""

from __future__ import annotations

import csv
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg import _keys
from stimg._slide._lattice import axis_lengths
from stimg._slide._layout import fit_affine, is_checkerboard, lay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData

    from stimg._platforms import Kind


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn an error while a file is read into an `OSError` that names the file and what was expected in it."""
    try:
        yield
    except (OSError, EOFError, LookupError, TypeError, ValueError, csv.Error) as e:
        found = f"{type(e).__name__}: {str(e)[:200]}"
        msg = f"Expected {expected} in {str(path)!r}, found {found}. The file is damaged: replace it."
        raise OSError(msg) from e


def array_pitch(coordinates: np.ndarray, kind: Kind, array: np.ndarray | None) -> float:
    """Return the distance between neighbours on an array of this kind; NaN for too few coordinates or another array.

    `array` are the positions on it, (n, 2), where they are known.
    """
    if array is not None and kind == "square" and is_checkerboard(*array.T):
        return float("nan")
    try:
        affine = fit_affine(lay(kind, array, coordinates, None), coordinates)[0]
    except ValueError:
        return float("nan")
    return float(axis_lengths(affine[None]).mean())


def set_spatial(
    adata: AnnData,
    library_id: str,
    coordinates: Any,
    scalefactors: dict[str, float],
    images: dict[str, np.ndarray] | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Set `.obsm["spatial"]` (x, y) as float64, and the section's entry in `.uns["spatial"]`."""
    adata.obsm[_keys.SPATIAL] = np.asarray(coordinates, dtype=np.float64)
    entry: dict[str, Any] = {"images": images or {}, "scalefactors": scalefactors}
    adata.uns[_keys.SPATIAL] = {library_id: entry if metadata is None else {**entry, "metadata": metadata}}
