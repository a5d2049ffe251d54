"""How well images find expression, how well expression finds images, and how well an embedding separates labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stimg._input._checks import check_positive_int, checked
from stimg.metrics._checks import as_labels, as_points, labelled_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

CHUNK = 1024
TIE = 1e-12


@checked
def retrieval_recall(
    images: ArrayLike, genes: ArrayLike, *, ks: Sequence[int] = (1, 5, 10), groups: ArrayLike | None = None
) -> dict[str, float]:
    """Compute the share of spots whose partner is among the k most similar, in both directions.

    Parameters
    ----------
    images, genes
        Embeddings of the same spots, shape (n_obs, dim).
    ks
        Numbers of results to look at.
    groups
        Slide of every spot, shape (n_obs,). Partners are then searched for within each slide, and recalls are averaged
        over slides. By default they are searched for among all spots.

    Returns
    -------
    dict
        For each k, `"image_to_gene@k"` and `"gene_to_image@k"`, and `"chance@k"`, the recall of a random order. Equally
        similar spots count as in random order, so that constant embeddings score as chance does.

    Raises
    ------
    ValueError
        The embeddings differ in shape or are not finite, `groups` has another length, or a k is not a positive integer.

    Examples
    --------
    >>> stimg.metrics.retrieval_recall(np.eye(4), np.eye(4), ks=[1])
    {'image_to_gene@1': 1.0, 'gene_to_image@1': 1.0, 'chance@1': 0.25}
    """
    first = as_points(images, "images")
    second = as_points(genes, "genes", *first.shape)
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
    """Count those more similar to each query than its partner, and those equally similar (at least 1), int64 (n,)."""
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
    """Measure how well an embedding separates labels, without a classifier.

    Parameters
    ----------
    embedding
        Shape (n_obs, dim).
    labels
        Expert labels, shape (n_obs,). Observations without one are left out.

    Returns
    -------
    dict
        `silhouette` (-1 to 1), `calinski_harabasz` (higher is better) and `davies_bouldin` (lower is better), as
        in STimage-1K4M (arXiv 2406.06393).

    Raises
    ------
    ValueError
        Shapes do not fit, values are not finite, there are fewer than two labels, or each observation has its own.

    Examples
    --------
    >>> scores = stimg.metrics.embedding_scores([[0.0], [0.1], [1.0], [1.1]], ["a", "a", "b", "b"])
    >>> round(scores["silhouette"], 2)
    0.9
    """
    import pandas as pd
    from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

    values = as_points(embedding, "embedding")
    names = as_labels(labels, "labels", len(values))
    known = labelled_rows(names, "labels")
    values, codes = values[known], pd.factorize(names[known])[0]
    if not 1 < len(np.unique(codes)) < len(codes):
        msg = f"Expected at least two different `labels`, and fewer than observations, found {len(np.unique(codes))}."
        raise ValueError(msg)
    return {
        "silhouette": float(silhouette_score(values, codes)),
        "calinski_harabasz": float(calinski_harabasz_score(values, codes)),
        "davies_bouldin": float(davies_bouldin_score(values, codes)),
    }
