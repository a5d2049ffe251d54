"""Local copies of public slides, and downloads from where they were published."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from stimg._settings import settings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from anndata import AnnData

DATA_DIR = "STIMG_DATA_DIR"
HASHES = "sha256.json"
TIMEOUT = 60  # seconds without an answer

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


def fetch(url: str, collection: str, slide: str, file: str | None = None, advice: str = "") -> Path:
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
        Name in the cache, with folders; by default the last part of the url.
    advice
        What else to do without a connection, for the error; by default to put the slide in `$STIMG_DATA_DIR`.

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
    path = folder / (file or url.rsplit("/", 1)[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        if not advice:
            local = Path(os.environ.get(DATA_DIR) or f"${DATA_DIR}") / collection / f"{slide}.h5ad"
            advice = f"or set ${DATA_DIR} and put the slide, as AnnData, at {str(local)!r}"
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():  # another process may have fetched it meanwhile
                _download(url, path, advice)
    _check_hash(path)
    return path


def _download(url: str, path: Path, advice: str) -> None:
    import pooch

    log = pooch.get_logger()
    level = log.level
    log.setLevel(logging.WARNING)  # its advice on hashes is for developers
    try:
        pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent, downloader=_resume)
    except (OSError, ValueError) as e:
        msg = (
            f"Could not download {url} ({type(e).__name__}: {e}). Connect to the internet and try again, it goes on "
            f"where it stopped; or put that file at {str(path)!r} by hand; {advice}. `stimg.datasets.synthetic()` "
            "needs no download."
        )
        raise ConnectionError(msg) from e
    finally:
        log.setLevel(level)
    if not path.is_file():
        msg = f"Expected the download of {url} at {str(path)!r}, found no file. Try again."
        raise ConnectionError(msg)


def _resume(url: str, output_file: str, _: Any) -> None:
    """Download for pooch: to a file beside the output, at whose end a later call goes on."""
    import requests
    from tqdm.auto import tqdm

    folder = Path(output_file).parent
    partial = folder / f".{hashlib.sha256(url.encode()).hexdigest()[:16]}.part"
    start = partial.stat().st_size if partial.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.unlink()
            msg = "the part fetched before is longer than the file"
            raise OSError(msg)
        answer.raise_for_status()
        go_on = answer.status_code == HTTPStatus.PARTIAL_CONTENT
        rest = int(answer.headers.get("Content-Length", 0))
        start = start if go_on else 0
        with (
            partial.open("ab" if go_on else "wb") as file,
            tqdm(
                total=(start + rest) or None,
                initial=start,
                unit="B",
                unit_scale=True,
                desc=Path(url).name,
                disable=not settings.progress,
                leave=False,
            ) as bar,
        ):
            for block in answer.iter_content(1 << 20):
                bar.update(file.write(block))
    if rest and partial.stat().st_size != start + rest:
        msg = f"{partial.stat().st_size:,} of {start + rest:,} bytes came"
        raise OSError(msg)
    partial.replace(output_file)


def _check_hash(path: Path) -> None:
    """Compare a file with its recorded sha256, or record it."""
    with FileLock(path.with_name(f".{HASHES}.lock")):
        _compare_hash(path)


def _compare_hash(path: Path) -> None:
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
