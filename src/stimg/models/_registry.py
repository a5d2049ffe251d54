"""Names of pretrained weights, and where their files are."""

from __future__ import annotations

import json
import os
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stimg._downloads import download, name_of
from stimg._input._checks import checked
from stimg._settings import settings

if TYPE_CHECKING:
    from stimg.models._model import Model

MIRROR = "STIMG_WEIGHTS_URL"
SCHEMES = ("https://", "http://")


def available() -> pd.DataFrame:
    """List the pretrained weights that have a name.

    Returns
    -------
    DataFrame
        Indexed by name: `bundled` (comes with the package, needs no network), `file`, `sha256` and `description`.
    """
    table = pd.DataFrame.from_dict(_registry(), orient="index")
    table.insert(0, "bundled", [_bundled(file).is_file() for file in table["file"]])
    return table.rename_axis("name")


@checked
def load(source: str | Path, *, sha256: str | None = None) -> Model:
    """Load pretrained weights.

    Parameters
    ----------
    source
        A name of :func:`available`, the path of a file that `Model.save` wrote, or the http(s) address of one, which is
        downloaded once into `stimg.settings.cachedir`.
    sha256
        Expected hash of the file, wherever it comes from. Named weights have theirs on record.

    Returns
    -------
    Model

    Raises
    ------
    FileNotFoundError
        There is no such file, and no weights have that name.
    ConnectionError
        The download failed, or brought something else than weights, such as a login page. The message says where to
        put the file by hand.
    OSError
        A file that was put into the cache by hand is in another format.
    ValueError
        The file is damaged, is not the one expected, or is not a stimg model; or `sha256` is not a hash.
    """
    from stimg.models._model import Model

    name, known, expected = str(source), _registry(), _checked_hash(sha256)
    if name in known:
        path, own = _bundled(known[name]["file"]), known[name]["sha256"]
        if not path.is_file():
            mirror = os.environ.get(MIRROR, "")
            path = _download(f"{mirror.rstrip('/')}/{known[name]['file']}" if mirror else "", known[name]["file"], own)
        model = Model.load(path)
        if model.sha256 != own:
            msg = f"Expected {str(path)!r} with sha256 {own}, found {model.sha256}. Install stimg again."
            raise ValueError(msg)
    elif name.startswith(SCHEMES):
        model = Model.load(_download(name, name_of(name), expected))
    elif os.path.isfile(source):  # no error for names that no file can have
        model = Model.load(source)
    else:
        msg = f"No weights file at {name!r}, and no pretrained weights have that name. Available: {list(known)}."
        raise FileNotFoundError(msg)
    if expected not in (None, model.sha256):
        msg = f"Expected {name!r} with `sha256` {expected}, found {model.sha256}. It is another file, or damaged."
        raise ValueError(msg)
    return model


def card(source: str | Path) -> dict[str, Any]:
    """Return the card of weights: training slides, genes, normalisation, licence, measured quality.

    Parameters
    ----------
    source
        As for :func:`load`.
    """
    return load(source).card


def _registry() -> dict[str, dict[str, str]]:
    return json.loads(resources.files("stimg.models").joinpath("weights.json").read_text(encoding="utf-8"))


def _bundled(file: str) -> Path:
    return Path(str(resources.files("stimg.models").joinpath(file)))


def _checked_hash(sha256: str | None) -> str | None:
    """Return a sha256 in lower case; refuse what cannot be one."""
    if sha256 is None or re.fullmatch("[0-9a-fA-F]{64}", str(sha256)):
        return sha256 and sha256.lower()
    msg = f"Expected `sha256` to be 64 hexadecimal digits, found {sha256!r}."
    raise ValueError(msg)


def _download(url: str, file: str, sha256: str | None) -> Path:
    """Return the cached copy of a file, downloaded at first use; an empty `url` only looks into the cache."""
    path = settings.cachedir / "weights" / file
    if not url and not path.is_file():
        msg = (
            f"{file!r} is not bundled with this installation. Set ${MIRROR} to the address of a folder that has it, or "
            f"put the file at {str(path)!r} by hand."
        )
        raise ConnectionError(msg)
    if url:
        download(url, path, sha256=sha256)
    return path
