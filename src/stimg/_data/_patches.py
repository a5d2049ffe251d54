"""Lazily cropped windows over one or many slides, as a map-style torch dataset."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from stimg._slide._genes import vocabulary_rows
from stimg._slide._geometry import site_positions
from stimg._slide._windows import count_occupied, crop, window_starts

if TYPE_CHECKING:
    from stimg._slide._slide import Slide

ChannelRule = Literal["variance", "uniform", "top"]


class PatchDataset(Dataset):
    """Fixed `size x size` windows with `n_channels` genes, cropped when asked for.

    Made by :func:`stimg.pp.to_patches`. `dataset[i]` is window `i` of epoch 0; `dataset[epoch, i]` draws the window's
    channels, its jitter and its symmetry anew, always the same for the same seed, epoch and index, in any process.

    Attributes
    ----------
    slides
        The slides as arrays; their genes are all in `genes`.
    genes
        The vocabulary: names of all genes that any slide selected, sorted.
    size, stride, n_channels
        As given to :func:`stimg.pp.to_patches`.
    groups
        Group of each slide, or `None`.
    labels
        Names of the expert labels, as `group/label` where there are groups.
    """

    def __init__(
        self,
        slides: list[Slide],
        *,
        size: int,
        stride: int,
        n_channels: int,
        min_tissue: float,
        channel_rule: ChannelRule = "variance",
        augment: bool = True,
        scaling: str = "zscore",
        target_sum: float = 1e4,
        seed: int = 0,
        groups: list[str] | None = None,
        genes: np.ndarray | None = None,
        grids: list[np.ndarray] | None = None,
    ) -> None:
        self.slides = slides
        self.size = size
        self.stride = stride
        self.n_channels = n_channels
        self.min_tissue = min_tissue
        self.channel_rule = channel_rule
        self.augment = augment
        self.scaling = scaling
        self.target_sum = target_sum
        self.seed = seed
        self.groups = groups
        self.genes = np.unique(np.concatenate([s.genes for s in slides])) if genes is None else genes
        self.grids = [s.grid for s in slides] if grids is None else grids
        self._positions = [s.positions() for s in slides]
        self.labels, self._label_of_site, self._choice = self._index_labels()
        self._vocabulary = [np.searchsorted(self.genes, s.genes) for s in slides]
        corners = [self._corners(grid) for grid in self.grids]
        self._windows = np.concatenate(
            [np.column_stack([np.full(len(c), k, np.int32), c]) for k, c in enumerate(corners)]
        )

    def _index_labels(self) -> tuple[list[str], list[np.ndarray], np.ndarray]:
        """Names of all labels as `group/label`, every site's label (-1: none), and each slide's choice of labels.

        Labels of one group compete with one another, and with no others.
        """
        groups = [""] * len(self.slides) if self.groups is None else self.groups
        named = []
        for group, slide in zip(groups, self.slides, strict=True):
            labels = np.full(slide.n_sites, "") if slide.labels is None else slide.labels
            named.append(np.where(labels == "", "", np.char.add(f"{group}/" if group else "", labels)))
        names = [name for name in np.unique(np.concatenate(named)).tolist() if name]
        of_site = [pd.Index(names).get_indexer(pd.Index(labels)) for labels in named]
        choice = np.zeros((len(self.slides), len(names)), dtype=bool)
        for k, group in enumerate(groups):
            for other, index in zip(groups, of_site, strict=True):
                if other == group:
                    choice[k, index[index >= 0]] = True
        return names, of_site, choice

    def _corners(self, grid: np.ndarray) -> np.ndarray:
        if self.size == 1:
            return np.argwhere(grid >= 0).astype(np.int32)
        corners = window_starts(grid, self.size, self.stride)
        return corners[count_occupied(grid, corners, self.size) >= max(1, self.min_tissue * self.size**2)]

    def check_covered(self) -> None:
        """Refuse slides without a window of enough tissue."""
        for k in sorted(set(range(len(self.slides))) - set(self._windows[:, 0].tolist())):
            slide = self.slides[k]
            msg = (
                f"Slide {slide.name!r} ({slide.n_sites} occupied sites on a {slide.grid.shape[0]} x "
                f"{slide.grid.shape[1]} lattice) has no {self.size} x {self.size} patch with at least "
                f"{self.min_tissue:.0%} tissue. Choose a smaller `size` or `min_tissue`."
            )
            raise ValueError(msg)

    def __len__(self) -> int:
        return len(self._windows)

    def __repr__(self) -> str:
        kinds = sorted({s.kind for s in self.slides})
        return (
            f"PatchDataset: {len(self)} patches of {self.size} x {self.size} sites with {self.n_channels} of "
            f"{len(self.genes)} genes, from {len(self.slides)} slides ({', '.join(kinds)} lattice)"
        )

    def window(self, index: int) -> tuple[int, int, int]:
        """Slide, row and column of a window's top-left site (before jitter)."""
        slide, row, col = self._windows[index]
        return int(slide), int(row), int(col)

    def draw_weights(self) -> np.ndarray | None:
        """Probability of each window in training, float64 (len(self),), or `None` where all are drawn alike.

        Every group weighs the same, in a group every slide, in a slide every window.
        """
        if self.groups is None:
            return None
        counts = np.bincount(self._windows[:, 0], minlength=len(self.slides))
        groups, of_slide = np.unique(self.groups, return_inverse=True)
        members = np.bincount(of_slide[counts > 0], minlength=len(groups))
        weights = 1 / (np.maximum(members, 1)[of_slide] * np.maximum(counts, 1))[self._windows[:, 0]]
        return weights / weights.sum()

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """Crop one window.

        Returns
        -------
        dict
            `expression` float32 (sites, channels), zero at empty sites and padding; `genes` int64 (channels,), rows
            of `genes`; `channel_mask` bool (channels,); `present` bool (sites,); `positions` float32 (sites, 2),
            true x and y in units of the pitch. Where slides have labels also `labels` int64 (sites,), -1 for none,
            and `choice` bool (len(self.labels),): the labels of the slide's group.
        """
        epoch, index = index if isinstance(index, tuple) else (0, index)
        if not -len(self) <= index < len(self):
            msg = f"Patch {index} asked for, but the dataset has {len(self)}."
            raise IndexError(msg)
        index %= len(self)
        rng = np.random.default_rng([self.seed, epoch, index])
        k, row, col = self.window(index)
        slide, grid = self.slides[k], self.grids[k]
        if self.augment and self.size > 1:
            shift = rng.integers(-(self.stride // 2), self.stride // 2 + 1, size=2)
            moved = (row + int(shift[0]), col + int(shift[1]))
            if (crop(grid, moved, self.size) >= 0).sum() >= max(1, self.min_tissue * self.size**2):
                row, col = moved
        window = crop(grid, (row, col), self.size)
        positions = self._window_positions(k, row, col)
        if self.augment:
            window, positions = self._symmetry(window, positions, slide.kind, rng)
        columns = self._draw_channels(slide, rng)
        sites = window.ravel()
        present = sites >= 0
        values = np.zeros((self.size**2, self.n_channels), dtype=np.float32)
        dense = slide.expression[sites[present]].toarray()[:, columns]
        values[present, : len(columns)] = slide.standardise(dense, columns) if self.scaling == "zscore" else dense
        genes = np.zeros(self.n_channels, dtype=np.int64)
        genes[: len(columns)] = self._vocabulary[k][columns]
        item = {
            "expression": torch.from_numpy(values),
            "genes": torch.from_numpy(genes),
            "channel_mask": torch.arange(self.n_channels) < len(columns),
            "present": torch.from_numpy(present),
            "positions": torch.from_numpy(np.ascontiguousarray(positions.reshape(-1, 2), dtype=np.float32)),
        }
        if self.labels:
            item["labels"] = torch.from_numpy(np.where(present, self._label_of_site[k][sites], -1))
            item["choice"] = torch.from_numpy(self._choice[k])
        return item

    def _window_positions(self, k: int, row: int, col: int) -> np.ndarray:
        """Return true positions (size, size, 2) of a window's sites, occupied or not, from its top-left corner."""
        slide = self.slides[k]
        rows, cols = np.mgrid[row : row + self.size, col : col + self.size]
        places = site_positions(np.column_stack([rows.ravel(), cols.ravel()]), slide.kind, slide.parity)
        return (places - [col, places[0, 1]]).reshape(self.size, self.size, 2).astype(np.float32)

    @staticmethod
    def _symmetry(
        window: np.ndarray, positions: np.ndarray, kind: str, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw a symmetry of the lattice: flips, and on square lattices quarter turns, in true coordinates."""
        flip_x, flip_y, turn = rng.integers(2, size=3)
        if flip_x:
            window, positions = window[:, ::-1], positions[:, ::-1] * [-1, 1]
        if flip_y:
            window, positions = window[::-1], positions[::-1] * [1, -1]
        if turn and kind != "hex":
            window, positions = window.T, positions.transpose(1, 0, 2)[..., ::-1]
        return window, positions - positions.reshape(-1, 2).min(0)

    def _draw_channels(self, slide: Slide, rng: np.random.Generator) -> np.ndarray:
        """Columns of `slide.genes`: at most `n_channels`, without replacement, by the channel rule."""
        candidates = np.flatnonzero((slide.weights > 0) & (slide.std > 0))
        if len(candidates) <= self.n_channels:
            return candidates
        weights = slide.weights[candidates]
        if self.channel_rule == "top":
            return candidates[np.argsort(-weights, kind="stable")[: self.n_channels]]
        noise = np.log(-np.log(rng.random(len(candidates))))
        scores = noise if self.channel_rule == "uniform" else noise - np.log(weights)
        return candidates[np.argpartition(scores, self.n_channels)[: self.n_channels]]

    def _restrict(self, **changes: object) -> PatchDataset:
        names = "slides size stride n_channels min_tissue channel_rule augment"
        names += " scaling target_sum seed groups genes grids"
        return PatchDataset(**({name: getattr(self, name) for name in names.split()} | changes))  # type: ignore[arg-type]

    def with_scaling(self, scaling: str) -> PatchDataset:
        """Return the same windows with `"zscore"` or `"log"` values."""
        return self._restrict(scaling=scaling)

    def with_vocabulary(self, genes: np.ndarray) -> PatchDataset:
        """Return the same windows with the vocabulary `genes`, widened by those of the slides that are not in it."""
        slides = []
        for slide in self.slides:
            rows = vocabulary_rows(slide.genes, genes)
            slides.append(replace(slide, genes=np.where(rows >= 0, genes[rows], slide.genes)))
        return self._restrict(slides=slides, genes=np.unique(np.concatenate([genes, *(s.genes for s in slides)])))

    def with_unit(self, unit: str) -> PatchDataset:
        """Return the same sites as `"patch"` windows, one window a `"spot"`, or one window a whole `"slide"`."""
        if unit == "spot":
            return self._restrict(size=1, stride=1, min_tissue=0.0)
        if unit == "slide":
            side = max(max(grid.shape) for grid in self.grids)
            return self._restrict(size=side, stride=1, min_tissue=0.0)
        return self

    def split(self, fraction: float) -> tuple[PatchDataset, PatchDataset | None]:
        """Hold out whole windows for validation: no site is in both parts.

        Parameters
        ----------
        fraction
            Share of each slide's non-overlapping windows that is held out; at least one where a slide has four.

        Returns
        -------
        tuple
            Training part, and validation part without augmentation (`None` where no slide is large enough).
        """
        rng = np.random.default_rng([self.seed, 1])
        train, held = [], []
        for grid in self.grids:
            corners = window_starts(grid, self.size, self.size)
            corners = corners[count_occupied(grid, corners, self.size) >= max(1, self.min_tissue * self.size**2)]
            take = 0 if fraction == 0 or len(corners) < 4 else max(1, round(fraction * len(corners)))
            mask = np.zeros(grid.shape, dtype=bool)
            for row, col in corners[rng.permutation(len(corners))[:take]]:
                mask[row : row + self.size, col : col + self.size] = True
            train.append(np.where(mask, -1, grid))
            held.append(np.where(mask, grid, -1))
        validation = self._restrict(grids=held, augment=False, stride=self.size)
        part = self._restrict(grids=train)
        return (part, validation) if len(validation) and len(part) else (self, None)
