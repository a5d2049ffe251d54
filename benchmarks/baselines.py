"""Cheap features that every embedding has to beat."""

import numpy as np
from anndata import AnnData
from scipy.spatial import cKDTree
from sklearn.neighbors import NearestNeighbors


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
