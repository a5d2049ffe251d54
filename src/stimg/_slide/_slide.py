"""A slide as arrays: what lies between AnnData and torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stimg import _keys
from stimg._input._rows import by_nonzeros, collect_rows, is_mapped, row_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anndata import AnnData

CLIP = 10.0


@dataclass(frozen=True)
class Slide:
    """One section on its lattice.

    Memory is that of the non-zeros of `expression`; where this is memory-mapped, that of the non-zeros of a few rows.

    Parameters
    ----------
    name
        Name for messages, cards and plots.
    expression
        CSR float32, shape (n_sites, n_genes): log-normalised expression of the occupied sites.
    genes
        Gene names, shape (n_genes,).
    weights
        float32, shape (n_genes,): channel sampling weight.
    sites
        int32, shape (n_sites, 2): row and column of each occupied site.
    obs_site
        int64, shape (n_obs,): the site of each observation.
    obs_index
        int64, shape (n_obs,): the observations' rows in the AnnData.
    kind
        `"hex"`, `"square"` or `"free"`.
    parity
        Of a hex lattice: rows with `(row + parity) % 2 == 1` are shifted by half a pitch.
    seen
        bool, shape (n_sites,): the sites that means and deviations are taken from; all by default.
    labels
        Expert label of every site, str (n_sites,), empty where there is none; `None` for a slide without labels.
    """

    name: str
    expression: sparse.csr_array
    genes: np.ndarray
    weights: np.ndarray
    sites: np.ndarray
    obs_site: np.ndarray
    obs_index: np.ndarray
    kind: str
    parity: int = 0
    seen: np.ndarray | None = None
    labels: np.ndarray | None = None

    @cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        return moments(
            block if self.seen is None else block[np.flatnonzero(self.seen[rows])]
            for rows, block in row_blocks(self.expression)
        )

    @property
    def mean(self) -> np.ndarray:
        """Mean of every gene over the seen sites, float32 (n_genes,)."""
        return self._moments[0]

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of every gene over the seen sites, float32 (n_genes,)."""
        return self._moments[1]

    @cached_property
    def grid(self) -> np.ndarray:
        """Site index at every lattice position, int32 (rows, columns), -1 where empty."""
        grid = np.full(self.sites.max(0) + 1 if len(self.sites) else (0, 0), -1, dtype=np.int32)
        grid[self.sites[:, 0], self.sites[:, 1]] = np.arange(len(self.sites), dtype=np.int32)
        return grid

    @property
    def n_sites(self) -> int:
        """Number of occupied sites."""
        return len(self.sites)

    def positions(self) -> np.ndarray:
        """Return float32 (n_sites, 2): true (x, y) of every site in units of the pitch."""
        row, col = self.sites[:, 0].astype(np.float32), self.sites[:, 1].astype(np.float32)
        if self.kind != "hex":
            return np.stack([col, row], axis=1)
        shift = 0.5 * ((self.sites[:, 0] + self.parity) % 2)
        return np.stack([col + shift, row * np.sqrt(0.75)], axis=1).astype(np.float32)

    def symmetries(self) -> Iterator[Slide]:
        """Yield the slide in four symmetries of its lattice that keep rows and columns, sites in the same order.

        Itself first, then flips on hexagonal lattices, quarter turns on others.
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
        """Z-score dense `values` (n, len(genes)) of the genes at these columns by the slide's own moments, clipped."""
        std = self.std[genes]
        scaled = values - self.mean[genes]
        scaled /= np.where(std > 0, std, np.inf)
        return np.minimum(scaled, CLIP, out=scaled)

    def project(self, weight: np.ndarray, scaling: str, genes: np.ndarray) -> np.ndarray:
        """Return (n_sites, d): scaled expression of `genes`, these columns, times `weight` (len(genes), d).

        One sparse product, by rows. Z-scoring is folded into the weights, and clipping (only possible above the mean,
        hence at non-zeros) into the stored values, so that nothing is made dense but the result.
        """
        result = np.empty((self.n_sites, weight.shape[1]), dtype=np.float32)
        offset = np.zeros(weight.shape[1], dtype=np.float32)
        mean, std = self.mean[genes], self.std[genes]
        if scaling == "zscore":
            weight = weight * np.divide(1, std, out=np.zeros_like(std), where=std > 0)[:, None]
            offset = mean @ weight
        limit = mean + CLIP * std
        for rows, block in row_blocks(self.expression):
            part = take_columns(block, genes)
            if scaling == "zscore":
                clipped = np.minimum(part.data, limit.take(part.indices))
                part = sparse.csr_array((clipped, part.indices, part.indptr), shape=part.shape)
            result[rows] = part @ weight - offset
        return result


def moments(blocks: Iterable[sparse.csr_array]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float32, of every column of the rows in all blocks, without making them dense."""
    n_rows: int = 0
    total: Any = 0.0
    squares: Any = 0.0
    for block in blocks:
        n_rows += block.shape[0]
        total = total + np.bincount(block.indices, block.data, block.shape[1])
        squares = squares + np.bincount(block.indices, np.square(block.data, dtype=np.float64), block.shape[1])
    mean = total / max(n_rows, 1)
    variance = np.maximum(squares / max(n_rows, 1) - mean**2, 0)
    variance[variance < 1e-10] = 0
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def take_columns(matrix: sparse.csr_array, columns: np.ndarray | None) -> sparse.csr_array:
    """Return the matrix at `columns`; itself, not a copy, where these are `None` or all of them in order."""
    if columns is None or np.array_equal(columns, np.arange(matrix.shape[1])):
        return matrix
    return sparse.csr_array(matrix[:, columns])


def log_normalise(counts: sparse.csr_array, target_sum: float, columns: np.ndarray | None = None) -> sparse.csr_array:
    """Return float32 `log1p(counts / row total * target_sum)` of the genes at `columns`, by default all.

    Totals are those of all genes; rows without counts stay zero.
    """
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    factors = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0).astype(np.float32)
    kept = take_columns(counts, columns)
    data = np.log1p(kept.data * np.repeat(factors, np.diff(kept.indptr)))
    where = (kept.indices, kept.indptr)
    if kept is counts:  # share nothing that could be changed in place
        where = (kept.indices.copy(), kept.indptr.copy())
    return sparse.csr_array((data, *where), shape=kept.shape)


def read_slides(
    table: AnnData,
    expression: sparse.csr_array,
    columns: np.ndarray,
    *,
    scale: str,
    target_sum: float,
    lattice_key: str = _keys.LATTICE,
    weights: np.ndarray | None = None,
    name: str = "slide",
) -> list[Slide]:
    """Lay the genes at `columns` of a table's checked `expression` on its lattice, one `Slide` a library.

    Counts of observations that share a site are summed before they are normalised; log values are averaged. Where
    `expression` is memory-mapped, that of the slides is too. `weights` (n_vars,) are 1 by default.
    """
    info: dict[str, Any] = dict(table.uns[_keys.UNS][_keys.STEP_LATTICE])
    library_key = info["library_key"]
    libraries = table.obs[library_key].astype(str).to_numpy() if library_key else np.full(table.n_obs, name)
    known = [str(library) for library in info["libraries"]] if library_key else [name]
    parities = dict(zip(known, map(int, info["parity"]), strict=True))
    weights = np.ones(table.n_vars) if weights is None else weights
    lattice = np.asarray(table.obsm[lattice_key])
    slides = []
    for library in dict.fromkeys(libraries):
        rows = np.flatnonzero(libraries == library)
        sites, obs_site = np.unique(lattice[rows], axis=0, return_inverse=True)
        obs_site = obs_site.ravel()
        values = _site_rows(expression, rows, obs_site, columns, scale=scale, target_sum=target_sum)
        slides.append(
            Slide(
                name=str(library),
                expression=collect_rows(values, len(columns), mapped=is_mapped(expression)),
                genes=table.var_names.to_numpy()[columns].astype(str),
                weights=weights[columns].astype(np.float32),
                sites=sites.astype(np.int32),
                obs_site=obs_site,
                obs_index=rows,
                kind=info["kind"],
                parity=parities[library],
            )
        )
    return slides


def _site_rows(
    expression: sparse.csr_array,
    rows: np.ndarray,
    obs_site: np.ndarray,
    columns: np.ndarray,
    *,
    scale: str,
    target_sum: float,
) -> Iterator[sparse.csr_array]:
    """Yield log-normalised expression of the genes at `columns` of the sites in their order, in blocks."""
    order = np.argsort(obs_site, kind="stable")
    members = rows[order]
    counts = np.bincount(obs_site)
    first = np.concatenate([[0], np.cumsum(counts)])
    lengths = np.diff(expression.indptr)[members]
    nonzeros = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[first]
    for start, stop in by_nonzeros(nonzeros):
        values = expression[members[first[start] : first[stop]]]
        shared = counts[start:stop]
        if (shared > 1).any():
            values = sparse.csr_array(_adder(shared) @ values)
            if scale == "log":
                values = sparse.csr_array(sparse.diags_array(1 / shared.astype(np.float32)) @ values)
        yield log_normalise(values, target_sum, columns) if scale == "counts" else take_columns(values, columns)


def _adder(counts: np.ndarray) -> sparse.csr_array:
    """Matrix float32 (len(counts), sum(counts)) that sums runs of so many rows."""
    total = int(counts.sum())
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return sparse.csr_array((np.ones(total, np.float32), np.arange(total), indptr), shape=(len(counts), total))
