"""What a TIFF file holds, as far as several modules ask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def opened_tiff(path: Path) -> Iterator[Any]:
    """Open a file with tifffile, and turn any of its errors into an `OSError` that names the file."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            yield file
    except Exception as error:
        msg = f"{str(path)!r} cannot be read as TIFF ({error}). Copy or download it again."
        raise OSError(msg) from error


def main_image(file: Any) -> tuple[int, Any]:
    """Return the number and the tifffile series of the largest image of a file, the first of equals."""
    sizes = [math.prod(size_of(series)) if {"Y", "X"} <= set(series.axes) else 0 for series in file.series]
    number = sizes.index(max(sizes))
    return number, file.series[number]


def size_of(series: Any) -> tuple[int, int]:
    """Return height and width of an image, or of a level."""
    return int(series.shape[series.axes.index("Y")]), int(series.shape[series.axes.index("X")])


def ome_pixels(file: Any, number: int) -> Any | None:
    """Return the element `Pixels` of an image in a file's OME metadata, or `None`."""
    if not file.ome_metadata:
        return None
    from xml.etree import ElementTree

    found = [one for one in ElementTree.fromstring(file.ome_metadata).iter() if one.tag.split("}")[-1] == "Pixels"]
    return found[number] if number < len(found) else None
