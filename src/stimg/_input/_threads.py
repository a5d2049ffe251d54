"""Threads of BLAS and OpenMP, which wait for each other more than they work where problems are small."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TURNS = threading.RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run BLAS and OpenMP on one thread. The limit is that of the whole process, so that callers take turns."""
    from threadpoolctl import threadpool_limits

    with TURNS, threadpool_limits(1):
        yield


@contextmanager
def threads_apart() -> Iterator[int]:
    """Give the number of torch's threads, for as many tasks side by side, each of which computes on one alone.

    Threads that share one operation spin while they wait for the slowest: beside another busy process that takes many
    times as long.
    """
    import torch

    number = torch.get_num_threads()
    torch.set_num_threads(1)  # also that of threads which start from now on
    try:
        yield number
    finally:
        torch.set_num_threads(number)
