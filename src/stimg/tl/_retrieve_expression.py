"""Predict expression from H&E by retrieval."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stimg import _keys
from stimg._apply._nearest import nearest, pair_embeddings
from stimg._data._targets import TARGET_SUM, expression_of
from stimg._input._checks import check_positive, check_positive_int, checked
from stimg._input._predictions import distinct_genes, write_prediction
from stimg._input._rows import read_expression
from stimg._input._tables import prepare, resolve_table
from stimg._slide._gene_match import columns_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("stimg")


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
    """Predict expression from H&E by averaging the reference spots that match each spot best (after BLEEP).

    Parameters
    ----------
    adata
        A slide after :func:`stimg.tl.embed_pairs`. Its own expression is not used.
    reference
        Slides with raw counts after :func:`stimg.tl.embed_pairs` with the same model.
    genes
        Genes to predict; they must be in `adata` and in every reference, by their names in `.var_names` or
        their symbols.
    n_neighbors
        Number of reference spots to average.
    temperature
        Their weights are proportional to exp(cosine / temperature).
    layer
        Layer of the references with raw counts; `.X` by default.
    query_rep, use_rep
        Embeddings in `.obsm` of `adata` and of the references.
    key_added
        Key of the result.
    table_key, copy
        Table of a `SpatialData`; whether to return a changed copy and leave `adata` as it is.

    Returns
    -------
    `None` (or the copy), with
    `.obsm[key_added]` : DataFrame, float32 (n_obs, n_genes), log-normalised expression (counts per 10,000), with a
    column for each of `genes`; NaN for spots outside the image.
    `.uns["stimg"]["retrieve_expression"]` : parameters.

    Raises
    ------
    KeyError
        An embedding or a gene is missing.
    ValueError
        Embeddings with different numbers of columns, references without raw counts, or a bad argument.

    References
    ----------
    Xie et al. 2023, BLEEP, arXiv 2306.01859.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic_histology(n_rows=6, n_cols=6), "st", copy=True)
    >>> model = stimg.tl.align(stimg.pp.to_image_patches(slide), max_steps=2)
    >>> stimg.tl.embed_pairs(slide, model)
    >>> left = stimg.tl.retrieve_expression(slide[:18], slide[18:], ["Gene0", "Gene3"], n_neighbors=5, copy=True)
    >>> left.obsm["stimg_retrieved"].shape
    (18, 2)
    """
    check_positive_int("n_neighbors", n_neighbors)
    check_positive("temperature", temperature)
    table = resolve_table(adata, table_key, copy=copy)
    queries = pair_embeddings([table], query_rep)
    given = list(reference) if isinstance(reference, list | tuple) else [reference]
    if not given:
        msg = "Expected at least one slide in `reference`, found an empty list."
        raise ValueError(msg)
    tables = [resolve_table(slide, table_key) for slide in given]
    wanted = distinct_genes(genes)
    columns = [columns_of(one, wanted) for one in (table, *tables)]
    if absent := [str(gene) for gene, *found in zip(wanted, *columns, strict=True) if min(found) < 0]:
        msg = f"{len(absent)} of `genes` are not in every slide ({absent[:3]}, ...). Pass genes that all slides have."
        raise KeyError(msg)
    searched = pair_embeddings(tables, use_rep)
    counts = [read_expression(one, layer, "counts") for one in tables]
    values = [expression_of(*pair, TARGET_SUM) for pair in zip(counts, columns[1:], strict=True)]
    best, similarity = nearest(queries, searched, n_neighbors)
    weight = np.exp((similarity - similarity.max(1, keepdims=True)) / temperature)
    weight /= weight.sum(1, keepdims=True)
    starts = np.arange(len(best) + 1) * best.shape[1]
    averaging = sparse.csr_array((weight.ravel(), best.ravel(), starts), shape=(len(best), len(searched)))
    predicted = averaging @ np.concatenate(values)
    table, result = prepare(adata, table_key, copy)
    record = {"n_neighbors": n_neighbors, "temperature": temperature, "n_slides": len(tables)}
    write_prediction(table, _keys.STEP_RETRIEVE, key_added, predicted, table.var_names[columns[0]], record)
    logger.info("Added .obsm[%r]: %d genes of %d spots.", key_added, len(wanted), table.n_obs)
    return result
