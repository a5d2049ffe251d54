"""Components of a table's own expression, which are added to a pretrained embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stimg._input._threads import one_thread
from stimg._slide._values import take_columns

if TYPE_CHECKING:
    from stimg._slide._slide import Slide

COMPONENTS = 30
MOST_GENES = 2000
MOST_FITTED = 2000
RADIUS = 2.3  # pitches; two rings of a hexagonal lattice, and the 20 nearest of a square one


def local_components(slides: list[Slide]) -> list[np.ndarray]:
    """Return principal components of expression, averaged over nearby sites, float32 (n_sites, k) for each section.

    The sections are those of one table, with the same genes. The components of the z-scored, most variable genes are
    fitted to at most 2,000 sites of all sections together, whether or not a model knows the genes; `k` is 30, or less
    if there are few sites or genes.
    """
    from sklearn.decomposition import PCA

    n_sites = sum(slide.n_sites for slide in slides)
    variance = np.sum([slide.std**2 * slide.n_sites for slide in slides], axis=0) / n_sites
    genes = np.sort(np.argsort(-variance, kind="stable")[:MOST_GENES])
    genes = genes[variance[genes] > 0]
    n_components = min(COMPONENTS, len(genes) - 1, n_sites - 1)
    if n_components < 1:
        return [np.zeros((slide.n_sites, 1), dtype=np.float32) for slide in slides]
    share = min(1.0, MOST_FITTED / n_sites)
    sample = []
    for slide in slides:
        sites = np.linspace(0, slide.n_sites - 1, max(1, round(share * slide.n_sites))).astype(np.int64)
        sample.append(slide.standardise(take_columns(slide.expression[sites], genes).toarray(), genes))
    # With four power iterations, domains are as good as with an exact solver, several times as fast.
    solver = PCA(n_components, svd_solver="randomized", iterated_power=4, random_state=0)
    with one_thread():
        fitted = solver.fit(np.concatenate(sample))
    return [neighbour_means(slide) @ slide.project(fitted.components_.T, "zscore", genes) for slide in slides]


def neighbour_means(slide: Slide) -> sparse.csr_array:
    """Return the matrix that averages over the sites within `RADIUS` of each, itself included, float32 (n, n)."""
    from scipy.spatial import cKDTree

    pairs = cKDTree(slide.positions()).query_pairs(RADIUS, output_type="ndarray")
    every = np.arange(slide.n_sites)
    rows, columns = np.concatenate([pairs, pairs[:, ::-1], np.column_stack([every, every])]).T
    near = sparse.csr_array((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(slide.n_sites,) * 2)
    return sparse.csr_array(sparse.diags_array(1 / near.sum(1)) @ near, dtype=np.float32)


def join(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Join two embeddings of the same observations, each centred and scaled to a total variance of one."""
    return np.concatenate([balanced(first), balanced(second)], axis=1).astype(np.float32)


def balanced(part: np.ndarray) -> np.ndarray:
    """Centre the columns and scale them to a total variance of one."""
    centred = part - part.mean(0)
    spread = np.sqrt(np.mean(np.sum(centred**2, axis=1)))
    return centred / spread if spread > 0 else centred
