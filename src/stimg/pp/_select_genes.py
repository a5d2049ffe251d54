"""Choose genes, and how often each becomes a channel of a patch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import numpy as np

from stimg import _keys
from stimg._input._checks import (
    check_choice,
    check_coordinates,
    check_gene_list,
    check_positive,
    check_positive_int,
    check_var_unique,
    checked,
    get_layer,
)
from stimg._input._records import said, section_codes, write_record
from stimg._input._rows import checked_rows, row_blocks
from stimg._input._tables import prepare, resolve_table
from stimg._slide._moran import morans_i, neighbour_graph
from stimg._slide._values import log_normalise, moments

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData

logger = logging.getLogger("stimg")

MORAN_CANDIDATES = 2


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
    spatial_key: str | None = None,
    library_key: str | None = None,
    key_added: str = _keys.WEIGHT,
    table_key: str | None = None,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Give every gene a weight: its chance to become a channel of a patch.

    The `n_genes` genes whose log-normalised expression (counts per `target_sum`, log1p) varies most over the slide get
    this variance as their weight, as in Zhu et al. 2026 (arXiv 2603.13432), and all others get 0. Expression stays
    sparse and is not changed. Observations without counts stay zero when they are normalised.

    Parameters
    ----------
    adata
        A slide.
    n_genes
        Number of genes with a weight above 0; there are fewer if fewer vary.
    method
        `"variance"`, or `"moran"`: the `n_genes` with the highest Moran's I (by scanpy) among the `2 * n_genes` most
        variable genes; the weight is Moran's I where it is above 0.
    genes
        Use exactly these genes, weighted by their variance. `n_genes` and `method` are then ignored.
    layer
        Layer with expression; `.X` by default.
    scale
        What it holds: raw `"counts"`, or `"log"`-normalised values. Checked, never guessed.
    target_sum
        Total to which the counts of each observation are normalised.
    spatial_key, library_key
        Coordinates in `.obsm` and sections in `.obs` for `method="moran"`; by default those given to
        :func:`stimg.pp.to_lattice`.
    key_added
        Key of the weights in `.var`.
    table_key, copy
        Table of a `SpatialData`; whether to return a changed copy and leave `adata` as it is.

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
    check_choice("method", method, ("variance", "moran"))
    check_positive_int("n_genes", n_genes)
    check_positive("target_sum", target_sum)
    table = resolve_table(adata, table_key, copy=copy)
    check_var_unique(table)
    graph = None
    if genes is not None:
        _check_genes(table, genes)
    elif method == "moran":
        coordinates = check_coordinates(table, str(said(table, "spatial_key", spatial_key, _keys.SPATIAL)))
        graph = neighbour_graph(coordinates, section_codes([table], library_key))
    values = get_layer(table, layer)

    def log_blocks() -> Iterator[sparse.csr_array]:
        for block in checked_rows(values, scale, name=_keys.matrix_name(layer)):
            for _, part in row_blocks(block):
                yield log_normalise(part, target_sum) if scale == "counts" else part

    variance = moments(log_blocks())[1] ** 2
    if genes is not None:
        wanted = table.var_names.isin(list(genes))
        if flat := int((wanted & (variance == 0)).sum()):
            logger.info("%d of the given genes do not vary over the slide and get weight 0.", flat)
        variance[~wanted] = 0
    elif graph is not None:
        candidates = np.sort(np.argsort(-variance, kind="stable")[: MORAN_CANDIDATES * n_genes])
        candidates = candidates[variance[candidates] > 0]
        variance = np.zeros_like(variance)
        if len(candidates):
            variance[candidates] = morans_i(log_blocks(), graph, candidates)
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
    write_record(
        table,
        _keys.STEP_GENES,
        key_added,
        {
            "method": method if genes is None else "genes",
            "n_genes": count,
            "layer": layer or "",
            "scale": scale,
            "target_sum": float(target_sum),
        },
    )
    logger.info(
        "Added .var[%r]: %d of %d genes selected by %s%s.",
        key_added,
        count,
        table.n_vars,
        method if genes is None else "list",
        f" ({n_genes} asked for)" if genes is None and count < n_genes else "",
    )
    return result


def _check_genes(table: AnnData, genes: Sequence[str]) -> None:
    """Refuse what is not a list of genes, an empty list, and unknown genes."""
    check_gene_list(genes)
    if not len(genes):
        msg = "Expected gene names in `genes`, found an empty list. Leave it out to select genes by `method`."
        raise ValueError(msg)
    if unknown := [gene for gene in genes if gene not in table.var_names]:
        msg = (
            f"{len(unknown)} of {len(genes)} `genes` are not in `adata.var_names`: {unknown[:5]}. Expected names like "
            f"{list(table.var_names[:3])}."
        )
        raise KeyError(msg)
