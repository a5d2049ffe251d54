"""Weigh genes: how often each becomes a channel of a patch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import numpy as np

from stimg import _keys
from stimg._resolve import prepare, resolve_table, write_uns
from stimg._slide import log_normalise, moments
from stimg._validators import (
    check_choice,
    check_expression,
    check_library_key,
    check_obsm,
    check_positive_int,
    check_var_unique,
    get_layer,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData

logger = logging.getLogger("stimg")

MORAN_CANDIDATES = 2


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
    is not changed.

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
        Use exactly these, weighted by variance, instead of choosing.
    layer
        Layer with expression; by default `adata.X`.
    scale
        What it holds: raw `"counts"`, or `"log"`-normalised values.
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
        Unknown layer or genes.
    ValueError
        Duplicated gene names; negative or NaN expression; values that do not fit `scale`; no gene that varies.
    """
    from stimg import __version__

    check_choice("method", method, ("variance", "moran"))
    check_positive_int("n_genes", n_genes)
    if not (np.isfinite(target_sum) and target_sum > 0):
        msg = f"Expected `target_sum` to be a positive number, found {target_sum!r}."
        raise ValueError(msg)
    table = resolve_table(adata, table_key)
    check_var_unique(table)
    if method == "moran":
        check_obsm(table, spatial_key, advice="Give the coordinates' key as `spatial_key`.")
        check_library_key(table, library_key)
    if genes is not None and (unknown := [gene for gene in genes if gene not in table.var_names]):
        msg = f"{len(unknown)} of {len(genes)} `genes` are not in `adata.var_names`: {unknown[:5]}."
        raise KeyError(msg)
    expression = check_expression(get_layer(table, layer), scale, name=f"layers[{layer!r}]" if layer else "X")
    values = log_normalise(expression, target_sum) if scale == "counts" else expression
    variance = moments(values)[1] ** 2
    if genes is not None:
        variance[~table.var_names.isin(list(genes))] = 0
    elif method == "moran":
        variance = _moran(table, values, variance, n_genes, spatial_key, library_key)
    weights = np.zeros(table.n_vars, dtype=np.float32)
    chosen = np.argsort(-variance, kind="stable")[: n_genes if genes is None else None]
    weights[chosen] = variance[chosen]
    count = int((weights > 0).sum())
    if not count:
        msg = "No gene varies over the slide: every weight would be 0. Check `layer` and `scale`."
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
    logger.info("Added .var[%r]: %d of %d genes selected by %s.", key_added, count, table.n_vars, method)
    return result


def _moran(
    table: AnnData,
    values: sparse.csr_array,
    variance: np.ndarray,
    n_genes: int,
    spatial_key: str,
    library_key: str | None,
) -> np.ndarray:
    """Moran's I (0 where negative) of the most variable genes, on an object of their own."""
    import anndata
    import squidpy as sq
    from scipy import sparse

    candidates = np.sort(np.argsort(-variance, kind="stable")[: MORAN_CANDIDATES * n_genes])
    candidates = candidates[variance[candidates] > 0]
    scratch = anndata.AnnData(
        sparse.csr_matrix(values[:, candidates]),
        obs=table.obs[[library_key]].astype("category") if library_key else None,
        var=table.var[[]].iloc[candidates],
        obsm={spatial_key: np.asarray(table.obsm[spatial_key])},
    )
    sq.gr.spatial_neighbors(scratch, spatial_key=spatial_key, library_key=library_key, coord_type="generic", n_neighs=6)
    found = sq.gr.spatial_autocorr(
        scratch, mode="moran", genes=list(scratch.var_names), n_perms=None, show_progress_bar=False, copy=True
    )
    result = np.zeros_like(variance)
    result[candidates] = np.maximum(found["I"].reindex(scratch.var_names).to_numpy(), 0)
    return np.nan_to_num(result)
