"""Search slides for images by expression, or for expression by images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._apply._nearest import nearest, pair_embeddings
from stimg._input._checks import check_names, check_positive_int, checked
from stimg._input._tables import resolve_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike
    from spatialdata import SpatialData


@checked
def retrieve(
    query: AnnData | SpatialData | ArrayLike,
    slides: AnnData | SpatialData | Sequence[AnnData | SpatialData],
    *,
    n_results: int = 10,
    query_rep: str = _keys.GENE_EMBEDDING,
    use_rep: str = _keys.IMAGE_EMBEDDING,
    names: Sequence[str] | None = None,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Find the spots of one or many slides that match a query best.

    Parameters
    ----------
    query
        A slide, in which each spot is a query with its `.obsm[query_rep]`; or embeddings of shape (n, dim) or (dim,),
        such as that of a gene signature (:meth:`stimg.models.AlignmentModel.encode_signature`).
    slides
        Slides to search, after :func:`stimg.tl.embed_pairs`.
    n_results
        Number of results per query, the best first.
    query_rep, use_rep
        Embeddings in `.obsm` of the query and of the slides. By default expression finds images; swap them for the
        reverse.
    names
        One name per slide. By default `slide0`, `slide1`, ...
    table_key
        Table of a `SpatialData`.

    Returns
    -------
    DataFrame
        One row per query and result: `query` (its name or number), `rank` from 1, `slide`, `obs` (name of the spot),
        `index` (its row) and `similarity`, the cosine. Spots without an embedding (NaN: outside the image) are neither
        queries nor results.

    Raises
    ------
    KeyError
        An embedding is missing.
    ValueError
        Embeddings with different numbers of columns, or a bad argument.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic_histology(n_rows=6, n_cols=6), "st", copy=True)
    >>> model = stimg.tl.align(stimg.pp.to_image_patches(slide), max_steps=2)
    >>> stimg.tl.embed_pairs(slide, model)
    >>> list(stimg.tl.retrieve(model.encode_signature(["Gene0", "Gene3"]), slide, n_results=3)["rank"])
    [1, 2, 3]
    """
    check_positive_int("n_results", n_results)
    given = list(slides) if isinstance(slides, list | tuple) else [slides]
    if not given:
        msg = "Expected at least one slide in `slides`, found an empty list."
        raise ValueError(msg)
    if names is not None:
        check_names("names", names, len(given))
    tables = [resolve_table(slide, table_key) for slide in given]
    searched = pair_embeddings(tables, use_rep)
    if hasattr(query, "obsm") or hasattr(query, "tables"):
        asked = resolve_table(query, table_key)  # type: ignore[arg-type]
        wanted = pair_embeddings([asked], query_rep)
        embedded = np.isfinite(wanted).all(1)
        wanted, labels = wanted[embedded], asked.obs_names.to_numpy()[embedded]
    else:
        wanted = np.atleast_2d(np.asarray(query, dtype=np.float32))
        labels = np.arange(len(wanted))
    best, similarity = nearest(wanted, searched, n_results)
    slide = np.repeat(np.arange(len(tables)), [table.n_obs for table in tables])
    row = np.concatenate([np.arange(table.n_obs) for table in tables])
    named = np.array([f"slide{i}" for i in range(len(tables))] if names is None else list(names), dtype=object)
    spots = np.concatenate([table.obs_names.to_numpy() for table in tables])
    found = best.ravel()
    return pd.DataFrame(
        {
            "query": np.repeat(labels, best.shape[1]),
            "rank": np.tile(np.arange(1, best.shape[1] + 1), len(best)),
            "slide": named[slide[found]],
            "obs": spots[found],
            "index": row[found],
            "similarity": similarity.ravel(),
        }
    )
