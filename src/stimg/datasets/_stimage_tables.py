"""Tables of spots of STimage-1K4M."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg._platforms import SPOT_UM

if TYPE_CHECKING:
    from pathlib import Path

NOT_LABELS = ("", "undetermined", "Exclude")
ARRAY_NAME = re.compile(r"_(\d+)x(\d+)$")
BIN_NAME = re.compile(r"s_(\d+)um_(\d+)_(\d+)")


def read_coordinates(path: Path) -> pd.DataFrame:
    """Row and column in pixels and radius of each spot."""
    try:
        places = pd.read_csv(path, index_col=0)
        places[["yaxis", "xaxis", "r"]] = places[["yaxis", "xaxis", "r"]].astype(float)
    except (KeyError, ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as e:
        msg = f"Expected columns yaxis, xaxis and r of numbers in {str(path)!r}, found: {str(e)[:200]}. Get it again."
        raise OSError(msg) from e
    places.index = places.index.astype(str)
    check_unique(places.index.to_numpy(), path)
    if not (len(places) and np.isfinite(places[["yaxis", "xaxis", "r"]]).all(axis=None) and (places["r"] > 0).all()):
        msg = f"Expected spots with finite places and radii above 0 in {str(path)!r}. Get it again."
        raise OSError(msg)
    return places


def check_unique(spots: np.ndarray, path: Path) -> None:
    """Refuse names of spots that a file has more than once."""
    names, number = np.unique(spots, return_counts=True)
    if (number > 1).any():
        msg = f"{(number > 1).sum():,} spots are in {str(path)!r} more than once, such as {names[number > 1][0]!r}."
        raise ValueError(msg)


def array_positions(spots: np.ndarray, technology: str) -> tuple[np.ndarray | None, float]:
    """Positions on the array (n, 2) where the names tell them, and the diameter of a spot in micrometres."""
    pattern = BIN_NAME if technology == "VisiumHD" else ARRAY_NAME
    found = [pattern.search(name) for name in spots]
    if technology == "Visium" or not all(found):
        return None, SPOT_UM[technology]
    numbers = np.array([[int(part) for part in match.groups()] for match in found if match])
    if technology == "VisiumHD":
        return numbers[:, 1:], float(numbers[0, 0])
    return numbers[:, ::-1], SPOT_UM[technology]  # names are column x row


def read_annotation(path: Path, spots: pd.Index) -> pd.Categorical:
    """Label of every spot, missing where there is none."""
    try:
        table = pd.read_csv(path, sep=None, engine="python", index_col=0, dtype=str)
    except (pd.errors.ParserError, UnicodeDecodeError, ValueError) as e:
        msg = f"Expected labels of spots in {str(path)!r}, found an unreadable file. Get it again."
        raise OSError(msg) from e
    if table.shape[1] == 0:
        msg = f"Expected a column of labels in {str(path)!r}, found none. Get it again."
        raise OSError(msg)
    column = table["V2"] if "V2" in table else table.iloc[:, -1]
    column = column[~column.index.duplicated()].reindex(spots)
    return pd.Categorical(column.where(~column.isin(NOT_LABELS)))
