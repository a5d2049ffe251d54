"""Cheap features that every embedding has to beat."""

from collections.abc import Sequence

import numpy as np
from anndata import AnnData
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import stimg


def near_means(values: np.ndarray, slide: AnnData) -> np.ndarray:
    """Mean of the values over each spot and its 18 nearest ones."""
    near = NearestNeighbors(n_neighbors=19).fit(slide.obsm["spatial"]).kneighbors(slide.obsm["spatial"])[1]
    return values[near].mean(1)


def ring_means(values: np.ndarray, slide: AnnData) -> np.ndarray:
    """Values, and their means over the rings of spots 1, 2 and 3 pitches away (CellCharter's features)."""
    tree = cKDTree(slide.obsm["spatial"])
    pitch = slide.uns["stimg"]["lattice"]["pitch"]
    pairs = tree.sparse_distance_matrix(tree, 3.5 * pitch, output_type="coo_matrix")
    parts = [values]
    for ring in (1, 2, 3):
        inside = (pairs.data > (ring - 0.5) * pitch) & (pairs.data <= (ring + 0.5) * pitch)
        total = np.zeros_like(values)
        np.add.at(total, pairs.row[inside], values[pairs.col[inside]])
        parts.append(total / np.maximum(np.bincount(pairs.row[inside], minlength=len(total)), 1)[:, None])
    return np.concatenate(parts, axis=1)


def add_shared_baselines(slides: Sequence[AnnData]) -> None:
    """Write to `.obsm` components fitted on all slides together, from the selected genes they share, and their means.

    Genes are z-scored within each slide. The keys are `"PCA, shared"` and, of their means, those of the other two.
    """
    arrays = [stimg.pp.to_patches(slide, size=1, min_tissue=0.0).slides[0] for slide in slides]
    shared = sorted(set.intersection(*(set(array.genes) for array in arrays)))
    values = []
    for array in arrays:
        columns = np.array([int(np.flatnonzero(array.genes == gene)[0]) for gene in shared])
        values.append(array.standardise(array.expression[:, columns].toarray(), columns)[array.obs_site])
    components = PCA(min(30, len(shared)), random_state=0).fit(np.concatenate(values))
    for slide, part in zip(slides, values, strict=True):
        scores = components.transform(part)
        slide.obsm["PCA, shared"] = scores
        slide.obsm["PCA + 18 nearest, shared"] = near_means(scores, slide)
        slide.obsm["PCA 20 + rings, shared"] = ring_means(scores[:, :20], slide)
