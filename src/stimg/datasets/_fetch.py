"""Local copies of public slides, and downloads from where they were published."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from stimg._downloads import download, inside, short_name
from stimg._settings import settings
from stimg.datasets._reading import reading

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from anndata import AnnData

DATA_DIR = "STIMG_DATA_DIR"

logger = logging.getLogger("stimg")


def load(
    collection: str, argument: str, name: object, known: Collection[str], assemble: Callable[[str], AnnData]
) -> AnnData:
    """Read a slide from the collection's folder in `$STIMG_DATA_DIR`, or from the published files if it is not there.

    The user gave `name` as `argument`; `known` are the names that exist. `assemble` fetches the published files
    of a slide and puts them together.
    """
    if str(name) not in known:
        msg = f"Expected `{argument}` to be one of {list(known)}, found {name!r}."
        raise ValueError(msg)
    folder = os.environ.get(DATA_DIR)
    if folder and not Path(folder).expanduser().is_dir():
        msg = f"Expected ${DATA_DIR} to be a folder, found {folder!r}, which is not one. Correct or unset it."
        raise FileNotFoundError(msg)
    path = Path(folder or "").expanduser() / collection / f"{name}.h5ad"
    if not folder or not path.is_file():
        return assemble(str(name))
    import anndata

    with reading(path, f"an AnnData object (from ${DATA_DIR})"):
        adata = anndata.read_h5ad(path)
    logger.info("Read %s/%s from %s", collection, name, path)
    return adata


def fetch(
    url: str,
    collection: str,
    slide: str,
    file: str | None = None,
    advice: str = "",
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Return the cached copy of the file published at `url`, which is downloaded at its first use.

    It is kept in the collection's folder of the cache, as `file` or as the last part of the url. The sources publish no
    checksums. The sha256 of a file is therefore recorded beside it at its first download; a file that no longer has it
    is downloaded again, and if that download does not have it either, there is an `OSError`. The `ConnectionError` of
    a failed download says what else to do: `advice`, by default to put the slide in `$STIMG_DATA_DIR`. `check` is as in
    `download`.
    """
    parts = f"{collection}/{file or url.rsplit('/', 1)[-1]}".split("/")
    path = inside(settings.cachedir / "datasets", "/".join(map(short_name, parts)))
    if not advice:
        local = Path(os.environ.get(DATA_DIR) or f"${DATA_DIR}") / collection / f"{slide}.h5ad"
        advice = f"or set ${DATA_DIR} and put the slide, as AnnData, at {str(local)!r}"
    more = "The download continues where it stopped. `stimg.datasets.synthetic()` needs no download"
    try:
        download(url, path, check=check, advice=f"; {advice}. {more}")
    except ValueError as e:
        raise OSError(str(e)) from e
    return path
