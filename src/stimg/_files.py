"""Files that are written whole or not at all, and files from the network."""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def check_new_path(path: Path, *, overwrite: bool = False, advice: str = "") -> None:
    """Refuse a path whose folder does not exist or is read-only, and a path where there is something already."""
    if not path.parent.is_dir():
        msg = f"Expected `path` in an existing folder, found {str(path)!r}. Create {str(path.parent)!r} first."
        raise NotADirectoryError(msg)
    if path.exists() and not overwrite:
        msg = f"{str(path)!r} exists. Choose another `path`{advice}."
        raise FileExistsError(msg)
    if not os.access(path.parent, os.W_OK):
        msg = f"The folder {str(path.parent)!r} cannot be written to. Choose another `path`."
        raise PermissionError(msg)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; then flush that file to disk and rename it, or remove it after an error."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.chmod(0o644)  # temporary files can be read by their owner alone
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def download(url: str, path: Path, advice: str, **how: Any) -> None:
    """Download a file to `path` by `pooch.retrieve`, without its log lines, which are meant for developers.

    If that fails, a `ConnectionError` says what to do, with `advice` on what else would help.
    """
    import pooch

    log = pooch.get_logger()
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pooch.retrieve(url, fname=path.name, path=path.parent, **how)
    except OSError as e:
        msg = (
            f"Could not download {url} ({type(e).__name__}: {e}). Connect to the internet and try again, or put that "
            f"file at {str(path)!r} by hand{advice}."
        )
        raise ConnectionError(msg) from e
    finally:
        log.setLevel(level)
