"""What each gene adds to what an embedding tells apart: gradients of the network, times the expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stimg._apply._run_windows import run_windows, token_gradients
from stimg._apply._tokens import match_slides, shown_genes, site_tokens, token_layer
from stimg._input._checks import check_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from stimg._slide._slide import Slide
    from stimg.models import Model

VALUES_AT_ONCE = 2**27  # of the gradients of several groups, 512 MB
GROUPS_AT_ONCE = 16  # their targets wait in every batch


@dataclass(frozen=True)
class Separation:
    """The directions in which an embedding tells observations apart.

    Each is a target for every observation: its products with the embedding add up to 1.
    """

    embedding: np.ndarray  # float32 (n_obs, d), less its mean
    shares: np.ndarray | None  # float32 (n_groups, n_obs): over members of the group 1 / n, over others -1 / n
    sizes: np.ndarray  # float64 (n_groups,): squared distances of group and others, or the variance

    def targets(self, number: int) -> np.ndarray:
        """Return the targets of one group, float32 (n_obs, d)."""
        size = np.float32(self.sizes[number])
        if self.shares is None:
            return self.embedding / (len(self.embedding) * size)
        share = self.shares[number]
        return np.outer(share, share @ self.embedding / size).astype(np.float32)


def find_separation(
    embedding: np.ndarray, codes: np.ndarray | None, groups: Sequence[int], names: list[str]
) -> Separation:
    """Return how an embedding tells `groups` of observations, numbers in `codes`, from all others; or, without, all.

    Observations with a negative code belong to nobody. A `ValueError` names a group whose embedding has the same mean.
    """
    embedding = embedding - embedding.mean(0, dtype=np.float64).astype(np.float32)
    if codes is None:
        shares, sizes = None, np.array([np.square(embedding, dtype=np.float64).sum() / len(embedding)])
    else:
        member = codes == np.asarray(groups)[:, None]
        other = (codes >= 0) & ~member
        counts = [one.sum(1, keepdims=True) for one in (member, other)]
        shares = (member / counts[0] - other / counts[1]).astype(np.float32)
        sizes = np.square(shares @ embedding, dtype=np.float64).sum(1)
    if not (sizes > 0).all():
        name = names[int(np.argmin(sizes > 0))]
        msg = f"Expected an embedding that differs between observations, found the same for {name!r} and all others."
        raise ValueError(msg)
    return Separation(embedding, shares, sizes)


@dataclass(frozen=True)
class Ranked:
    """What each gene of a table adds to what tells groups apart."""

    scores: np.ndarray  # float64 (n_groups, n_vars)
    differences: np.ndarray | None  # float64 (n_groups, n_vars): between mean z-scores of the group and of the others
    read: np.ndarray  # bool (n_vars,): genes that the network was shown


def rank_table(
    table: AnnData,
    model: Model,
    windows: dict[str, Any],
    codes: np.ndarray | None,
    groups: Sequence[int],
    names: list[str],
    **expression: Any,
) -> tuple[Ranked, dict[str, Any]]:
    """Return what each gene adds to telling `groups` from the others, or all observations apart, and the record.

    `codes` and `groups` are as in `find_separation`, `windows` as in `run_windows`, and `expression` says where it is
    and which genes it has, as in `match_slides`.
    """
    matched, record = match_slides(table, model, **expression)
    tokens = [site_tokens(model, slide, vocabulary) for slide, vocabulary in matched]
    embedding = np.empty((table.n_obs, model.config.dim), dtype=np.float32)
    for (slide, _), sites in zip(matched, tokens, strict=True):
        embedding[slide.obs_index] = run_windows(model, slide, sites, **windows)[slide.obs_site]
    check_finite("the embedding", embedding)
    separation = find_separation(embedding, codes, groups, names)
    scores = np.zeros((len(names), table.n_vars))
    differences = None if separation.shares is None else np.zeros_like(scores)
    read = np.zeros(table.n_vars, dtype=bool)
    for (slide, vocabulary), sites in zip(matched, tokens, strict=True):
        shown = shown_genes(model, slide, vocabulary)
        read[shown] = True
        if differences is not None and separation.shares is not None:
            shares = on_sites(slide, separation.shares[:, slide.obs_index].T)
            differences[:, shown] += slide.project_back(shares, "zscore", shown).T
        step = max(1, min(GROUPS_AT_ONCE, VALUES_AT_ONCE // sites.size))
        for start in range(0, len(names), step):
            part = range(start, min(start + step, len(names)))
            targets = np.stack([on_sites(slide, separation.targets(i)[slide.obs_index]) for i in part])
            gradients = token_gradients(model, slide, sites, targets, **windows)
            scores[start : part.stop, shown] += gene_scores(model, slide, vocabulary, shown, gradients)
    check_finite("the scores of genes", scores)
    record |= {"n_genes": int(read.sum()), "model": model.card["name"], "sha256": model.sha256}
    return Ranked(scores, differences, read), record | {"separation": separation.sizes}


def on_sites(slide: Slide, values: np.ndarray) -> np.ndarray:
    """Add up the rows of a slide's observations, (n_obs, k), on its sites: float32 (n_sites, k)."""
    entries = (np.ones(len(values), dtype=np.float32), (slide.obs_site, np.arange(len(values))))
    return sparse.csr_array(entries, shape=(slide.n_sites, len(values))) @ values


def gene_scores(
    model: Model, slide: Slide, vocabulary: np.ndarray, shown: np.ndarray, gradients: np.ndarray
) -> np.ndarray:
    """Return gradient times input of the `shown` genes, float64 (n_targets, n), from the gradients of their tokens.

    A token is linear in the expression, so that a gene's gradient at a site is that of the token times the gene's
    vector. The input is what expression differs by from the gene's mean on the slide.
    """
    weight, _, scale = token_layer(model, slide, vocabulary, shown)
    found = [slide.project_back(one, model.config.scaling, shown) for one in gradients]
    return float(scale) * np.stack([np.einsum("gd,gd->g", one, weight) for one in found])
