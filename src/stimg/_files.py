"""Files that are written whole or not at all."""

from __future__ import annotations

import functools
import glob
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOCK = ".stimg-lock"  # in each folder of unfinished work; held as long as the process that made the folder lives


def check_new_path(path: Path, *, overwrite: bool = False, advice: str = "") -> None:
    """Refuse a path whose folder does not exist or is read-only, and a path where there is something already.

    With `overwrite`, only a folder is refused. For a symbolic link, this is about the place to which it points.
    """
    try:
        target = Path(os.path.realpath(path))
        target.exists()
    except (OSError, ValueError) as e:  # too long, a null character
        msg = f"Expected `path` to be the name of a file, found {str(path)!r} ({e}). Choose another `path`."
        raise ValueError(msg) from e
    if target.is_symlink():
        msg = f"{str(path)!r} is a symbolic link that leads back to itself. Remove it, or choose another `path`."
        raise FileExistsError(msg)
    if not target.parent.is_dir():
        msg = f"Expected `path` in an existing folder, found {str(path)!r}. Create {str(target.parent)!r} first."
        raise NotADirectoryError(msg)
    if target.is_dir():
        msg = f"Expected `path` to be a file, found the folder {str(path)!r}. Choose another `path`."
        raise (IsADirectoryError if overwrite else FileExistsError)(msg)
    if target.exists() and not overwrite:
        msg = f"{str(path)!r} exists. Choose another `path`{advice}."
        raise FileExistsError(msg)
    if not os.access(target.parent, os.W_OK):
        msg = f"The folder {str(target.parent)!r} cannot be written to. Choose another `path`."
        raise PermissionError(msg)


@contextmanager
def written_whole(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a name for a new file or folder, which then comes to lie at `path`, or is removed after an error.

    A file replaces one that is there, whose mode it takes on; a symbolic link stays, and what it points to is replaced.
    Without `overwrite`, and for folders, `FileExistsError` says that something is there: of several processes that
    write to one path at once, a single one succeeds. A full disk is an `OSError` that names the path.
    """
    target = Path(os.path.realpath(path))
    unfinished, remove = claim_folder(target.parent, f".{target.name[:50]}.")
    try:
        yield unfinished / target.name
        _put_in_place(unfinished / target.name, target, overwrite=overwrite)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        remove()


def _put_in_place(unfinished: Path, target: Path, *, overwrite: bool) -> None:
    try:
        if unfinished.is_dir():
            unfinished.rename(target)  # an error if there is a file, or a folder with something in it
            return
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        if overwrite:
            with suppress(FileNotFoundError):
                unfinished.chmod(stat.S_IMODE(target.stat().st_mode))
            unfinished.replace(target)
            return
        try:
            os.link(unfinished, target)
        except FileExistsError:
            raise
        except OSError:  # no hard links on this disk: take the name first
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            unfinished.replace(target)
    except OSError as error:
        if not isinstance(error, FileExistsError) and not (unfinished.is_dir() and target.exists()):
            raise
        msg = f"{str(target)!r} has been written by another process meanwhile. Choose another path."
        raise FileExistsError(msg) from error


class _OwnLock(FileLock):
    """A lock of this process, which its forked children do not give up."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), thread_local=False)  # the garbage collector releases it in any thread
        self.owner = os.getpid()

    def release(self, force: bool = False) -> None:
        if os.getpid() == self.owner:
            super().release(force=force)


def claim_folder(parent: Path, prefix: str) -> tuple[Path, Callable[[], None]]:
    """Make a folder for unfinished work, and return it with the function that removes it.

    Folders with that prefix that processes left when they were killed are removed first. A folder belongs to the
    process that made it: a forked child does not remove it.
    """
    for left in parent.glob(f"{glob.escape(prefix)}*/{LOCK}"):
        if (lock := _taken(left)) is not None:
            _remove(left.parent, lock)
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        lock = _taken(folder / LOCK, or_unknown=True)
        if lock is not None and folder.is_dir():
            return folder, functools.partial(_remove, folder, lock)


def _taken(path: Path, *, or_unknown: bool = False) -> _OwnLock | None:
    """Return the lock if no other process holds it; or, on a disk without locks, also one that is not known to be."""
    lock = _OwnLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except (NotImplementedError, OSError):
        return lock if or_unknown else None
    return lock


def _remove(folder: Path, lock: _OwnLock) -> None:
    if os.getpid() == lock.owner:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)  # on Windows, a file that is locked cannot be removed
