"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

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
