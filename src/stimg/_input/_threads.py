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
