"""Search for the most similar embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stimg._input._checks import check_obsm

if TYPE_CHECKING:
    from anndata import AnnData

CHUNK = 1024


def pair_embeddings(tables: list[AnnData], key: str) -> np.ndarray:
    """Join the embeddings `.obsm[key]` of several tables, which :func:`stimg.tl.embed_pairs` wrote."""
    for table in tables:
        check_obsm(table, key, advice="Run `stimg.tl.embed_pairs(adata, model)` first.")
    return np.concatenate([np.asarray(table.obsm[key]) for table in tables])


def nearest(queries: np.ndarray, searched: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows with the largest cosines, best first, and the cosines; int64 and float32 (n_queries, number).

    Rows of `searched` with NaN are never found; the cosines of a query with NaN are NaN.
    """
    import torch

    if queries.ndim != 2 or queries.shape[1] != searched.shape[1]:
        msg = (
            f"Expected queries and slides in the same embedding space, found shapes {queries.shape} and "
            f"{searched.shape}. Embed both with the same model."
        )
        raise ValueError(msg)
    known = np.flatnonzero(np.isfinite(searched).all(1))
    if not len(known):
        msg = "Expected embeddings in the slides to search, found only NaN. Run `stimg.tl.embed_pairs` on them again."
        raise ValueError(msg)
    number = min(number, len(known))
    unit = torch.nn.functional.normalize(torch.from_numpy(searched[known].astype(np.float32)), dim=1)
    asked = torch.nn.functional.normalize(torch.from_numpy(queries.astype(np.float32)), dim=1)
    found = [torch.topk(part @ unit.T, number, dim=1) for part in asked.split(CHUNK)]
    return known[torch.cat([one.indices for one in found]).numpy()], torch.cat([one.values for one in found]).numpy()
