"""One `.safetensors` file with weights and all that is needed to use them again."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from stimg._files import check_new_path, written_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

FORMAT = 1
METADATA_KEY = "stimg"
CHECKSUM_KEY = "sha256"
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
    content = {"format": FORMAT, **({} if kind == FIRST_KIND else {"kind": kind}), **content}
    text = json.dumps({**content, CHECKSUM_KEY: _checksum(content, stored)})
    data = serialise(stored, metadata={METADATA_KEY: text})
    with written_whole(path) as unfinished:
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
    with _opened(path) as file:
        content = _parse_metadata(path, file.metadata() or {})
        names = list(file.keys())
    config = content["config"] if isinstance(content["config"], dict) else {}
    nested = config["spatial"] if isinstance(config.get("spatial"), dict) else {}
    layers = [value for name, value in (*config.items(), *nested.items()) if name.endswith("layers")]
    if any(isinstance(value, int) and value > len(names) for value in layers):
        raise damaged(path, "its configuration has more layers than the file has tensors")
    found = content.get("kind", FIRST_KIND)
    if found != kind:
        msg = f"Expected {KINDS[kind]}, found {KINDS.get(found, repr(found))} in {str(path)!r}."
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
        stored = {name: file.get_tensor(name) for name in expected}
        content = json.loads(file.metadata()[METADATA_KEY])
    written = content.pop(CHECKSUM_KEY, None)  # files of the first releases have none
    if written is not None and written != _checksum(content, stored):
        raise damaged(path, "its checksum does not match")
    return {name: tensor.float() for name, tensor in stored.items()}, hashlib.sha256(path.read_bytes()).hexdigest()


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
        version = int(content["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"its {METADATA_KEY!r} metadata cannot be read ({error})") from error
    if version > FORMAT:
        msg = f"{str(path)!r} has format {version}, but this stimg reads formats up to {FORMAT}. Update stimg."
        raise ValueError(msg)
    if missing := {"config", "genes", "card", "history"} - set(content):
        raise damaged(path, f"its metadata lack {sorted(missing)}")
    if not isinstance(content["card"], dict) or not isinstance(content["card"].get("labels", []), list):
        raise damaged(path, "its card cannot be read")
    return content


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turn the errors that a damaged configuration, card or history causes into one that says so."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise damaged(path, f"its metadata cannot be used ({type(error).__name__}: {error})") from error


def check_card(path: str | Path, card: dict[str, Any], expected: dict[str, type]) -> None:
    """Refuse a card without the fields that a model needs, with other types, or with numbers that are not positive."""
    for name, kind in expected.items():
        value = card.get(name)
        if not isinstance(value, kind) or (kind in (int, float) and not 0 < value < np.inf):  # type: ignore[operator]
            raise damaged(path, f"its card has {value!r} as {name!r}")


def check_vocabulary(path: str | Path, content: dict[str, Any]) -> np.ndarray:
    """Return the genes in a file's metadata, str (n_genes,); refuse an empty vocabulary, or one with a gene twice."""
    names = content["genes"]
    if not isinstance(names, list) or not names or not all(isinstance(gene, str) for gene in names):
        raise damaged(path, "its vocabulary cannot be read")
    genes = np.asarray(names, dtype=str)
    if len(np.unique(genes)) < len(genes):
        raise damaged(path, "its vocabulary has a gene twice")
    return genes
