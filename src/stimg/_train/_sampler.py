"""The order in which a training set is visited."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np


class EpochSampler(Sampler[tuple[int, int]]):
    """Shuffled (visit, index) pairs, so that every worker process crops the same windows in the same epoch.

    An epoch visits every window `repeats` times, each time with other channels, jitter and symmetry; with `weights`, it
    draws as many windows at random with these probabilities. Lightning calls `set_epoch` at the start of each epoch,
    even after a resume. Each of n processes takes every n-th pair, so that their batches together are the batch of a
    single process.
    """

    def __init__(self, length: int, seed: int, repeats: int = 1, weights: np.ndarray | None = None) -> None:
        self.length = length
        self.weights = None if weights is None else torch.from_numpy(weights)
        self.repeats = repeats
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose windows come next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        total = self.length * self.repeats
        rank, processes = _place()
        mine = slice(rank, len(self) * processes, processes)
        if self.weights is not None:
            drawn = torch.multinomial(self.weights, total, replacement=True, generator=generator).tolist()
            return ((self.epoch * total + i, drawn[i]) for i in range(total)[mine])
        first = self.epoch * self.repeats
        order = torch.randperm(total, generator=generator).tolist()
        return ((first + i // self.length, i % self.length) for i in order[mine])

    def __len__(self) -> int:
        return self.length * self.repeats // _place()[1]


def _place() -> tuple[int, int]:
    """Return the rank of this process among those that train together, and their number."""
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if running else (0, 1)
