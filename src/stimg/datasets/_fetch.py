"""Local copies of public slides, and downloads from where they were published."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from stimg._settings import settings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from anndata import AnnData

DATA_DIR = "STIMG_DATA_DIR"
HASHES = "sha256.json"

logger = logging.getLogger("stimg")


def check_name(argument: str, name: object, known: Collection[str]) -> str:
    """Return the slide's name, or refuse an unknown one."""
    if str(name) not in known:
        msg = f"Expected `{argument}` to be one of {list(known)}, found {name!r}."
        raise ValueError(msg)
    return str(name)


def local_path(collection: str, name: str) -> Path | None:
    """Path of a slide under `$STIMG_DATA_DIR`, or `None` if that is not set."""
    folder = os.environ.get(DATA_DIR)
    if not folder:
        return None
    root = Path(folder).expanduser()
    if not root.is_dir():
        msg = f"Expected ${DATA_DIR} to be a folder, found {folder!r}, which is none. Correct or unset it."
        raise FileNotFoundError(msg)
    return root / collection / f"{name}.h5ad"


def read_local(collection: str, name: str) -> AnnData | None:
    """Read a slide from `$STIMG_DATA_DIR`, or return `None` if it is not there."""
    path = local_path(collection, name)
    if path is None or not path.is_file():
        return None
    import anndata

    try:
        adata = anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError) as e:
        msg = f"Expected an AnnData file at {str(path)!r} (from ${DATA_DIR}), found an unreadable one. Replace it."
        raise OSError(msg) from e
    logger.info("Read %s/%s from %s", collection, name, path)
    return adata


def fetch(url: str, collection: str, slide: str, file: str | None = None) -> Path:
    """Return the cached copy of a published file; download it at first use.

    The sources publish no checksums. The sha256 of a file is recorded beside it at its first download, and every later
    use, or a new download, must match.

    Parameters
    ----------
    url
        Where the file was published.
    collection
        Folder in the cache.
    slide
        The slide's name, for messages.
    file
        Name in the cache; by default the last part of the url.

    Returns
    -------
    The path.

    Raises
    ------
    ConnectionError
        The download failed.
    OSError
        The file is not the one that was recorded.
    """
    folder = settings.cachedir / "datasets" / collection
    folder.mkdir(parents=True, exist_ok=True)
    file = file or url.rsplit("/", 1)[-1]
    path = folder / file
    if not path.is_file():
        _download(url, path, collection, slide)
    _check_hash(path)
    return path


def _download(url: str, path: Path, collection: str, slide: str) -> None:
    import pooch

    log = pooch.get_logger()
    level = log.level
    log.setLevel(logging.WARNING)  # its advice on hashes is for developers
    try:
        pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent, progressbar=settings.progress)
    except (OSError, ValueError) as e:
        local = Path(os.environ.get(DATA_DIR) or f"${DATA_DIR}") / collection / f"{slide}.h5ad"
        msg = (
            f"Could not download {url} ({type(e).__name__}: {e}). Connect to the internet and try again; or put that "
            f"file at {str(path)!r} by hand; or set ${DATA_DIR} and put the slide, as AnnData, at {str(local)!r}. "
            "`stimg.datasets.synthetic()` needs no download."
        )
        raise ConnectionError(msg) from e
    finally:
        log.setLevel(level)
    if not path.is_file():
        msg = f"Expected the download of {url} at {str(path)!r}, found no file. Try again."
        raise ConnectionError(msg)


def _check_hash(path: Path) -> None:
    """Compare a file with its recorded sha256, or record it."""
    registry = path.parent / HASHES
    try:
        known = json.loads(registry.read_text()) if registry.is_file() else {}
    except json.JSONDecodeError as e:
        msg = f"Expected recorded hashes in {str(registry)!r}, found no valid JSON. Delete that file and try again."
        raise OSError(msg) from e
    found = hashlib.sha256()
    for block in _blocks(path):
        found.update(block)
    expected = known.get(path.name)
    if expected is None:
        partial = registry.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps({**known, path.name: found.hexdigest()}, indent=2, sort_keys=True) + "\n")
        partial.replace(registry)
    elif expected != found.hexdigest():
        msg = (
            f"Expected {str(path)!r} with sha256 {expected}, recorded at its first download in {str(registry)!r}, "
            f"found {found.hexdigest()}. The file is damaged or was changed: delete it to download it again. If the "
            "publisher changed it, delete its entry there as well."
        )
        raise OSError(msg)


def _blocks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(size):
            yield block
