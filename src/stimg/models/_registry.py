"""Names of pretrained weights, and where their files are."""

from __future__ import annotations

import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stimg._files import download
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
        Expected hash of a downloaded file. Named weights have theirs on record.

    Returns
    -------
    Model

    Raises
    ------
    FileNotFoundError
        There is no such file, and no weights have that name.
    ConnectionError
        The download failed. The message says where to put the file by hand.
    ValueError
        The file is damaged, is not the one expected, or is not a stimg model.
    """
    from stimg.models._model import Model

    name, known = str(source), _registry()
    if name in known:
        path = _bundled(known[name]["file"])
        if not path.is_file():
            mirror = os.environ.get(MIRROR, "")
            path = _download(f"{mirror.rstrip('/')}/{known[name]['file']}" if mirror else "", known[name])
        model = Model.load(path)
        if model.sha256 != (expected := known[name]["sha256"]):
            msg = f"Expected {str(path)!r} with sha256 {expected}, found {model.sha256}. Install stimg again."
            raise ValueError(msg)
        return model
    if name.startswith(SCHEMES):
        place = hashlib.sha256(name.encode()).hexdigest()[:8]  # files at other addresses may have the same name
        return Model.load(_download(name, {"file": f"{place}-{name.rsplit('/', 1)[-1]}", "sha256": sha256}))
    if not Path(source).is_file():
        msg = f"No weights file at {name!r}, and no pretrained weights have that name. Available: {list(known)}."
        raise FileNotFoundError(msg)
    return Model.load(source)


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


def _download(url: str, entry: dict[str, Any]) -> Path:
    """Return the cached copy of a file, downloaded at first use; an empty `url` only looks into the cache."""
    path = settings.cachedir / "weights" / entry["file"]
    if not url and not path.is_file():
        msg = (
            f"{entry['file']!r} is not bundled with this installation. Set ${MIRROR} to the address of a folder that "
            f"has it, or put the file at {str(path)!r} by hand."
        )
        raise ConnectionError(msg)
    if url:
        known = None if entry["sha256"] is None else f"sha256:{entry['sha256']}"
        try:
            download(url, path, "", known_hash=known, progressbar=settings.progress)
        except ValueError as e:
            msg = f"The file at {url} is not the one expected ({e}). Check the address and `sha256`."
            raise ValueError(msg) from e
    return path
