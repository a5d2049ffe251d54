"""Threads of BLAS and OpenMP, which on small problems spend more time waiting for each other than working."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TURNS = threading.RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run BLAS and OpenMP on one thread. The limit holds for the whole process, so callers take turns."""
    from threadpoolctl import threadpool_limits

    with TURNS, threadpool_limits(1):
        yield


@contextmanager
def threads_apart() -> Iterator[int]:
    """Yield the number of torch's threads, and let each of as many tasks side by side compute on a single one.

    Threads that share one operation spin while they wait for the slowest, which beside another busy process takes many
    times as long.
    """
    import torch

    number = torch.get_num_threads()
    torch.set_num_threads(1)  # also holds for threads that start later
    try:
        yield number
    finally:
        torch.set_num_threads(number)
