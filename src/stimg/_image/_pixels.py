"""Pixels of any kind as bytes of red, green and blue on a white background."""

from __future__ import annotations

from typing import Any

import numpy as np

WHITE = 255
OVERSHOOT = 0.002  # half a step of 8 bits: what resampling leaves beyond 0 and 1


def is_uint16(dtype: Any) -> bool:
    """Tell whether pixels are unsigned integers of 16 bits, in either byte order."""
    dtype = np.dtype(dtype)
    return dtype.kind == "u" and dtype.itemsize == 2


def as_bytes(part: np.ndarray) -> np.ndarray:
    """Convert uint8, uint16 (over 257) or floats in [0, 1] (times 255; NaN is white) to uint8."""
    if is_uint16(part.dtype):
        return (part // 257).astype(np.uint8)
    if part.dtype.kind == "f":
        part = np.where(np.isnan(part), 1, part)
        low, high = (part.min(), part.max()) if part.size else (0, 1)
        if low < -OVERSHOOT or high > 1 + OVERSHOOT:
            cure = "Divide the image by 255." if low >= 0 and 2 < high <= WHITE else "Rescale the image."
            msg = f"Expected floating-point pixels in [0, 1], found {low:g} to {high:g}. {cure}"
            raise ValueError(msg)
        return np.rint(np.clip(part, 0, 1) * 255).astype(np.uint8)
    return part


def on_white(colours: np.ndarray, alpha: np.ndarray, *, premultiplied: bool = False) -> np.ndarray:
    """Lay uint8 colours (h, w, c) on white; `premultiplied` colours were multiplied by alpha (h, w, 1) before."""
    if (alpha == WHITE).all():  # as nearly always
        return colours
    share = alpha.astype(np.float32) / 255
    shown = colours if premultiplied else colours * share
    return np.rint(np.minimum(shown + WHITE * (1 - share), WHITE)).astype(np.uint8)


def as_rgb(part: np.ndarray) -> np.ndarray:
    """Convert pixels (h, w) or (h, w, 1, 3 or 4) to uint8 (h, w, 3): grey repeated, a fourth channel taken as alpha."""
    part = as_bytes(part[..., None] if part.ndim == 2 else part)
    if part.shape[2] == 4:
        part = on_white(part[..., :3], part[..., 3:])
    return np.broadcast_to(part, (*part.shape[:2], 3))
