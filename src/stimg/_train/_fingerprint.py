"""What a training run was told, in a form that its checkpoints keep and a resumed run compares with its own."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from stimg import __version__
from stimg._data import PatchDataset
from stimg._image._crops import read_crop

if TYPE_CHECKING:
    from stimg._data import ImagePatchDataset
    from stimg._data._image_patches import ImageSlide
    from stimg._slide._slide import Slide
    from stimg.nn import AlignConfig, Config, DenseConfig

Fingerprint = dict[str, Any]  # by name: texts and numbers that must be equal, and tensors that must be close
AT_ONCE = 2**22
TOLERANCE = 1e-5  # logarithms differ in their last digits from processor to processor
SEEN_SPOTS = 16
SEEN_PIXELS = 64


def fingerprint(
    patches: PatchDataset | ImagePatchDataset, config: Config | DenseConfig | AlignConfig, **more: Any
) -> Fingerprint:
    """Describe the configuration, the patches and their slides, and `more`: numbers, texts, models and encoders."""
    found: Fingerprint = {"stimg version": __version__}
    found |= {f"{type(config).__name__}.{name}": _plain(value) for name, value in config.to_dict().items()}
    found |= {name: _identity(value) for name, value in more.items()}
    for field in fields(patches):
        if isinstance(value := _plain(getattr(patches, field.name)), str | int | float):
            found[f"patches.{field.name}"] = value
    found["number of patches"] = len(patches)
    found["genes"] = digest(patches.genes)
    found["number of slides"] = len(patches.slides)
    if isinstance(patches, PatchDataset):
        found["groups"] = _plain(patches.groups)
        parts = [_of_slide(slide) for slide in patches.slides]
    else:
        found["spatial_model"] = _identity(patches.spatial_model)
        parts = [_of_image_slide(slide, patches.mpp) for slide in patches.slides]
    names = [str(slide.name) for slide in patches.slides]
    for i, (name, part) in enumerate(zip(names, parts, strict=True)):
        found[f"name of slide {i}"] = name
        found |= {f"{what} of slide {i} ({name})": value for what, value in part.items()}
    return found


def differences(before: Fingerprint, now: Fingerprint) -> list[str]:
    """List what differs between two fingerprints, with both values if they can be read."""
    found = []
    for name in dict.fromkeys([*now, *before]):
        old, new = before.get(name, "none"), now.get(name, "none")
        if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
            if old.shape != new.shape or not torch.allclose(old, new, TOLERANCE, TOLERANCE, equal_nan=True):
                found.append(name)
        elif isinstance(old, torch.Tensor) or isinstance(new, torch.Tensor):
            found.append(name)
        elif old != new:
            found.append(f"{name} ({old!r} in the checkpoint, {new!r} now)")
    return found


def digest(*arrays: Any) -> str:
    """Return a hash of the values and shapes of arrays, whatever the width of their integers and floats."""
    found = hashlib.blake2b(digest_size=12)
    for array in arrays:
        kind = {"b": np.int64, "i": np.int64, "u": np.int64, "f": np.float64}.get(array.dtype.kind)
        found.update(str(array.shape).encode())
        flat = array.reshape(-1)
        for start in range(0, len(flat), AT_ONCE):
            part = flat[start : start + AT_ONCE]
            text = kind is None
            found.update("\n".join(part.tolist()).encode() if text else np.ascontiguousarray(part, kind).data)
    return found.hexdigest()


def _of_slide(slide: Slide) -> Fingerprint:
    places = [slide.sites, slide.obs_site] + ([] if slide.labels is None else [slide.labels])
    values = np.concatenate([slide.weights, slide.mean, slide.std])
    return {
        "genes": digest(slide.genes),
        "sites and labels": f"{slide.kind} {slide.parity} {digest(*places)}",
        "expressed genes": digest(slide.expression.indptr, slide.expression.indices),
        "expression": torch.from_numpy(values.astype(np.float64)),
    }


def _of_image_slide(slide: ImageSlide, mpp: float) -> Fingerprint:
    some = np.unique(np.linspace(0, len(slide.centres) - 1, SEEN_SPOTS).astype(int))
    corners = slide.centres[some] - SEEN_PIXELS / 2 * mpp
    crops = [read_crop(slide.image, corner, SEEN_PIXELS, mpp, stain_normalise=False) for corner in corners]
    found: Fingerprint = {
        "counts": digest(slide.counts.indptr, slide.counts.indices, slide.counts.data, slide.totals, slide.obs_index),
        "centres": torch.from_numpy(np.append(slide.centres.ravel(), [slide.diameter_um, slide.image.mpp])),
        "image": torch.stack([crop.double().mean((1, 2)) / 255 for crop in crops]),
        "size of the image": [int(side) for side in slide.image.shape],
    }
    if slide.embedding is not None:
        found["embedding"] = torch.from_numpy(slide.embedding.astype(np.float64).mean(0))
    if slide.surroundings is not None:
        found["surroundings"] = digest(slide.surroundings.windows)
        found["tokens"] = torch.from_numpy(slide.surroundings.tokens.astype(np.float64).mean(0))
    return found


def _plain(value: Any) -> Any:
    """Return a value as a checkpoint gives it back: tuples as lists, numbers of numpy as those of Python."""
    value = value.item() if isinstance(value, np.generic) else value
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def _identity(value: Any) -> Any:
    """Return a number or text as it is, and a hash of the weights of a model, a network or an encoder."""
    if value is None or isinstance(value, str | int | float | np.generic):
        return _plain(value)
    network = getattr(value, "network", value)
    if not isinstance(network, nn.Module):
        return type(value).__name__
    weights = [tensor.detach().float().cpu().numpy() for tensor in network.state_dict().values()]
    return f"{type(value).__name__} {digest(*weights)}"
