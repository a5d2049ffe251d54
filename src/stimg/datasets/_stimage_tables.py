"""Tables of STimage-1K4M: coordinates, labels and counts of spots."""

from __future__ import annotations

import csv
import gzip
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stimg._input._checks import warn
from stimg._platforms import MOST_OFF, OF_TECHNOLOGY, PLATFORMS, spot_um
from stimg._slide._geometry import spacing
from stimg.datasets._reading import array_pitch, reading

if TYPE_CHECKING:
    from pathlib import Path

NOT_LABELS = ("", "undetermined", "Exclude")
ARRAY_NAME = re.compile(r"_(\d+)x(\d+)$")
BIN_NAME = re.compile(r"s_(\d+)um_(\d+)_(\d+)")
BLOCK_BYTES = 1 << 24
LARGEST_UM = {"Visium": 70.0}  # what Space Ranger says of spots of 55 micrometres


def read_coordinates(path: Path) -> pd.DataFrame:
    """Read the row and column in pixels and the radius of each spot."""
    with reading(path, "columns yaxis, xaxis and r of finite numbers, with r above 0,"):
        places = pd.read_csv(path, index_col=0)
        places[["yaxis", "xaxis", "r"]] = numbers = places[["yaxis", "xaxis", "r"]].astype(float)
        if not (len(places) and np.isfinite(numbers).all(axis=None) and (numbers["r"] > 0).all()):
            raise ValueError("no rows, or other numbers")
    places.index = places.index.astype(str)
    check_unique(places.index.to_numpy(), path)
    return places


def check_unique(spots: np.ndarray, path: Path) -> None:
    """Refuse names of spots that occur in a file more than once."""
    names, number = np.unique(spots, return_counts=True)
    if (number > 1).any():
        msg = f"{(number > 1).sum():,} spots are in {str(path)!r} more than once, such as {names[number > 1][0]!r}."
        raise ValueError(msg)


def array_positions(spots: np.ndarray, technology: str) -> tuple[np.ndarray | None, float | None]:
    """Return positions on the array (n, 2) if the names contain them, and the side of bins in micrometres."""
    pattern = BIN_NAME if technology == "VisiumHD" else ARRAY_NAME
    found = [pattern.search(name) for name in spots]
    if technology == "Visium" or not all(found):
        return None, None
    numbers = np.array([[int(part) for part in match.groups()] for match in found if match])
    if technology == "VisiumHD":
        return numbers[:, 1:], float(numbers[0, 0])
    return numbers[:, ::-1], None  # names are column x row


def scale_factors(
    places: pd.DataFrame, technology: str, array: np.ndarray | None, bin_um: float | None, name: str
) -> dict[str, float]:
    """Return micrometres per pixel from the pitch of the technology's array, and the diameter of a spot on it.

    The radii in the files are those of Space Ranger, which are too large, or a quarter of the pitch of legacy ST. They
    only tell whether the array is the usual one. If it is not, its scale is unknown, which is a warning.
    """
    stored = 2 * float(places["r"].median())
    coordinates = places[["xaxis", "yaxis"]].to_numpy()
    platform = OF_TECHNOLOGY.get(technology, "free")
    known = PLATFORMS[platform]
    pitch_um = known.pitch_um if bin_um is None else bin_um
    diameter_um = spot_um(platform, pitch_um) or float("nan")
    pitch = array_pitch(coordinates, known.kind, array)
    pitch = spacing(coordinates) if np.isnan(pitch) and array is None else pitch
    mpp = pitch_um / pitch if pitch > 0 else float("nan")
    least, most = diameter_um * (1 - MOST_OFF), LARGEST_UM.get(technology, diameter_um) * (1 + MOST_OFF)
    if not (mpp > 0 and (bin_um is not None or least < stored * mpp < most)):
        warn(
            f"The spots of {name!r} do not lie on the usual array of {technology!r}, so its micrometres per pixel are "
            "not known. Pass `image_mpp` and `diameter_um` to `stimg.pp.to_image_patches`."
        )
        return {"spot_diameter_fullres": stored}
    return {"spot_diameter_fullres": diameter_um / mpp, "spot_diameter_um": diameter_um, "microns_per_pixel": mpp}


def read_annotation(path: Path, spots: pd.Index) -> pd.Categorical:
    """Read the label of every spot; spots without one get a missing value."""
    with reading(path, "a column of labels"):
        table = pd.read_csv(path, sep=None, engine="python", index_col=0, dtype=str)
        column = table["V2"] if "V2" in table else table.iloc[:, -1]
    column = column[~column.index.duplicated()].reindex(spots)
    return pd.Categorical(column.where(~column.isin(NOT_LABELS)))


def read_wide_counts(path: Path) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Read a CSV file whose first row names genes and whose first column names spots.

    Returns counts float32 (n_spots, n_genes) as CSR, and the names of the spots and of the genes. Blocks of rows become
    sparse one by one, so that memory holds only the non-zero values and one block. A `.gz` file is unpacked on the way.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    opened = gzip.open if path.suffix == ".gz" else open
    with reading(path, "a table of counts (spots x genes, comma-separated)"):
        with opened(path, "rt", newline="") as file:
            header = next(csv.reader(file), [])
        genes = np.array(header[1:], dtype=str)
        if not len(genes):
            raise ValueError("no header with gene names")
        columns = [str(i) for i in range(len(header))]
        types: dict[str, Any] = {"0": pa.string()} | dict.fromkeys(columns[1:], pa.float32())
        reader = arrow.open_csv(
            path,
            read_options=arrow.ReadOptions(column_names=columns, skip_rows=1, block_size=BLOCK_BYTES),
            convert_options=arrow.ConvertOptions(column_types=types, null_values=[]),
        )
        parts, spots = [], []
        for block in reader:
            spots.append(np.array(block.column(0).to_pylist(), dtype=str))
            parts.append(sparse.csr_matrix(np.stack([column.to_numpy() for column in block.columns[1:]], axis=1)))
        if not parts:
            raise ValueError("only a header")
    return sparse.csr_matrix(sparse.vstack(parts)), np.concatenate(spots), genes
