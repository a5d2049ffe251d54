"""One section as arrays, between AnnData and torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stimg._input._rows import row_blocks
from stimg._slide._geometry import site_positions
from stimg._slide._values import moments, take_columns

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIP = 10.0


@dataclass(frozen=True)
class Slide:
    """One section on its lattice.

    It takes as much memory as the non-zeros of `expression`, or as those of a few rows if this is memory-mapped.
    """

    name: str  # for messages, cards and plots
    expression: sparse.csr_array  # float32 (n_sites, n_genes): log-normalised expression of the occupied sites
    genes: np.ndarray  # str (n_genes,): gene names
    weights: np.ndarray  # float32 (n_genes,): sampling weight of each channel
    sites: np.ndarray  # int32 (n_sites, 2): row and column of each occupied site
    obs_site: np.ndarray  # int64 (n_obs,): the site of each observation
    obs_index: np.ndarray  # int64 (n_obs,): the observations' rows in the AnnData
    kind: str  # "hex", "square" or "free"
    parity: int = 0  # of a hex lattice: rows with (row + parity) % 2 == 1 are shifted by half a pitch
    seen: np.ndarray | None = None  # bool (n_sites,): sites from which means and deviations are computed; None for all
    labels: np.ndarray | None = None  # str (n_sites,): expert labels, empty if a site has none; None without labels

    @cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        return moments(
            block if self.seen is None else block[np.flatnonzero(self.seen[rows])]
            for rows, block in row_blocks(self.expression)
        )

    @property
    def mean(self) -> np.ndarray:
        """Mean of each gene over the seen sites, float32 (n_genes,)."""
        return self._moments[0]

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each gene over the seen sites, float32 (n_genes,)."""
        return self._moments[1]

    def scaled_by(self, mean: np.ndarray, std: np.ndarray) -> Slide:
        """Return the same slide with the mean and deviation of each gene, float32 (n_genes,), of other slides."""
        other = replace(self)
        other.__dict__["_moments"] = (mean, std)
        return other

    @cached_property
    def grid(self) -> np.ndarray:
        """Site index at each lattice position, int32 (rows, columns), -1 if it is empty."""
        grid = np.full(self.sites.max(0) + 1 if len(self.sites) else (0, 0), -1, dtype=np.int32)
        grid[self.sites[:, 0], self.sites[:, 1]] = np.arange(len(self.sites), dtype=np.int32)
        return grid

    @property
    def n_sites(self) -> int:
        """Number of occupied sites."""
        return len(self.sites)

    def positions(self) -> np.ndarray:
        """Return the true (x, y) of each site, float32 (n_sites, 2) in units of the pitch."""
        return site_positions(self.sites, self.kind, self.parity).astype(np.float32)

    def symmetries(self) -> Iterator[Slide]:
        """Yield the slide in four symmetries of its lattice, with the sites in the same order.

        The first is the slide itself; the others are flips on hexagonal lattices and quarter turns on others.
        """
        hexagonal = self.kind == "hex"
        steps = self.sites.astype(np.int64)
        if hexagonal:  # array columns, two of which are one pitch
            steps[:, 1] = 2 * steps[:, 1] + (steps[:, 0] + self.parity) % 2
        flips = ((False, False), (False, True), (True, False), (True, True))
        orders = ([0, 1],) * 4 if hexagonal else ([0, 1], [1, 0], [1, 0], [0, 1])
        for order, flip in zip(orders, flips, strict=True):
            turned = steps[:, order]
            turned = np.where(flip, turned.max(0) - turned, turned)
            parity = int(turned[0].sum() % 2) if hexagonal else self.parity
            turned //= [1, 2] if hexagonal else 1
            yield replace(self, sites=turned.astype(np.int32), parity=parity)

    def standardise(self, values: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return z-scores of dense `values` (n, len(genes)), by the slide's mean and deviation of `genes`, clipped."""
        std = self.std[genes]
        scaled = values - self.mean[genes]
        scaled /= np.where(std > 0, std, np.inf)
        return np.minimum(scaled, CLIP, out=scaled)

    def project(self, weight: np.ndarray, scaling: str, genes: np.ndarray) -> np.ndarray:
        """Return the scaled expression of the columns `genes` times `weight` (len(genes), d), float32 (n_sites, d).

        This is one sparse product, by rows. Z-scoring is folded into the weights, and clipping (only possible above the
        mean, hence at non-zeros) into the stored values, so that only the result is dense.
        """
        result = np.empty((self.n_sites, weight.shape[1]), dtype=np.float32)
        offset = np.zeros(weight.shape[1], dtype=np.float32)
        if scaling == "zscore":
            weight = weight * self._per_deviation(genes)[:, None]
            offset = self.mean[genes] @ weight
        for rows, part in self._clipped_blocks(scaling, genes):
            result[rows] = part @ weight - offset
        return result

    def project_back(self, values: np.ndarray, scaling: str, genes: np.ndarray) -> np.ndarray:
        """Return the transposed scaled expression of the columns `genes`, less its mean, times `values` (n_sites, k).

        It is float64 (len(genes), k). Expression is scaled and clipped as in `project`, from which this differs by
        the mean if `scaling` is `"log"`.
        """
        result = np.zeros((len(genes), values.shape[1]))
        for rows, part in self._clipped_blocks(scaling, genes):
            result += part.T @ values[rows].astype(np.float64)
        result -= np.outer(self.mean[genes], values.sum(0, dtype=np.float64))
        return result * self._per_deviation(genes)[:, None] if scaling == "zscore" else result

    def _per_deviation(self, genes: np.ndarray) -> np.ndarray:
        """Return one over the deviation of each of `genes`, 0 for constant ones."""
        std = self.std[genes]
        return np.divide(1, std, out=np.zeros_like(std), where=std > 0)

    def _clipped_blocks(self, scaling: str, genes: np.ndarray) -> Iterator[tuple[slice, sparse.csr_array]]:
        """Yield expression of the columns `genes` by blocks of rows, clipped where it will be z-scored."""
        limit = self.mean[genes] + CLIP * self.std[genes]
        for rows, block in row_blocks(self.expression):
            part = take_columns(block, genes)
            if scaling == "zscore":
                clipped = np.minimum(part.data, limit.take(part.indices))
                part = sparse.csr_array((clipped, part.indices, part.indptr), shape=part.shape)
            yield rows, part
