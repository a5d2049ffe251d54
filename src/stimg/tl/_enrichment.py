"""Find the cell types that are commoner in a domain than elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._cluster._labels import read_labels
from stimg._cluster._statistics import adjust
from stimg._input._checks import checked
from stimg._input._tables import resolve_table

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

ADDED = 0.5  # to both counts of a ratio, so that it is finite, and near 1 if there are few


@checked
def enrichment(
    adata: AnnData | SpatialData, cell_type_key: str, key: str = _keys.DOMAIN, *, table_key: str | None = None
) -> pd.DataFrame:
    """Find the cell types, or other labels, that are commoner in a domain than in the whole slide.

    Parameters
    ----------
    adata
        A slide after :func:`stimg.tl.domains`.
    cell_type_key
        Column of `.obs` with cell types, or with other labels such as an expert's.
    key
        Column of `.obs` with the domains. Observations that lack a label in one of the columns, or are labelled
        `"unknown"` there, are left out.
    table_key
        Table of a `SpatialData`.

    Returns
    -------
    DataFrame
        One row per domain and cell type: `domain`, `cell_type` (both categorical), `n_obs`, `expected` (number of
        observations if cell types were spread evenly), `share` (of the domain, 0 to 1), `share_overall` (of all),
        `log2_fold` (of `n_obs` over `expected`, with 0.5 added to both), `p_value` (hypergeometric: the chance of at
        least `n_obs` if labels were shuffled) and `p_adjusted` (Benjamini-Hochberg over all rows).

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        Labels that are decimal numbers, no observation with both labels, or the same column twice.

    Notes
    -----
    Neighbouring cells tend to be of one type and of one domain, so that they are not independent and p-values are too
    small; of several samples, compare the shares themselves. For which cell types lie next to each other, whatever the
    domain, use squidpy: `sq.gr.spatial_neighbors(adata)`, then `sq.gr.nhood_enrichment(adata, cell_type_key)`, whose
    null shuffles labels over the graph, or `sq.gr.interaction_matrix`; with domains as the labels, these tell which
    domains touch.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic(n_obs=300, n_genes=20, n_domains=3)
    >>> slide.obs["half"] = np.where(slide.obs["domain"] == "layer1", "top", "rest")
    >>> stimg.tl.enrichment(slide, "half", "domain").nlargest(1, "log2_fold")[["domain", "cell_type"]].values.tolist()
    [['layer1', 'top']]
    """
    from scipy.stats import hypergeom

    if cell_type_key == key:
        msg = f"Expected different columns in `cell_type_key` and `key`, found {key!r} in both."
        raise ValueError(msg)
    table = resolve_table(adata, table_key)
    types = read_labels(table, cell_type_key, argument="cell_type_key", advice="Name a column with cell types.")
    domains = read_labels(table, key)
    both = (types.codes >= 0) & (domains.codes >= 0)
    if not both.any():
        msg = f"Expected observations with a label in both `adata.obs[{cell_type_key!r}]` and `[{key!r}]`, found none."
        raise ValueError(msg)
    shape = len(domains.categories), len(types.categories)
    counts = np.zeros(shape, dtype=np.int64)
    np.add.at(counts, (domains.codes[both], types.codes[both]), 1)
    total, of_domain, of_type = counts.sum(), counts.sum(1, keepdims=True), counts.sum(0, keepdims=True)
    expected = of_domain * of_type / total
    domain, cell_type = (grid.ravel() for grid in np.indices(shape))
    p_values = hypergeom.sf(counts - 1, total, of_type, of_domain).ravel()
    found = pd.DataFrame(
        {
            "domain": pd.Categorical.from_codes(domain, domains.categories),
            "cell_type": pd.Categorical.from_codes(cell_type, types.categories),
            "n_obs": counts.ravel(),
            "expected": expected.ravel(),
            "share": (counts / np.maximum(of_domain, 1)).ravel(),
            "share_overall": np.tile(of_type.ravel() / total, shape[0]),
            "log2_fold": np.log2((counts + ADDED) / (expected + ADDED)).ravel(),
            "p_value": np.clip(p_values, 0, 1),
        }
    )
    return found.assign(p_adjusted=adjust(found["p_value"].to_numpy()))
