"""The order and the colours of domains: by size, or like a column of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stimg._cluster._colours import Categories, domain_colours, read_categories, unused_colours

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def by_size(labels: np.ndarray, n_domains: int) -> np.ndarray:
    """Return labels renumbered from the largest domain to the smallest; equally large ones by first appearance.

    If refinement has lost a domain, raise a `RuntimeError`.
    """
    if (left := len(np.unique(labels))) < n_domains:
        msg = f"Refinement left {left} of {n_domains} domains. Pass a smaller `refine`, or False."
        raise RuntimeError(msg)
    _, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    return np.argsort(np.lexsort((first, -sizes)), kind="stable")[labels]


def read_reference(tables: Sequence[AnnData], key: str) -> Categories:
    """Return the column of `.obs` that domains shall be like, with the codes of all tables joined.

    A missing column is a `KeyError`; one without categories or labels, or with other categories or colours in another
    table, a `ValueError`.
    """
    found = [read_categories(table, key, argument="like") for table in tables]
    names, colours = found[0].names, found[0].colours
    for other in found[1:]:
        if other.names != names or other.colours[: len(names)] != colours[: len(names)]:
            what = "categories" if other.names != names else "colours"
            one, two = (names, other.names) if what == "categories" else (colours, other.colours)
            msg = (
                f"Expected the same {what} of `adata.obs[{key!r}]` (`like`) in all slides, found {one} and {two}. "
                f"Make them the same: `adata.obs[{key!r}] = pd.Categorical(adata.obs[{key!r}], categories=...)`, and "
                f"`adata.uns[{key + '_colors'!r}]`, if there."
            )
            raise ValueError(msg)
    codes = np.concatenate([one.codes for one in found])
    if (codes < 0).all():
        msg = f"Expected labels in `adata.obs[{key!r}]` (`like`), found none: all are missing. Name another column."
        raise ValueError(msg)
    return Categories(codes, names, colours)


def like_reference(codes: np.ndarray, n_domains: int, reference: Categories) -> tuple[np.ndarray, list[str], list[str]]:
    """Return domains (numbered by size) in the order of the categories they match, their colours and these categories.

    Domains and categories are paired so that they share as many observations as possible (Kuhn 1955, Nav Res Logist
    2:83); a pair that shares none is not one. Domains without a category (`""`) come last, by size, in other colours.
    """
    from scipy.optimize import linear_sum_assignment

    shared = np.zeros((n_domains, len(reference.names)), dtype=np.int64)
    labelled = reference.codes >= 0
    np.add.at(shared, (codes[labelled], reference.codes[labelled]), 1)
    pairs = {int(one): int(other) for one, other in zip(*linear_sum_assignment(-shared), strict=True)}
    match = {one: other for one, other in pairs.items() if shared[one, other]}
    order = sorted(range(n_domains), key=lambda domain: (match.get(domain, len(reference.names)), domain))
    colours = [reference.colours[match[domain]] for domain in order if domain in match]
    colours += unused_colours(n_domains - len(match), reference.colours)
    names = [reference.names[match[domain]] if domain in match else "" for domain in order]
    return np.argsort(order)[codes], colours, names


def numbered(
    labels: np.ndarray, n_domains: int, reference: Categories | None
) -> tuple[np.ndarray, list[str], list[str]]:
    """Return the number of each observation's domain, from 0, one colour per domain, and the categories they match."""
    codes = by_size(labels, n_domains)
    if reference is None:
        return codes, domain_colours(n_domains), []
    return like_reference(codes, n_domains, reference)
