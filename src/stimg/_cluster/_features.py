"""The values to cluster: embeddings of one or several tables, joined and reduced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stimg import _keys
from stimg._cluster._mixture import MOST_FINISHED
from stimg._input._checks import check_embedding
from stimg._input._coordinates import check_coordinates
from stimg._input._records import read_record, said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

MOST_COMPARED = 5000
SAME_RUN = 1e-3


def joined_embeddings(tables: Sequence[AnnData], keys: Sequence[str]) -> np.ndarray:
    """Return the embeddings under `keys` of all tables side by side, float64 (n_obs of all tables, d).

    Several keys are each scaled to a total variance of one. A missing key is a `KeyError`; an embedding that is not
    finite, differs in width between tables, or cannot be compared between the rows of its table, a `ValueError`.
    """
    parts = [[check_embedding(table, key) for key in keys] for table in tables]
    if len({tuple(part.shape[1] for part in row) for row in parts}) > 1:
        widths = sorted({sum(part.shape[1] for part in row) for row in parts})
        msg = (
            f"Expected `.obsm[{list(keys)}]` of the same width in all slides, found {widths}. Embed all slides with "
            "the same model: `stimg.tl.embed(adata, model)`."
        )
        raise ValueError(msg)
    for key in keys:
        base = key.removesuffix(_keys.JOINT_SUFFIX)
        if base != key and base in tables[0].obsm and not embedded_together(tables, base):
            msg = (
                f"`adata.obsm[{key!r}]` is not of one call of `stimg.tl.embed` with all of these sections, and cannot "
                "be compared between them. Embed them together, `stimg.tl.embed([first, second, ...])`, or pass "
                f"`use_rep={base!r}`."
            )
            raise ValueError(msg)
        if len(tables) == 1:
            _check_one_run(tables[0], key)
    blocks = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return np.concatenate([_balanced(block) for block in blocks], axis=1) if len(blocks) > 1 else blocks[0]


def embedded_together(tables: Sequence[AnnData], key: str) -> bool:
    """Tell whether all tables have a joint embedding of one call of :func:`stimg.tl.embed`, and no rows from elsewhere.

    A part of the rows may be missing.
    """
    runs = set()
    for table in tables:
        record = read_record(table, _keys.STEP_EMBED, key)
        if key + _keys.JOINT_SUFFIX not in table.obsm or table.n_obs > record.get("n_obs", 0):
            return False
        runs.add(record.get("embedded_together", ""))
    return len(runs) == 1 and "" not in runs


def _check_one_run(table: AnnData, key: str) -> None:
    """Refuse an embedding joined with a slide's own components if its rows come from several runs of `embed`.

    In one run, its first part is the embedding itself, less one mean and over one length. Slides that are joined after
    they were embedded have one of each, and components of their own.
    """
    base = key.removesuffix(_keys.SLIDE_SUFFIX)
    if base == key or base not in table.obsm:
        return
    rows = np.linspace(0, table.n_obs - 1, min(table.n_obs, MOST_COMPARED)).astype(int)
    embedding, joined = (np.asarray(table.obsm[name])[rows].astype(np.float64) for name in (base, key))
    width = embedding.shape[1]
    if joined.shape[1] <= width:  # written by someone else
        return
    embedding, own = embedding - embedding.mean(0), joined[:, :width] - joined[:, :width].mean(0)
    length = (embedding * own).sum() / max((own**2).sum(), 1e-300)
    if np.abs(embedding - length * own).max() > SAME_RUN * np.abs(embedding).max():
        msg = (
            f"`adata.obsm[{key!r}]` comes from several runs of `stimg.tl.embed`, as where slides were joined after it, "
            f"and cannot be compared between them. Pass `use_rep={base!r}`, which can; or run `stimg.pp.to_lattice` "
            "with `library_key`, and `stimg.tl.embed`, on the joined slides."
        )
        raise ValueError(msg)


def joined_coordinates(tables: Sequence[AnnData], spatial_key: str | None) -> np.ndarray:
    """Return the coordinates of all tables, float64 (n_obs, 2), by default those that the lattice was made from."""
    keys = [str(said(table, "spatial_key", spatial_key, _keys.SPATIAL)) for table in tables]
    return np.concatenate([check_coordinates(table, key) for table, key in zip(tables, keys, strict=True)])


def _balanced(block: np.ndarray) -> np.ndarray:
    """Centre the columns and scale them to a total variance of one."""
    block = block - block.mean(0)
    return block / max(float(np.sqrt(block.var(0).sum())), 1e-12)


def principal_components(embedding: np.ndarray, n_components: int) -> np.ndarray:
    """Return the centred embedding, reduced to principal components if it has more than `n_components` dimensions."""
    if n_components == 0 or embedding.shape[1] <= n_components or len(embedding) <= n_components:
        return embedding - embedding.mean(0)
    from sklearn.decomposition import PCA

    solver = "full" if len(embedding) <= MOST_FINISHED else "covariance_eigh"  # the latter needs no second copy
    return PCA(n_components, svd_solver=solver).fit_transform(embedding)
