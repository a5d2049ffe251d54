"""Windows of one or many slides, cropped on demand, as a map-style torch dataset."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
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


@dataclass(eq=False, repr=False)
class PatchDataset(Dataset[dict[str, torch.Tensor]]):
    """Windows of `size x size` sites with `n_channels` genes, cropped when they are needed.

    Made by :func:`stimg.pp.to_patches`. `dataset[i]` is window `i` in epoch 0; `dataset[epoch, i]` draws new channels,
    jitter and symmetry for it, which depend on seed, epoch and index alone, whichever process draws them.

    Attributes
    ----------
    slides
        The slides as arrays; all their genes are in `genes`.
    genes
        The vocabulary: names of all genes that any slide selected, sorted.
    size, stride, n_channels
        As given to :func:`stimg.pp.to_patches`.
    groups
        Group of each slide, or `None`.
    labels
        Names of the expert labels, written `group/label` if there are groups.
    """

    slides: list[Slide]
    _: KW_ONLY
    size: int
    stride: int
    n_channels: int
    min_tissue: float
    channel_rule: ChannelRule = "variance"
    augment: bool = True
    scaling: str = "zscore"
    target_sum: float = 1e4
    seed: int = 0
    groups: list[str] | None = None
    genes: np.ndarray = None  # type: ignore[assignment]  # those of the slides by default
    grids: list[np.ndarray] = None  # type: ignore[assignment]  # sites that windows may show: by default all

    def __post_init__(self) -> None:
        if self.genes is None:
            self.genes = np.unique(np.concatenate([s.genes for s in self.slides]))
        if self.grids is None:
            self.grids = [s.grid for s in self.slides]
        self.labels, self._label_of_site, self._choice = self._index_labels()
        self._vocabulary = [np.searchsorted(self.genes, s.genes) for s in self.slides]
        self._fewest = max(1, self.min_tissue * self.size**2)  # occupied sites of a window
        corners = [self._corners(grid, self.stride) for grid in self.grids]
        windows = [np.column_stack([np.full(len(c), k, np.int32), c]) for k, c in enumerate(corners)]
        self._windows = np.concatenate(windows)

    def _index_labels(self) -> tuple[list[str], list[np.ndarray], np.ndarray]:
        """Return the names of all labels, every site's label (-1: none), and the labels each slide chooses from.

        Names are `group/label`, since labels compete only with those of their own group.
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

    @property
    def label_groups(self) -> list[str]:
        """Groups whose slides have at least two labels, sorted; without groups, one with an empty name."""
        groups = [""] * len(self.slides) if self.groups is None else self.groups
        return sorted({group for group, choice in zip(groups, self._choice, strict=True) if choice.sum() > 1})

    def labelled(self, group: str) -> list[tuple[Slide, np.ndarray]]:
        """Return the slides of a group that have labels, each with the label of every site in `labels`, -1 for none."""
        groups = [""] * len(self.slides) if self.groups is None else self.groups
        found = zip(groups, self.slides, self._label_of_site, strict=True)
        return [(slide, index) for name, slide, index in found if name == group and (index >= 0).any()]

    def _corners(self, grid: np.ndarray, stride: int) -> np.ndarray:
        """Return the corners, int32 (n, 2), of windows with enough tissue."""
        if self.size == 1:
            return np.argwhere(grid >= 0).astype(np.int32)
        corners = window_starts(grid, self.size, stride)
        return corners[count_occupied(grid, corners, self.size) >= self._fewest]

    def check_covered(self) -> None:
        """Require that every slide has a window with enough tissue."""
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
        """Return the slide of a window, and row and column of its top-left site before jitter."""
        slide, row, col = self._windows[index]
        return int(slide), int(row), int(col)

    def draw_weights(self) -> np.ndarray | None:
        """Return the probability of each window in training, float64 (len(self),), or `None` if there are no groups.

        All groups have the same weight, as have all slides of a group and all windows of a slide.
        """
        if self.groups is None:
            return None
        counts = np.bincount(self._windows[:, 0], minlength=len(self.slides))
        groups, of_slide = np.unique(self.groups, return_inverse=True)
        members = np.bincount(of_slide[counts > 0], minlength=len(groups))
        weights = 1 / (np.maximum(members, 1)[of_slide] * np.maximum(counts, 1))[self._windows[:, 0]]
        return weights / weights.sum()

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """Crop one window by its number, or by `(epoch, number)`.

        Returns
        -------
        dict
            `expression` float32 (sites, channels), zero at empty sites and padding; `genes` int64 (channels,), rows
            of `genes`; `channel_mask` bool (channels,); `present` bool (sites,); `positions` float32 (sites, 2),
            true x and y in units of the pitch. If the slides have labels, also `labels` int64 (sites,), -1 for none,
            and `choice` bool (len(self.labels),), the labels of the slide's group.
        """
        epoch, index = index if isinstance(index, tuple) else (0, index)
        if not -len(self) <= index < len(self):
            msg = f"Expected the number of one of {len(self)} patches, found {index}."
            raise IndexError(msg)
        index %= len(self)
        rng = np.random.default_rng([self.seed, epoch, index])
        k, row, col = self.window(index)
        slide, grid = self.slides[k], self.grids[k]
        if self.augment and self.size > 1:
            shift = rng.integers(-(self.stride // 2), self.stride // 2 + 1, size=2)
            moved = (row + int(shift[0]), col + int(shift[1]))
            if (crop(grid, moved, self.size) >= 0).sum() >= self._fewest:
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
        """Return the true positions (size, size, 2) of all sites of a window, relative to its top-left corner."""
        slide = self.slides[k]
        rows, cols = np.mgrid[row : row + self.size, col : col + self.size]
        places = site_positions(np.column_stack([rows.ravel(), cols.ravel()]), slide.kind, slide.parity)
        return (places - [col, places[0, 1]]).reshape(self.size, self.size, 2).astype(np.float32)

    @staticmethod
    def _symmetry(
        window: np.ndarray, positions: np.ndarray, kind: str, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Apply a random symmetry of the lattice: flips, and on square lattices quarter turns."""
        flip_x, flip_y, turn = rng.integers(2, size=3)
        if flip_x:
            window, positions = window[:, ::-1], positions[:, ::-1] * [-1, 1]
        if flip_y:
            window, positions = window[::-1], positions[::-1] * [1, -1]
        if turn and kind != "hex":
            window, positions = window.T, positions.transpose(1, 0, 2)[..., ::-1]
        return window, positions - positions.reshape(-1, 2).min(0)

    def _draw_channels(self, slide: Slide, rng: np.random.Generator) -> np.ndarray:
        """Draw at most `n_channels` columns of `slide.genes` by the channel rule, without replacement."""
        candidates = np.flatnonzero((slide.weights > 0) & (slide.std > 0))
        if len(candidates) <= self.n_channels:
            return candidates
        weights = slide.weights[candidates]
        if self.channel_rule == "top":
            return candidates[np.argsort(-weights, kind="stable")[: self.n_channels]]
        noise = np.log(-np.log(rng.random(len(candidates))))
        scores = noise if self.channel_rule == "uniform" else noise - np.log(weights)
        return candidates[np.argpartition(scores, self.n_channels)[: self.n_channels]]

    def with_scaling(self, scaling: str) -> PatchDataset:
        """Return the same windows with `"zscore"` or `"log"` values."""
        return replace(self, scaling=scaling)

    def with_vocabulary(self, genes: np.ndarray) -> PatchDataset:
        """Return the same windows with the vocabulary `genes`, extended by those of the slides that it lacks."""
        slides = []
        for slide in self.slides:
            rows = vocabulary_rows(slide.genes, genes)
            slides.append(replace(slide, genes=np.where(rows >= 0, genes[rows], slide.genes)))
        return replace(self, slides=slides, genes=np.unique(np.concatenate([genes, *(s.genes for s in slides)])))

    def with_unit(self, unit: str) -> PatchDataset:
        """Return the same sites in windows of a `"patch"` (as they are), a single `"spot"` or a whole `"slide"`."""
        if unit == "patch":
            return self
        side = 1 if unit == "spot" else max(max(grid.shape) for grid in self.grids)
        return replace(self, size=side, stride=1, min_tissue=0.0)

    def split(self, fraction: float) -> tuple[PatchDataset, PatchDataset | None]:
        """Hold out whole windows for validation, so that no site is in both parts.

        Of each slide's non-overlapping windows the given fraction is held out, at least one if there are four.

        Returns
        -------
        tuple
            The training part, and the validation part without augmentation (`None` if no slide is large enough).
        """
        rng = np.random.default_rng([self.seed, 1])
        train, held = [], []
        for grid in self.grids:
            corners = self._corners(grid, self.size)
            take = 0 if fraction == 0 or len(corners) < 4 else max(1, round(fraction * len(corners)))
            mask = np.zeros(grid.shape, dtype=bool)
            for row, col in corners[rng.permutation(len(corners))[:take]]:
                mask[row : row + self.size, col : col + self.size] = True
            train.append(np.where(mask, -1, grid))
            held.append(np.where(mask, grid, -1))
        validation = replace(self, grids=held, augment=False, stride=self.size)
        part = replace(self, grids=train)
        return (part, validation) if len(validation) and len(part) else (self, None)
