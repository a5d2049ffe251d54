"""Checkpoints: written whole, with a checksum and the fingerprint of their run; read without running any code."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from stimg._files import written_whole

if TYPE_CHECKING:
    from stimg._train._fingerprint import Fingerprint

MARK = b"stimg checkpoint, sha256 "  # after it, the hash of all that comes before; torch ignores this end of the file
ENTRY = "stimg"


class CheckpointFiles(TorchCheckpointIO):
    """Write Lightning's checkpoints with the fingerprint of their run, and read such files only.

    A run that is not resumed replaces no file but its own.
    """

    def __init__(self, fingerprint: Fingerprint, *, resumed: bool) -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.resumed = resumed
        self.own: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint whole or not at all."""
        path = Path(path)
        content = io.BytesIO()
        torch.save({**checkpoint, ENTRY: self.fingerprint}, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        content.seek(0, io.SEEK_END)
        content.write(MARK + hashlib.sha256(content.getbuffer()).hexdigest().encode())
        with written_whole(path, overwrite=self.resumed or path in self.own) as unfinished:
            unfinished.write_bytes(content.getbuffer())
        self.own.add(path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, tensors onto the CPU; `weights_only` is always true."""
        return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint that `CheckpointFiles` wrote; a `ValueError` says what any other file is."""
    path = Path(path)
    size = path.stat().st_size - len(MARK) - 64
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(max(size, 0))
        mark = file.read()
        if not mark.startswith(MARK):
            raise _not_usable(path, _what_it_is(path, start))
        file.seek(0)
        found = hashlib.sha256()
        while size > 0 and (block := file.read(min(size, 2**24))):
            found.update(block)
            size -= len(block)
    if mark[len(MARK) :] != found.hexdigest().encode():
        raise _not_usable(path, "is damaged: its checksum does not match")
    if start != b"PK\x03\x04":  # torch would read its older formats too
        raise _not_usable(path, "cannot be read (not a zip file)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise _not_usable(path, f"cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict) or not isinstance(content.get(ENTRY), dict):
        raise _not_usable(path, "does not say which run wrote it")
    return content


def _not_usable(path: Path, what: str) -> ValueError:
    return ValueError(f"The checkpoint {str(path)!r} (`resume`) {what}. Pass another one, or train without `resume`.")


def _what_it_is(path: Path, start: bytes) -> str:
    """Say what a file without the mark of a checkpoint is."""
    if not start:
        return "is empty"
    if not start.startswith(b"PK"):
        return "is not a checkpoint: it is text, or of another format"
    if not zipfile.is_zipfile(path):
        return "is damaged: it has been cut short"
    return "is not a checkpoint of this version of stimg: another package or version wrote it, or its end is missing"
