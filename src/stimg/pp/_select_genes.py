"""Weigh genes: how often each becomes a channel of a patch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import numpy as np

from stimg import _keys
from stimg._input._checks import (
    check_choice,
    check_coordinates,
    check_gene_list,
    check_library_key,
    check_positive_int,
    check_var_unique,
    checked,
    get_layer,
)
from stimg._input._rows import checked_rows, row_blocks
from stimg._input._tables import prepare, resolve_table, write_uns
from stimg._slide._slide import log_normalise, moments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData

logger = logging.getLogger("stimg")

MORAN_CANDIDATES = 2
NEIGHBOURS = 6


@checked
def select_genes(
    adata: AnnData | SpatialData,
    n_genes: int = 2000,
    *,
    method: Literal["variance", "moran"] = "variance",
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    scale: Literal["counts", "log"] = "counts",
    target_sum: float = 1e4,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    key_added: str = _keys.WEIGHT,
    table_key: str | None = None,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Give every gene a channel sampling weight.

    The weight is the variance of log-normalised expression (counts per `target_sum`, log1p) over the slide, as in Zhu
    et al. 2026 (arXiv 2603.13432), of the `n_genes` with the highest, and 0 for the rest. Expression stays sparse and
    is not changed. Observations without counts stay zero when they are normalised; genes without counts get weight 0.

    Parameters
    ----------
    adata
        A slide.
    n_genes
        Genes with a weight above 0; fewer where fewer vary.
    method
        `"variance"`, or `"moran"`: Moran's I by squidpy among the `2 * n_genes` most variable genes; the weight is
        the I of those above 0.
    genes
        Use exactly these, weighted by variance, instead of choosing; `n_genes` and `method` do not count then.
    layer
        Layer with expression; by default `adata.X`.
    scale
        What it holds: raw `"counts"`, or `"log"`-normalised values. Checked, never guessed.
    target_sum
        Counts an observation is normalised to.
    spatial_key, library_key
        Coordinates and sections for `method="moran"`.
    key_added
        Key of the weights in `.var`.
    table_key
        Table of a `SpatialData`.
    copy
        Return a changed copy and leave `adata` as it is.

    Returns
    -------
    `None` (or the copy), with
    `.var[key_added]` : float32. Channel sampling weight, 0 for genes that are not selected.
    `.uns["stimg"]["select_genes"]` : parameters; :func:`stimg.pp.to_patches` reads the scale and layer here.

    Raises
    ------
    KeyError
        Unknown layer, genes, table, or coordinates.
    TypeError
        `genes` is one string, or expression is not numeric or not in memory.
    ValueError
        Duplicated gene names; negative or NaN expression; values that do not fit `scale`; no gene that varies; fewer
        observations than Moran's I needs.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic("visium", seed=0)
    >>> stimg.pp.select_genes(slide, n_genes=200)
    >>> int((slide.var["stimg_weight"] > 0).sum())
    200
    """
    from stimg import __version__

    check_choice("method", method, ("variance", "moran"))
    check_positive_int("n_genes", n_genes)
    if not (np.isfinite(target_sum) and target_sum > 0):
        msg = f"Expected `target_sum` to be a positive number, found {target_sum!r}."
        raise ValueError(msg)
    table = resolve_table(adata, table_key, copy=copy)
    check_var_unique(table)
    if method == "moran":
        check_coordinates(table, spatial_key)
        check_library_key(table, library_key)
    if genes is not None:
        _check_genes(table, genes)
    values = get_layer(table, layer)

    def log_blocks() -> Iterator[sparse.csr_array]:
        for block in checked_rows(values, scale, name=f"layers[{layer!r}]" if layer else "X"):
            for _, part in row_blocks(block):
                yield log_normalise(part, target_sum) if scale == "counts" else part

    variance = moments(log_blocks())[1] ** 2
    if genes is not None:
        wanted = table.var_names.isin(list(genes))
        if flat := int((wanted & (variance == 0)).sum()):
            logger.info("%d of the given genes do not vary over the slide and get weight 0.", flat)
        variance[~wanted] = 0
    elif method == "moran":
        variance = _moran(table, log_blocks, variance, n_genes, spatial_key, library_key)
    weights = np.zeros(table.n_vars, dtype=np.float32)
    chosen = np.argsort(-variance, kind="stable")[: n_genes if genes is None else None]
    weights[chosen] = variance[chosen]
    count = int((weights > 0).sum())
    if not count:
        msg = (
            "Expected genes that vary over the slide, found none"
            f"{' with a Moran statistic above 0' if method == 'moran' else ''}: every weight would be 0. Check "
            "`layer`, `scale` and `genes`."
        )
        raise ValueError(msg)
    table, result = prepare(adata, table_key, copy)
    table.var[key_added] = weights
    write_uns(
        table,
        _keys.STEP_GENES,
        {
            "method": "genes" if genes is not None else method,
            "n_genes": count,
            "layer": layer or "",
            "scale": scale,
            "target_sum": float(target_sum),
            "key_added": key_added,
            "version": __version__,
        },
    )
    logger.info(
        "Added .var[%r]: %d of %d genes selected by %s%s.",
        key_added,
        count,
        table.n_vars,
        "list" if genes is not None else method,
        f" ({n_genes} asked for)" if genes is None and count < n_genes else "",
    )
    return result


def _check_genes(table: AnnData, genes: Sequence[str]) -> None:
    """Refuse a list of genes that is none, is empty, or has unknown ones."""
    check_gene_list(genes)
    if not len(genes):
        msg = "Expected gene names in `genes`, found none. Leave it out to select by `method`."
        raise ValueError(msg)
    if unknown := [gene for gene in genes if gene not in table.var_names]:
        msg = (
            f"{len(unknown)} of {len(genes)} `genes` are not in `adata.var_names`: {unknown[:5]}. Expected names like "
            f"{list(table.var_names[:3])}."
        )
        raise KeyError(msg)


def _moran(
    table: AnnData,
    log_blocks: Callable[[], Iterator[sparse.csr_array]],
    variance: np.ndarray,
    n_genes: int,
    spatial_key: str,
    library_key: str | None,
) -> np.ndarray:
    """Moran's I (0 where negative) of the most variable genes, on an object of their own."""
    import anndata
    import squidpy as sq
    from scipy import sparse

    graph = _neighbours(check_coordinates(table, spatial_key), table.obs[library_key] if library_key else None)
    candidates = np.sort(np.argsort(-variance, kind="stable")[: MORAN_CANDIDATES * n_genes])
    candidates = candidates[variance[candidates] > 0]
    result = np.zeros_like(variance)
    if not len(candidates):
        return result
    scratch = anndata.AnnData(
        sparse.csr_matrix(sparse.vstack([block[:, candidates] for block in log_blocks()])),
        var=table.var[[]].iloc[candidates],
        obsp={"spatial_connectivities": graph},
    )
    found = sq.gr.spatial_autocorr(
        scratch, mode="moran", genes=list(scratch.var_names), n_perms=None, show_progress_bar=False, copy=True
    )
    result[candidates] = np.maximum(found["I"].reindex(scratch.var_names).to_numpy(), 0)
    return np.nan_to_num(result)


def _neighbours(coordinates: np.ndarray, libraries: pd.Series | None) -> sparse.csr_matrix:
    """Graph float64 (n_obs, n_obs) of each observation's nearest six, within its library."""
    from scipy import sparse
    from scipy.spatial import cKDTree

    n_obs = len(coordinates)
    codes = np.zeros(n_obs, dtype=int) if libraries is None else libraries.astype("category").cat.codes.to_numpy()
    columns = np.empty((n_obs, NEIGHBOURS), dtype=np.int64)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        if len(rows) <= NEIGHBOURS:
            msg = (
                f"Expected more than {NEIGHBOURS} observations in every library for `method='moran'`, found "
                f"{len(rows)}. Use `method='variance'`."
            )
            raise ValueError(msg)
        near = cKDTree(coordinates[rows]).query(coordinates[rows], k=NEIGHBOURS + 1)[1]
        # Itself comes first, unless others lie on the same coordinates.
        itself = near == np.arange(len(rows))[:, None]
        itself[~itself.any(1), -1] = True
        columns[rows] = rows[near[~itself].reshape(len(rows), NEIGHBOURS)]
    indptr = np.arange(0, n_obs * NEIGHBOURS + 1, NEIGHBOURS)
    return sparse.csr_matrix((np.ones(columns.size), columns.ravel(), indptr), shape=(n_obs, n_obs))
