"""Principal gene programs of the training slides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from stimg._data import PatchDataset

SAMPLED_SITES = 4096


def gene_programs(patches: PatchDataset, n_programs: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the principal components of a sample of sites, the same number from every slide.

    Genes that a slide lacks count as average there.

    Parameters
    ----------
    patches
        The training slides, in the scaling of the model.
    n_programs
        Components asked for; fewer where genes or sites are fewer.

    Returns
    -------
    tuple
        Loadings float32 (n_genes, k), orthonormal columns by falling variance, and the scores' variance float32 (k,).
    """
    from sklearn.decomposition import PCA

    rng = np.random.default_rng([patches.seed, 2])
    share = max(1, SAMPLED_SITES // len(patches.slides))
    parts = []
    for slide, grid in zip(patches.slides, patches.grids, strict=True):
        allowed = grid[grid >= 0]
        sites = np.sort(rng.choice(allowed, min(share, len(allowed)), replace=False))
        dense = slide.expression[sites].toarray()
        columns = np.arange(len(slide.genes))
        values = slide.standardise(dense, columns) if patches.scaling == "zscore" else dense - slide.mean
        part = np.zeros((len(sites), len(patches.genes)), dtype=np.float32)
        part[:, np.searchsorted(patches.genes, slide.genes)] = values
        parts.append(part)
    sample = np.concatenate(parts)
    fitted = PCA(min(n_programs, *sample.shape), svd_solver="randomized", random_state=0).fit(sample)
    return (
        np.ascontiguousarray(fitted.components_.T, dtype=np.float32),
        np.maximum(fitted.explained_variance_, 1e-6).astype(np.float32),
    )
