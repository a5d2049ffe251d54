"""Image files. Their first bytes say which format they have, not their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stimg._image._resolution import tiff_mpp
from stimg._image._tiff import open_tiff
from stimg._image._vendors import is_scanners, open_scanners, scanners_mpp
from stimg._image._whole import open_whole

LEAST_MPP, MOST_MPP = 0.01, 20.0  # a microscope's: not the 72, 96 or 300 dots per inch of screens and printers
NOT_SQUARE = 0.01
KINDS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
OTHER_KINDS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"RIFF": "a WebP",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"%!PS": "a PostScript file",
    b"\xc5\xd0\xd3\xc6": "a PostScript file",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"PK": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"<": "a web page or other XML",
}
SCANNERS = (".mrxs", ".dcm", ".vms", ".vmu", ".svslide", ".zvi", ".czi")  # formats that do not begin like a TIFF


def open_file(path: Path) -> list[Any]:
    """Open the levels of an image file, finest first.

    `OSError` if it is missing, damaged, of an unknown format or too large; `ValueError` if its colours are not known.
    """
    if not path.is_file():
        msg = f"No image file at {str(path)!r}. Check the path."
        raise FileNotFoundError(msg)
    kind = _kind(path)
    if kind == "scanner":
        return open_scanners(path)
    return open_tiff(path) if kind == "TIFF" else [open_whole(path, kind)]


def file_mpp(source: Any) -> float | None:
    """Return the micrometres per pixel that a TIFF or a scanner's file states, or `None`.

    Values that no microscope has are not believed. `ValueError` if pixels are not square.
    """
    if not isinstance(source, str | Path) or not Path(source).is_file():
        return None
    path, kind = Path(source), _kind(Path(source))
    found = scanners_mpp(path) if kind == "scanner" else tiff_mpp(path) if kind == "TIFF" else None
    if found is None or not all(LEAST_MPP < one < MOST_MPP for one in found):
        return None
    if max(found) > (1 + NOT_SQUARE) * min(found):
        msg = (
            f"The pixels of {str(path)!r} are not square: the file states {found[0]:g} x {found[1]:g} micrometres. "
            "Resample the image, or correct its metadata."
        )
        raise ValueError(msg)
    return found[0]


def _kind(path: Path) -> str:
    """Tell from its first bytes whether a file is `"PNG"`, `"JPEG"`, `"TIFF"` or one that OpenSlide reads, a scanner's.

    An `OSError` names any other kind.
    """
    with path.open("rb") as file:
        head = file.read(16)
    kind = next((KINDS[start] for start in KINDS if head.startswith(start)), None)
    by_suffix = path.suffix.lower() in SCANNERS
    if (kind == "TIFF" or by_suffix) and is_scanners(path):
        return "scanner"
    if kind is not None and not by_suffix:
        return kind
    if kind is not None:  # of MIRAX, this is a preview in JPEG
        msg = f"{str(path)!r} cannot be read as a whole-slide image. Are the files that belong to it beside it?"
        raise OSError(msg)
    other = next((OTHER_KINDS[start] for start in OTHER_KINDS if head.startswith(start)), "no image")
    msg = (
        f"{str(path)!r} cannot be read as an image: it begins like {other}. Expected PNG, JPEG, TIFF or a scanner's "
        "format; save the image as one of these, or copy or download it again."
    )
    raise OSError(msg)
