"""Weights files with other contents than `save` writes, and a checksum that is right."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from safetensors.torch import load_file, save_file

from stimg.models._weights_file import _checksum


def unpacked(weights: Path) -> tuple[dict, dict]:
    """Return a file's tensors and metadata."""
    with weights.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        content = json.loads(json.loads(file.read(size))["__metadata__"]["stimg"])
    content.pop("sha256")
    return load_file(weights), content


def hostile(weights: Path, **changes) -> None:
    """Write the file anew with other metadata or tensors and a checksum that is right."""
    tensors, content = unpacked(weights)
    for name, value in changes.pop("tensors", {}).items():
        tensors[name] = value(tensors.get(name))
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name, value in changes.items():
        merged = isinstance(value, dict) and isinstance(content[name], dict)
        content[name] = {**content[name], **value} if merged else value
    content["sha256"] = _checksum(content, tensors)
    save_file(tensors, weights, metadata={"stimg": json.dumps(content)})
