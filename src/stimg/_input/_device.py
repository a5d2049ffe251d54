"""The device that torch computes on, and its seed, for training and for use alike."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from stimg._settings import DEVICES, settings

if TYPE_CHECKING:
    from collections.abc import Iterator


def resolve_device(device: str, *, here: bool = True) -> str:
    """Return `"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"`; a `ValueError` if this machine does not have that device.

    `"auto"` means `stimg.settings.device` or, if that is `"auto"` too, the accelerator of this machine. For another
    machine (`here=False`) only the name is checked, and `"auto"` means the CPU.
    """
    import torch

    _survive_forks()
    name = device.strip().lower() if isinstance(device, str) else ""
    if not DEVICES.fullmatch(name):
        msg = f"Expected `device` to be 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps', found {device!r}."
        raise ValueError(msg)
    if not here:
        return "cpu" if name == "auto" else name
    name = settings.device if name == "auto" else name
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if n_cuda else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda" and int(number or 0) >= n_cuda:
        msg = (
            f"Expected a machine with the GPU `device={name!r}`, found {n_cuda} CUDA devices. Pass `device='cpu'` or "
            "`'auto'`, or install a torch built for CUDA."
        )
        raise ValueError(msg)
    if kind == "mps" and not torch.backends.mps.is_available():
        msg = "Expected a Mac whose GPU torch can use for `device='mps'`, found none. Pass `device='cpu'` or `'auto'`."
        raise ValueError(msg)
    return name


@cache
def _survive_forks() -> None:
    """Give processes forked from now on one thread: they would wait for the threads of their parent for ever."""
    import torch

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Draw torch's random numbers on this device from `seed`, and leave the user's own random states as they were."""
    import torch

    kind = device.partition(":")[0]
    of_mps = torch.mps.get_rng_state() if kind == "mps" else None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if kind == "cuda" else []):
        set_seed(seed, kind)
        try:
            yield
        finally:
            if of_mps is not None:
                torch.mps.set_rng_state(of_mps)


def set_seed(seed: int, kind: str) -> None:
    """Seed torch's random numbers on the CPU and, if the kind of device is another, on all devices."""
    import torch

    if kind == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
