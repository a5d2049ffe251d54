"""One `.safetensors` file with weights and all that is needed to use them again."""

from __future__ import annotations

import hashlib
import json
import reprlib
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from stimg._files import check_new_path, written_whole
from stimg.models._content import most_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

FORMAT = 1
METADATA_KEY = "stimg"
CHECKSUM_KEY = "sha256"
LONGEST_HEADER = 2**24  # bytes
DTYPES = ("F16", "F32")
FOREIGN_TENSORS = "encoder.network."  # of an encoder that does not come with stimg
FIRST_KIND = "patches"  # files of this kind do not name it
KINDS = {
    "patches": "weights of `stimg.tl.pretrain`, read by `stimg.models.Model.load`",
    "expression": "weights of `stimg.tl.train_expression`, read by `stimg.models.ExpressionModel.load`",
    "alignment": "weights of `stimg.tl.align`, read by `stimg.models.AlignmentModel.load`",
}


def write_weights(
    path: str | Path, kind: str, content: dict[str, Any], tensors: Mapping[str, Tensor], *, overwrite: bool, half: bool
) -> str:
    """Write a file whole or not at all; return its sha256."""
    path = Path(path)
    check_new_path(path, overwrite=overwrite, advice=" or pass `overwrite=True`")
    dtype = torch.float16 if half else torch.float32
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    if bad := not_finite(stored):
        advice = ", perhaps as they are too large for float16 (`half`)" if half else ""
        msg = f"Cannot save the model: it has NaN or infinite weights in {bad[:3]}{advice}."
        raise ValueError(msg)
    content = {"format": FORMAT, **({} if kind == FIRST_KIND else {"kind": kind}), **content}
    text = json.dumps({**content, CHECKSUM_KEY: _checksum(content, stored)})
    data = serialise(stored, metadata={METADATA_KEY: text})
    if (length := struct.unpack("<Q", data[:8])[0]) > LONGEST_HEADER:
        msg = f"Cannot save the model: card, genes and history take {length:,} bytes, of {LONGEST_HEADER:,} allowed."
        raise ValueError(msg)
    with written_whole(path, overwrite=overwrite) as unfinished:
        unfinished.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def damaged(path: str | Path, what: str) -> ValueError:
    """Return the error that says what is wrong with a damaged file."""
    return ValueError(f"{str(path)!r} is damaged: {what}. Copy or download it again.")


def read_content(path: str | Path, kind: str) -> tuple[dict[str, Any], list[str]]:
    """Return a file's metadata, checked, and the names of its tensors; no pickle is read and no code is run."""
    path = Path(path)
    if not path.is_file():
        msg = f"No weights file at {str(path)!r}. Give the path of a file that `save` wrote."
        raise FileNotFoundError(msg)
    with path.open("rb") as start:
        length = int.from_bytes(start.read(8), "little")
    if LONGEST_HEADER < length < path.stat().st_size:
        raise damaged(path, f"its header has {length:,} bytes, expected at most {LONGEST_HEADER:,}")
    with _opened(path) as file:
        content = _parse_metadata(path, file.metadata() or {})
        names = list(file.keys())
    if most_layers(content["config"]) > len(names):
        raise damaged(path, "its configuration has more layers than the file has tensors")
    found = content.get("kind", FIRST_KIND)
    if found != kind:
        known = KINDS.get(found) if isinstance(found, str) else None
        msg = f"Expected {KINDS[kind]}, found {known or reprlib.repr(found)} in {str(path)!r}."
        raise ValueError(msg)
    return content, names


def read_tensors(path: str | Path, expected: dict[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], str]:
    """Check the tensors' names and shapes, then return them as float32, and the file's sha256."""
    path = Path(path)
    with _opened(path) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        if found != expected:
            missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
            wrong = [name for name, shape in expected.items() if found.get(name, shape) != shape]
            what = f"missing {missing[:3]}, unexpected {unexpected[:3]}, wrong shape {wrong[:3]}"
            raise damaged(path, f"its tensors do not fit its configuration ({what})")
        other = {name: file.get_slice(name).get_dtype() for name in expected}
        if other := {name: dtype for name, dtype in other.items() if dtype not in DTYPES}:
            raise damaged(path, f"its tensors are not of the types {DTYPES}, but {reprlib.repr(other)}")
        stored = {name: file.get_tensor(name) for name in expected}
        content = json.loads(file.metadata()[METADATA_KEY])
    written = content.pop(CHECKSUM_KEY, None)  # files of the first releases have none
    if written is not None and written != _checksum(content, stored):
        raise damaged(path, "its checksum does not match")
    if bad := not_finite(stored):
        raise damaged(path, f"it has NaN or infinite weights in {bad[:3]}")
    return {name: tensor.float() for name, tensor in stored.items()}, hashlib.sha256(path.read_bytes()).hexdigest()


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors with NaN or infinite values; other people's encoders may hold infinities, as in masks."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.isnan().any() or (tensor.isinf().any() and not name.startswith(FOREIGN_TENSORS))
    ]


def _checksum(content: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of the metadata and of all tensors with their names."""
    found = hashlib.sha256(json.dumps(content).encode())
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].numpy().tobytes())
    return found.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        msg = f"{str(path)!r} is truncated or not a safetensors file ({error}). Copy or download it again."
        raise ValueError(msg) from error


def _parse_metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Decode and check the model's own entry in the file's metadata."""
    if METADATA_KEY not in metadata:
        msg = f"{str(path)!r} is a safetensors file but not a stimg model: its metadata have no {METADATA_KEY!r} entry."
        raise ValueError(msg)
    try:
        content = json.loads(metadata[METADATA_KEY])
        version = content["format"]
        if type(version) is not int or version < 1:
            msg = f"'format' is {reprlib.repr(version)}"
            raise ValueError(msg)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, f"its {METADATA_KEY!r} metadata cannot be read ({_named(error)})") from error
    if version > FORMAT:
        msg = f"{str(path)!r} has format {version}, but this stimg reads formats up to {FORMAT}. Update stimg."
        raise ValueError(msg)
    if missing := {"config", "genes", "card", "history"} - set(content):
        raise damaged(path, f"its metadata lack {sorted(missing)}")
    return content


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turn the errors that damaged metadata cause into one that names the file."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError) as error:
        what = str(error) if str(error).startswith("its ") else f"its metadata cannot be used ({_named(error)})"
        raise damaged(path, what) from error


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:500]}"
