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

from stimg._files import download, written_whole
from stimg._settings import settings
from stimg.datasets._reading import reading

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from anndata import AnnData

DATA_DIR = "STIMG_DATA_DIR"
HASHES = "sha256.json"
TIMEOUT = 60  # seconds without an answer

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


def fetch(url: str, collection: str, slide: str, file: str | None = None, advice: str = "") -> Path:
    """Return the cached copy of the file published at `url`, which is downloaded at its first use.

    It is kept in the collection's folder of the cache, as `file` or as the last part of the url. The sources publish no
    checksums. The sha256 of a file is therefore recorded beside it at its first download; every later use and every new
    download must match, or there is an `OSError`. The `ConnectionError` of a failed download says what else to do:
    `advice`, by default to put the slide in `$STIMG_DATA_DIR`.
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
                more = "The download continues where it stopped. `stimg.datasets.synthetic()` needs no download"
                download(url, path, f"; {advice}. {more}", known_hash=None, downloader=_resume)
            if not path.is_file():
                msg = f"Expected the download of {url} at {str(path)!r}, found no file. Try again."
                raise ConnectionError(msg)
    _check_hash(path)
    return path


def _resume(url: str, output_file: str, _: Any) -> None:
    """Download for pooch into a file beside the output; after an interruption, the next call continues that file."""
    import requests
    from tqdm.auto import tqdm

    folder = Path(output_file).parent
    partial = folder / f".{hashlib.sha256(url.encode()).hexdigest()[:16]}.part"
    start = partial.stat().st_size if partial.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.unlink()
            msg = "the part downloaded earlier is longer than the file"
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
        msg = f"only {partial.stat().st_size:,} of {start + rest:,} bytes arrived"
        raise OSError(msg)
    partial.replace(output_file)


def _check_hash(path: Path) -> None:
    """Compare a file with its recorded sha256, or record it."""
    registry = path.parent / HASHES
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    with FileLock(path.with_name(f".{HASHES}.lock")):
        try:
            known = json.loads(registry.read_text()) if registry.is_file() else {}
        except json.JSONDecodeError as e:
            msg = f"Expected recorded hashes in {str(registry)!r}, found no valid JSON. Delete that file and try again."
            raise OSError(msg) from e
        if path.name not in known:
            known[path.name] = found
            with written_whole(registry) as unfinished:
                unfinished.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    if known[path.name] != found:
        msg = (
            f"Expected {str(path)!r} with sha256 {known[path.name]}, recorded at its first download in "
            f"{str(registry)!r}, found {found}. The file is damaged or was changed: delete it to download it again. If "
            "the publisher changed it, delete its entry there as well."
        )
        raise OSError(msg)
