"""Files from the network: bounded, checked before they are kept, and compared with their hash at every use."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import re
import shutil
from http import HTTPStatus
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from filelock import FileLock

from stimg._files import written_whole
from stimg._settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable

HASHES: Final = "sha256.json"
TIMEOUT: Final = 60  # seconds without an answer
MOST_BYTES: Final = 2**34  # of a file whose size the server states
MOST_UNSTATED: Final = 2**29  # of a file whose size it does not state, of JSON, and of an unpacked `.gz`
LONGEST_NAME: Final = 150  # bytes; file systems allow 255, of which locks and temporary files need some
BLOCK: Final = 2**20
TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
IMAGE: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *TIFF)  # collections call JPEG and TIFF files `.png`, too
SIGNATURES: Final = {".png": IMAGE, ".jpg": IMAGE, ".jpeg": IMAGE, ".tif": TIFF, ".tiff": TIFF}
TABLES: Final = (".csv", ".tsv", ".txt")
WEB_PAGE: Final = re.compile(rb"(\xef\xbb\xbf)?\s*(<!doctype\s+html|<html)", re.IGNORECASE)
POINTER: Final = b"version https://git-lfs"

logger = logging.getLogger("stimg")


def is_file_name(name: object) -> bool:
    """Tell whether a name from outside is one file in a folder on every system: no path, drive or control character."""
    if not isinstance(name, str) or not name.strip(" .") or name.startswith("~") or re.search(r"[/\\\x00-\x1f]", name):
        return False
    return not PureWindowsPath(name).drive


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder; a name that would lead out of it is a `ValueError`.

    The name may have several parts with slashes between them. Symbolic links in the folder are its owner's and are
    followed.
    """
    if not all(is_file_name(part) for part in str(name).split("/")):
        msg = (
            f"Expected the name of a file in {str(folder)!r}, found {name!r}. What names it is damaged or not genuine."
        )
        raise ValueError(msg)
    return folder / name


def short_name(name: str) -> str:
    """Return a file name that every file system takes; a hash replaces the beginning of a longer one."""
    encoded = name.encode()
    if len(encoded) <= LONGEST_NAME:
        return name
    end = encoded[-LONGEST_NAME // 2 :].decode(errors="ignore")
    return f"{hashlib.sha256(encoded).hexdigest()[:16]}-{end}"


def name_of(url: str) -> str:
    """Return the name of the cached copy of a url: a hash of all of it, then its last part without odd characters."""
    path = re.split("[?#]", url.partition("://")[2] or url)[0].partition("/")[2]
    last = re.sub(r"[^\w.+-]", "_", unquote(path).rsplit("/", 1)[-1])
    return short_name(f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{last}")


def download(
    url: str, path: Path, *, sha256: str | None = None, check: Callable[[Path], object] | None = None, advice: str = ""
) -> None:
    """Download the file at `url` to `path`, unless it is there already and unchanged.

    It appears under its name only when it is whole, is in the format that this name promises, passes `check` (any
    `ValueError`, `LookupError` or `TypeError` refuses it), and has the right hash: `sha256`, or else that of its first
    download, which is recorded beside it. A file that was damaged since is downloaded again. An interrupted download
    continues where it stopped.

    It is a `ConnectionError` if the download fails, whose message ends with `advice` on what else would help, a
    `ValueError` if the file has another hash, and an `OSError` if the records of hashes are damaged or nothing can be
    written into the folder.
    """
    if _is_unchanged(path, sha256):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock")).acquire()
    except OSError as e:
        msg = f"Cannot write into {str(path.parent)!r} ({e}). Set `stimg.settings.cachedir` to another folder."
        raise OSError(msg) from e
    with lock:
        if _is_unchanged(path, sha256):  # another process has fetched it meanwhile
            return
        known = sha256 or _hashes(path).get(path.name)
        if path.is_file() and known in (None, _sha256(path)):  # put there by hand
            _check(path, path, check)
        else:
            if path.is_file():
                logger.warning("%s does not have its sha256, %s: it is downloaded again.", path, known)
            _retrieve(url, path, known, check, advice)
        record_hash(path)


def _retrieve(url: str, path: Path, known: str | None, check: Callable[[Path], object] | None, advice: str) -> None:
    """Download by `pooch.retrieve`, without its log lines, which are meant for developers."""
    import pooch

    def get(url: str, output_file: str, _: Any) -> None:
        partial = path.with_name(f".{hashlib.sha256(url.encode()).hexdigest()[:16]}.part")
        try:
            _get(url, partial)
        except OSError:
            raise
        except ValueError as e:  # of an address, this one or one that it redirects to; not of a hash
            raise OSError(str(e)) from e
        try:
            _check(partial, path, check)
        except OSError:
            _forget(partial)
            raise
        partial.replace(output_file)
        _forget(partial)

    log = pooch.get_logger()
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        keep = {"fname": path.name, "path": path.parent, "downloader": get}
        pooch.retrieve(url, known_hash=None if known is None else f"sha256:{known}", **keep)
    except OSError as e:
        msg = (
            f"Could not download {url} ({type(e).__name__}: {e}). Connect to the internet and try again, or put that "
            f"file at {str(path)!r} by hand{advice}."
        )
        raise ConnectionError(msg) from e
    except ValueError as e:
        msg = (
            f"Expected the file at {url} with sha256 {known}, found another ({e}). If the publisher changed it, delete "
            f"the entry {path.name!r} in {str(path.parent / HASHES)!r}; if you gave `sha256`, correct it."
        )
        raise ValueError(msg) from e
    finally:
        log.setLevel(level)


def _get(url: str, partial: Path) -> None:
    """Download into a file; after an interruption, continue it if the server still has the same."""
    import requests
    from tqdm.auto import tqdm

    note = partial.with_suffix(".json")
    start, before = _resumed(partial, note)
    if start and start == before["total"]:
        return
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": before["version"]} if before["version"] else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            _forget(partial)
            msg = "the part downloaded earlier is longer than the file"
            raise OSError(msg)
        answer.raise_for_status()
        start = start if answer.status_code == HTTPStatus.PARTIAL_CONTENT else 0
        stated = answer.headers.get("Content-Length", "")
        total = start + int(stated) if stated.isdecimal() else None
        placed = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if (start and total != before["total"]) or (placed and int(placed[1]) != start):
            _forget(partial)
            msg = "the file changed since a part of it was downloaded"
            raise OSError(msg)
        _check_size(total, start, partial.parent)
        if not start:
            _forget(partial)
        version = answer.headers.get("ETag", "") or answer.headers.get("Last-Modified", "")
        note.write_text(json.dumps({"version": "" if version.startswith("W/") else version, "total": total}))
        answer.raw.headers.pop("Content-Encoding", None)  # bytes are kept as they come, never unpacked
        shown: dict[str, Any] = {"desc": name_of(url), "unit": "B", "unit_scale": True, "leave": False}
        bar = tqdm(total=total, initial=start, disable=not settings.progress, **shown)
        arrived = start
        with partial.open("ab" if start else "wb") as file, bar:
            for block in answer.iter_content(BLOCK):
                bar.update(file.write(block))
                arrived += len(block)
                if arrived > (MOST_UNSTATED if total is None else total):
                    break
    if total is None and arrived > MOST_UNSTATED:
        _forget(partial)
        msg = f"it is larger than {MOST_UNSTATED:,} bytes, and the server does not state its size"
        raise OSError(msg)
    if total is not None and arrived != total:
        msg = f"only {arrived:,} of {total:,} bytes arrived"
        raise OSError(msg)


def _resumed(partial: Path, note: Path) -> tuple[int, dict[str, Any]]:
    """Return how much of a file an interrupted download left, and what the server said about that file."""
    try:
        noted = json.loads(note.read_text())
        before = {"version": str(noted["version"]), "total": noted["total"]}
        same = before["version"] or before["total"]  # otherwise nothing would tell that the file changed
        return partial.stat().st_size if same else 0, before
    except (OSError, ValueError, LookupError, TypeError):
        return 0, {}


def _forget(partial: Path) -> None:
    for path in (partial, partial.with_suffix(".json")):
        path.unlink(missing_ok=True)


def _check_size(total: int | None, start: int, folder: Path) -> None:
    """Refuse a file that is too large, or larger than the disk has room for."""
    free = shutil.disk_usage(folder).free
    if total is not None and (total > MOST_BYTES or total - start > free):
        msg = f"it has {total:,} bytes, more than the {min(MOST_BYTES, free + start):,} allowed or free on disk"
        raise OSError(msg)


def _check(path: Path, wanted: Path, check: Callable[[Path], object] | None) -> None:
    """Refuse a file that is not what the suffix of its `wanted` path promises, or that `check` refuses (`OSError`)."""
    try:
        _check_format(path, wanted.suffix.lower())
        if check is not None:
            check(path)
    except (OSError, EOFError, ValueError, LookupError, TypeError) as e:
        msg = f"{wanted.name!r} is not the file expected: {type(e).__name__}, {e}"
        raise OSError(msg) from e


def _check_format(path: Path, suffix: str) -> None:
    """Refuse a file that is not in the format of its suffix, or is cut off, as far as its beginning and size tell."""
    with path.open("rb") as file:
        head = file.read(2**16)
    if not head:
        raise ValueError("an empty file")
    if WEB_PAGE.match(head):
        raise ValueError("a web page, such as a login or an error page")
    if suffix in SIGNATURES and not head.startswith(SIGNATURES[suffix]):
        raise ValueError(f"not an image, its first bytes are {head[:8]!r}")
    if head.startswith(POINTER):
        raise ValueError("a pointer of Git LFS instead of the file that it stands for")
    if suffix in TABLES and (b"\0" in head or head.lstrip().startswith((b"<", b"{", b"\x1f\x8b"))):
        raise ValueError(f"not a table, its first bytes are {head[:8]!r}")
    if suffix in (".h5", ".h5ad"):
        import h5py

        h5py.File(path).close()
    elif suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as e:
            raise ValueError(str(e)) from e
    elif suffix == ".json":
        if path.stat().st_size > MOST_UNSTATED:
            raise ValueError(f"more than {MOST_UNSTATED:,} bytes of JSON")
        json.loads(path.read_text())
    elif suffix == ".gz":
        with gzip.open(path) as file:
            for number, _ in enumerate(iter(lambda: file.read(BLOCK), b"")):
                if number * BLOCK > MOST_UNSTATED:
                    raise ValueError(f"more than {MOST_UNSTATED:,} bytes when unpacked")


def record_hash(path: Path) -> None:
    """Record the sha256 of a file beside it."""
    found = _sha256(path)
    registry = path.with_name(HASHES)
    with FileLock(path.with_name(f".{HASHES}.lock")):
        known = _hashes(path)
        if known.get(path.name) != found:
            with written_whole(registry) as unfinished:
                unfinished.write_text(json.dumps(known | {path.name: found}, indent=2, sort_keys=True) + "\n")


def has_recorded_hash(path: Path) -> bool:
    """Tell whether a file is there and has the sha256 recorded beside it."""
    return path.is_file() and _hashes(path).get(path.name) == _sha256(path)


def _is_unchanged(path: Path, sha256: str | None) -> bool:
    """Tell whether a file is there with its hash on record, and has it, or `sha256` if that is given."""
    return has_recorded_hash(path) and sha256 in (None, _hashes(path)[path.name])


def _hashes(path: Path) -> dict[str, str]:
    """Read the hashes recorded in the folder of a file."""
    registry = path.with_name(HASHES)
    try:
        known = json.loads(registry.read_text()) if registry.is_file() else {}
    except ValueError:
        known = None
    if not isinstance(known, dict):
        msg = f"Expected recorded hashes in {str(registry)!r}, found no valid JSON. Delete that file and try again."
        raise OSError(msg)
    return known


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
