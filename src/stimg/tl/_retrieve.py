"""Find spots by their other side: images by expression, expression by images."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._input._checks import (
    check_expression,
    check_gene_list,
    check_names,
    check_obsm,
    check_positive,
    check_positive_int,
    checked,
    get_layer,
)
from stimg._input._tables import prepare, resolve_table, write_uns
from stimg._slide._values import log_normalise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import ArrayLike
    from spatialdata import SpatialData

logger = logging.getLogger("stimg")

CHUNK = 1024
TARGET_SUM = 1e4
ADVICE = "Run `stimg.tl.embed_pairs(adata, model)` first."


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
    """Find the spots of many slides that match a query best.

    Parameters
    ----------
    query
        A slide, each spot of which is a query by `.obsm[query_rep]`; or embeddings of shape (n, dim) or (dim,), such as
        a gene signature's (:meth:`stimg.models.AlignmentModel.encode_signature`).
    slides
        Slides with :func:`stimg.tl.embed_pairs` done, which are searched.
    n_results
        Spots a query, the best first.
    query_rep, use_rep
        Embeddings in `.obsm` of the query and of the slides. By default expression finds images; exchange them for the
        reverse.
    names
        One name a slide. By default `slide0`, `slide1`, ...
    table_key
        Table of a `SpatialData`.

    Returns
    -------
    DataFrame
        One row a query and result: `query` (its name or number), `rank` from 1, `slide`, `obs` (name of the spot),
        `index` (its row) and `similarity`, the cosine.

    Raises
    ------
    KeyError
        An embedding is missing.
    ValueError
        Embeddings of different widths, or a bad argument.
    """
    check_positive_int("n_results", n_results)
    given = list(slides) if isinstance(slides, list | tuple) else [slides]
    if not given:
        msg = "Expected at least one slide in `slides`, found an empty list."
        raise ValueError(msg)
    if names is not None:
        check_names("names", names, len(given))
    tables = [resolve_table(slide, table_key) for slide in given]
    for table in tables:
        check_obsm(table, use_rep, advice=ADVICE)
    if hasattr(query, "obsm") or hasattr(query, "tables"):
        asked = resolve_table(query, table_key)  # type: ignore[arg-type]
        check_obsm(asked, query_rep, advice=ADVICE)
        wanted, labels = np.asarray(asked.obsm[query_rep]), asked.obs_names.to_numpy()
    else:
        wanted = np.atleast_2d(np.asarray(query, dtype=np.float32))
        labels = np.arange(len(wanted))
    searched = np.concatenate([np.asarray(table.obsm[use_rep]) for table in tables])
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


@checked
def retrieve_expression(
    adata: AnnData | SpatialData,
    reference: AnnData | SpatialData | Sequence[AnnData | SpatialData],
    genes: Sequence[str],
    *,
    n_neighbors: int = 50,
    temperature: float = 0.05,
    layer: str | None = None,
    query_rep: str = _keys.IMAGE_EMBEDDING,
    use_rep: str = _keys.GENE_EMBEDDING,
    key_added: str = _keys.RETRIEVED,
    table_key: str | None = None,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Predict expression of spots from their H&E as that of the reference spots that match best (after BLEEP).

    Parameters
    ----------
    adata
        A slide with :func:`stimg.tl.embed_pairs` done. Its own expression is not looked at.
    reference
        Slides with raw counts and :func:`stimg.tl.embed_pairs` done, by the same model.
    genes
        Genes to predict; they must be in `adata` and in every reference.
    n_neighbors
        Reference spots averaged.
    temperature
        Their weights are proportional to exp(cosine / temperature).
    layer
        Layer of the references with raw counts; `.X` by default.
    query_rep, use_rep
        Embeddings in `.obsm` of `adata` and of the references.
    key_added
        Key of the layer.
    table_key
        Table of a `SpatialData`.
    copy
        Return a changed copy and leave `adata` as it is.

    Returns
    -------
    `None` (or the copy), with
    `.layers[key_added]` : float32, dense (n_obs, n_vars), log-normalised expression (counts per 10,000); NaN for other
    genes.
    `.uns["stimg"]["retrieve_expression"]` : parameters.

    Raises
    ------
    KeyError
        An embedding or a gene is missing.
    ValueError
        Embeddings of different widths, references without raw counts, or a bad argument.

    References
    ----------
    Xie et al. 2023, BLEEP, arXiv 2306.01859.
    """
    check_positive_int("n_neighbors", n_neighbors)
    check_positive("temperature", temperature)
    table = resolve_table(adata, table_key, copy=copy)
    check_obsm(table, query_rep, advice=ADVICE)
    given = list(reference) if isinstance(reference, list | tuple) else [reference]
    tables = [resolve_table(slide, table_key) for slide in given]
    check_gene_list(genes)
    wanted = list(genes)
    for one in (table, *tables):
        if absent := [gene for gene in wanted if gene not in one.var_names]:
            msg = f"{len(absent)} of `genes` are not in every slide ({absent[:3]}, ...). Name genes that all have."
            raise KeyError(msg)
    values = []
    for one in tables:
        check_obsm(one, use_rep, advice=ADVICE)
        name = f"layers[{layer!r}]" if layer else "X"
        counts = check_expression(get_layer(one, layer), "counts", name=name)
        values.append(log_normalise(counts, TARGET_SUM)[:, one.var_names.get_indexer(wanted)].toarray())
    searched = np.concatenate([np.asarray(one.obsm[use_rep]) for one in tables])
    best, similarity = nearest(np.asarray(table.obsm[query_rep]), searched, n_neighbors)
    weight = np.exp((similarity - similarity.max(1, keepdims=True)) / temperature)
    weight /= weight.sum(1, keepdims=True)
    predicted = np.einsum("nk,nkg->ng", weight, np.concatenate(values)[best])
    table, result = prepare(adata, table_key, copy)
    found = np.full(table.shape, np.nan, dtype=np.float32)
    found[:, table.var_names.get_indexer(wanted)] = predicted
    table.layers[key_added] = found
    record = {"key_added": key_added, "n_neighbors": n_neighbors, "temperature": temperature, "n_slides": len(tables)}
    write_uns(table, _keys.STEP_RETRIEVE, record)
    logger.info("Added .layers[%r]: %d genes of %d spots.", key_added, len(wanted), table.n_obs)
    return result


def nearest(queries: np.ndarray, searched: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows with the largest cosine, int64 (n_queries, number), best first, and the cosine; computed in chunks."""
    import torch

    if queries.ndim != 2 or queries.shape[1] != searched.shape[1]:
        msg = (
            f"Expected queries and slides in one space, found embeddings of shape {queries.shape} and "
            f"{searched.shape}. Embed both with the same model."
        )
        raise ValueError(msg)
    number = min(number, len(searched))
    unit = torch.nn.functional.normalize(torch.from_numpy(searched.astype(np.float32)), dim=1)
    asked = torch.nn.functional.normalize(torch.from_numpy(queries.astype(np.float32)), dim=1)
    found = [torch.topk(part @ unit.T, number, dim=1) for part in asked.split(CHUNK)]
    return torch.cat([one.indices for one in found]).numpy(), torch.cat([one.values for one in found]).numpy()
