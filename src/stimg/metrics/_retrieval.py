"""How well the two sides of spots find each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stimg._input._checks import check_positive_int, checked
from stimg.metrics._checks import as_labels, as_points, check_same_length

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

CHUNK = 1024
TIE = 1e-12


@checked
def retrieval_recall(
    images: ArrayLike, genes: ArrayLike, *, ks: Sequence[int] = (1, 5, 10), groups: ArrayLike | None = None
) -> dict[str, float]:
    """Share of spots whose partner is among the k most similar, in both directions.

    Parameters
    ----------
    images, genes
        Embeddings of the same spots, shape (n_obs, dim).
    ks
        Numbers of results looked at.
    groups
        Slide of every spot, shape (n_obs,). Partners are then looked for within the slide, and recalls averaged over
        slides. By default among all spots.

    Returns
    -------
    dict
        For each k `"image_to_gene@k"`, `"gene_to_image@k"` and `"chance@k"`, that of a random order. Equally similar
        spots count as in random order, so that constant embeddings get chance.

    Raises
    ------
    ValueError
        Embeddings of different shapes, not finite, or a bad k.
    """
    first, second = np.asarray(images, dtype=np.float64), np.asarray(genes, dtype=np.float64)
    if first.ndim != 2 or first.shape != second.shape or not len(first):
        msg = f"Expected `images` and `genes` of one shape (n_obs, dim), found {first.shape} and {second.shape}."
        raise ValueError(msg)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        msg = "Expected finite `images` and `genes`, found NaN or infinite values."
        raise ValueError(msg)
    for k in ks:
        check_positive_int("ks", k)
    slides = np.zeros(len(first)) if groups is None else np.asarray(groups)
    if slides.shape != (len(first),):
        msg = f"Expected `groups` of shape ({len(first)},), found {slides.shape}."
        raise ValueError(msg)
    first, second = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (first, second))
    rows: list[dict[str, float]] = []
    for slide in np.unique(slides):
        members = np.flatnonzero(slides == slide)
        row: dict[str, float] = {}
        for name, x, y in (("image_to_gene", first, second), ("gene_to_image", second, first)):
            before, tied = _ranks(x[members], y[members])
            row |= {f"{name}@{k}": float(np.mean(np.clip((k - before) / tied, 0, 1))) for k in ks}
        row |= {f"chance@{k}": min(1.0, k / len(members)) for k in ks}
        rows.append(row)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _ranks(queries: np.ndarray, searched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many are more similar to each query than its partner, and how many equally (at least 1), int64 (n,)."""
    before, equal = [], []
    for start in range(0, len(queries), CHUNK):
        part = queries[start : start + CHUNK] @ searched.T
        own = np.arange(len(part))
        truth = part[own, start + own][:, None]
        tied = np.abs(part - truth) <= TIE
        before.append(((part > truth) & ~tied).sum(1))
        equal.append(tied.sum(1))
    return np.concatenate(before), np.concatenate(equal)


@checked
def embedding_scores(embedding: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Say how far labels lie apart in an embedding, without a classifier.

    Parameters
    ----------
    embedding
        Shape (n_obs, dim).
    labels
        Expert labels, shape (n_obs,). Missing ones are left out.

    Returns
    -------
    dict
        `silhouette` (-1 to 1), `calinski_harabasz` (higher is better) and `davies_bouldin` (lower is better), as
        STimage-1K4M reports (arXiv 2406.06393).

    Raises
    ------
    ValueError
        Shapes that do not fit, values that are not finite, or fewer than two labels.
    """
    import pandas as pd
    from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

    names, values = as_labels(labels, "labels"), as_points(embedding, "embedding")
    check_same_length(values, names, "`embedding` and `labels`")
    known = pd.notna(names)
    values, codes = values[known], pd.factorize(names[known])[0]
    if not 1 < len(np.unique(codes)) < len(codes):
        msg = f"Expected at least two different `labels`, and fewer than observations, found {len(np.unique(codes))}."
        raise ValueError(msg)
    return {
        "silhouette": float(silhouette_score(values, codes)),
        "calinski_harabasz": float(calinski_harabasz_score(values, codes)),
        "davies_bouldin": float(davies_bouldin_score(values, codes)),
    }
