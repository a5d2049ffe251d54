"""Components of expression that several sections share, by which sections are compared."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stimg._apply._components import balanced, neighbour_means
from stimg._apply._tokens import shown_genes
from stimg._input._threads import one_thread
from stimg._slide._values import take_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stimg._slide._slide import Slide
    from stimg.models import Model

COMPONENTS = 20
RINGS = 3
MOST_FITTED = 5000
MOST_REDUCED = 20_000
FEWEST_GENES = 50
WIDTH = 50

Matched = tuple["Slide", np.ndarray]  # a section, and the rows of its genes in the vocabulary


def shared_components(model: Model, sections: Sequence[Matched]) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Return principal components that mean the same in all sections, two parts, float32 (n_sites, k), for each.

    Genes are those that the model is shown of every section (or, if these are fewer than 50, that it knows), z-scored
    within each section; the components are fitted to at most 5,000 sites, the same number of each section. Each site
    gets, first, its own 20 scores and their means over the sites 1, 2 and 3 pitches away, as in CellCharter (Varrone et
    al. 2024, Nat Genet 56:74), and then their means over all sites within 2.3 pitches, in which there is less noise.
    `None` if the sections share fewer than three genes.
    """
    from sklearn.decomposition import PCA

    genes = _in_all([rows[shown_genes(model, slide, rows)] for slide, rows in sections])
    if len(genes) < FEWEST_GENES:
        genes = _in_all([rows[rows >= 0] for _, rows in sections])
    columns = [_columns(rows, genes) for _, rows in sections]
    varies = np.all([slide.std[own] > 0 for (slide, _), own in zip(sections, columns, strict=True)], axis=0)
    columns = [own[varies] for own in columns]
    n_components = min(COMPONENTS, int(varies.sum()) - 1)
    if n_components < 2:
        return None
    sample = []
    for (slide, _), own in zip(sections, columns, strict=True):
        sites = np.unique(np.linspace(0, slide.n_sites - 1, max(1, MOST_FITTED // len(sections))).astype(np.int64))
        sample.append(slide.standardise(take_columns(slide.expression[sites], own).toarray(), own))
    rows = np.concatenate(sample)
    with one_thread():
        fitted = PCA(min(n_components, len(rows) - 1), svd_solver="randomized", iterated_power=4, random_state=0).fit(
            rows
        )
    loadings = fitted.components_.T.astype(np.float32)
    scores = [slide.project(loadings, "zscore", own) for (slide, _), own in zip(sections, columns, strict=True)]
    return [
        (_ring_means(slide, own), neighbour_means(slide) @ own)
        for (slide, _), own in zip(sections, scores, strict=True)
    ]


def join_sections(blocks: Sequence[Sequence[np.ndarray]]) -> tuple[list[np.ndarray], str]:
    """Return one embedding of all sections, float32 (n, 50) for each, and a name of this run.

    The blocks of each section are its states of the network and the parts of its shared components, (n, k). Each is
    centred and scaled to a total variance of one; all are reduced to principal components of all sections together.
    """
    from sklearn.decomposition import PCA

    parts = [np.concatenate([balanced(block) for block in own], axis=1) for own in blocks]
    rows = np.concatenate([part[:: max(1, sum(map(len, parts)) // MOST_REDUCED)] for part in parts])
    with one_thread():
        fitted = PCA(min(WIDTH, *rows.shape), svd_solver="full").fit(rows)
        joint = [fitted.transform(part).astype(np.float32) for part in parts]
    return joint, hashlib.blake2b(np.ascontiguousarray(fitted.components_).data, digest_size=8).hexdigest()


def _in_all(genes: list[np.ndarray]) -> np.ndarray:
    found = genes[0]
    for other in genes[1:]:
        found = found[np.isin(found, other)]
    return np.sort(found)


def _columns(rows: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Return the columns of a section that hold these rows of the vocabulary."""
    order = np.argsort(rows, kind="stable")
    return order[np.searchsorted(rows[order], genes)]


def _ring_means(slide: Slide, values: np.ndarray) -> np.ndarray:
    """Return values and their means over rings of sites, 0 where a ring is empty."""
    from scipy.spatial import cKDTree

    places = slide.positions()
    pairs = cKDTree(places).query_pairs(RINGS + 0.5, output_type="ndarray")
    ring = np.rint(np.linalg.norm(places[pairs[:, 0]] - places[pairs[:, 1]], axis=1)).astype(int)
    found = [values]
    for number in range(1, RINGS + 1):
        one, other = pairs[ring == number].T
        both = (np.concatenate([one, other]), np.concatenate([other, one]))
        near = sparse.csr_array((np.ones(len(both[0]), dtype=np.float32), both), shape=(len(places),) * 2)
        found.append(sparse.diags_array(1 / np.maximum(near.sum(1), 1).astype(np.float32)) @ (near @ values))
    return np.concatenate(found, axis=1)
