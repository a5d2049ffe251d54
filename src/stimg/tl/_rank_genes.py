"""Rank the genes that tell each domain from the rest of the slide."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._cluster._labels import read_labels, spaced_rows
from stimg._input._checks import check_choice, check_positive_int, check_var_unique, checked, warn
from stimg._input._records import read_record, said_expression, write_record
from stimg._input._tables import prepare, resolve_table
from stimg._slide._gene_match import gene_names
from stimg._slide._read import read_log_rows

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData

logger = logging.getLogger("stimg")

METHODS = ("wilcoxon", "t-test")
MOST_RANKED = 20_000
FEWEST_OF_A_DOMAIN = 1000
COLUMNS = {
    "group": "domain",
    "names": "gene",
    "scores": "score",
    "logfoldchanges": "log2_fold_change",
    "pvals_adj": "p_adjusted",
    "pct_nz_group": "share_inside",
    "pct_nz_reference": "share_outside",
}  # scanpy's names, and those of the table


@checked
def rank_genes(
    adata: AnnData | SpatialData,
    key: str = _keys.DOMAIN,
    *,
    n_genes: int | None = 100,
    method: Literal["wilcoxon", "t-test"] = "wilcoxon",
    layer: str | None = None,
    scale: Literal["counts", "log"] | None = None,
    key_added: str = _keys.RANKED,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Rank genes by how well they tell each domain from all others.

    This is `scanpy.tl.rank_genes_groups` on log-normalised values, which are computed from the recorded layer and
    scale; expression in `adata` stays as it is.

    Parameters
    ----------
    adata
        A slide after :func:`stimg.tl.domains`, or with other labels in `.obs`.
    key
        Column of `.obs` with the domains. Observations without a label, or labelled `"unknown"`, are left out.
    n_genes
        Number of genes per domain that are kept, the best first; `None` for all.
    method
        `"wilcoxon"`, the rank-sum test with correction for ties, or `"t-test"` (Welch), which is much faster.
    layer, scale
        Layer with expression, and whether it holds raw `"counts"` or `"log"`-normalised values. By default those given
        to :func:`stimg.pp.select_genes`, else counts in `.X`. It may be backed or lazy.
    key_added
        Key of the result in `.uns`.
    table_key
        Table of a `SpatialData`.

    Returns
    -------
    DataFrame
        One row per domain and gene, by domain and rank: `domain` (categorical), `gene` (as in `.var_names`), `symbol`
        (only where it is another), `score` (z of the rank-sum test, or t), `log2_fold_change` (of mean expression, from
        means of logarithms, as scanpy computes it), `p_adjusted` (Benjamini-Hochberg, over all genes), `share_inside`
        and `share_outside` (0 to 1), the share of observations in the domain, and in all others, that express the gene.

    Also written are
    `.uns[key_added]` : what scanpy writes, for `scanpy.get.rank_genes_groups_df` and scanpy's plots.
    `.uns["stimg"]["rank_genes"]` : parameters, `domains` and `n_obs`, the number of observations of each.

    Raises
    ------
    KeyError
        No column `key`, or no such layer.
    ValueError
        Fewer than two domains with at least two observations each; labels that are numbers; duplicated gene names;
        expression that does not fit `scale`; something else in `.uns[key_added]`; a bad argument.

    Warns
    -----
    UserWarning
        Domains of a single observation, which are not ranked.

    Notes
    -----
    **Use p-values for ranking only.** Domains that were found by clustering the same expression differ in some genes by
    construction, and neighbouring spots are not independent, so that p-values are far too small ("double dipping"; Gao
    et al. 2024, J Am Stat Assoc 119:332). Of more than 20,000 labelled observations, about that many are ranked, evenly
    spaced along the rows of each domain, with at least 1,000 of each.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic(n_obs=300, n_genes=60)
    >>> best = stimg.tl.rank_genes(slide, "domain", n_genes=5)
    >>> list(best["domain"].cat.categories), len(best)
    (['layer1', 'layer2', 'layer3', 'layer4', 'layer5'], 25)
    >>> list(best.columns[:4])
    ['domain', 'gene', 'score', 'log2_fold_change']
    """
    check_choice("method", method, METHODS)
    if n_genes is not None:
        check_positive_int("n_genes", n_genes)
    table = resolve_table(adata, table_key)
    check_var_unique(table)
    labels = read_labels(table, key)
    domains = _ranked_domains(labels, key)
    _check_own(table, key_added)
    layer, scale_ = said_expression(table, layer, scale)
    target_sum = float(read_record(table, _keys.STEP_GENES).get("target_sum", 1e4))
    rows = spaced_rows(labels.codes, MOST_RANKED, FEWEST_OF_A_DOMAIN)
    logger.info("Ranking %d genes over %d observations by %s.", table.n_vars, len(rows), method)
    values = read_log_rows(table, layer, scale_, target_sum, rows)
    log1p = table.uns.get("log1p") if scale_ == "log" else None  # its base is that of the logarithms
    best, result = _rank(values, table.var_names, labels[rows], domains, key, n_genes, method, log1p)
    symbols = pd.Series(gene_names(table, None), index=table.var_names)
    if (symbols != symbols.index).any():
        best.insert(2, "symbol", symbols[best["gene"]].to_numpy())
    table, _ = prepare(adata, table_key, False)
    table.uns[key_added] = result
    record = {
        "key": key,
        "method": method,
        "layer": layer or "",
        "scale": scale_,
        "target_sum": target_sum,
        "n_genes": len(best) // len(domains),
        "n_ranked": len(rows),
        "domains": np.array(labels.categories, dtype=object),
        "n_obs": np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.categories)),
    }
    write_record(table, _keys.STEP_RANK, key_added, record)
    left_out = int((labels.codes < 0).sum())
    logger.info(
        "Added .uns[%r]: %d genes for each of %d domains, by %s over %d observations (%d without a label left out).",
        key_added,
        record["n_genes"],
        len(domains),
        method,
        len(rows),
        left_out,
    )
    return best


def _ranked_domains(labels: pd.Categorical, key: str) -> list[str]:
    """Return the domains of at least two observations, of which there must be two; warn of others."""
    counts = labels.value_counts()
    domains = [str(name) for name in counts.index[counts >= 2]]
    if len(domains) < 2:
        msg = (
            f"Expected at least two domains of two or more observations in `adata.obs[{key!r}]`, found {len(domains)} "
            f"among {[str(name) for name in counts.index[:5]]}. Genes are ranked by how well they tell one domain from "
            "the others: find more domains."
        )
        raise ValueError(msg)
    if len(domains) < len(counts):
        lone = [str(name) for name in counts.index[counts < 2]]
        warn(f"Domains of a single observation are not ranked: {lone[:5]}. They only count among the others.")
    return domains


def _check_own(table: AnnData, key: str) -> None:
    """Refuse to overwrite what is no ranking of genes."""
    found = table.uns.get(key)
    ranked = isinstance(found, Mapping) and {"params", "names"} <= set(found)
    if key != _keys.UNS and (found is None or ranked):
        return
    msg = f"`adata.uns[{key!r}]` is the place of something else than ranked genes. Pass another `key_added`."
    raise ValueError(msg)


def _rank(
    values: sparse.csr_array,
    genes: pd.Index,
    labels: pd.Categorical,
    domains: list[str],
    key: str,
    n_genes: int | None,
    method: str,
    log1p: dict[str, Any] | None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the table of genes, and what scanpy writes to `.uns`."""
    import scanpy as sc
    from anndata import AnnData
    from scipy import sparse

    obs = pd.DataFrame({key: labels}, index=pd.RangeIndex(len(labels)).astype(str))
    # Columns are sliced, rows are not.
    logs = AnnData(sparse.csc_matrix(values), obs=obs, var=pd.DataFrame(index=genes))
    logs.uns["log1p"] = log1p or {}
    with np.errstate(invalid="ignore"), warnings.catch_warnings():  # of genes that are constant, and of many domains
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
        ties = {"tie_correct": True} if method == "wilcoxon" else {}
        sc.tl.rank_genes_groups(logs, key, groups=domains, n_genes=n_genes, method=method, pts=True, **ties)
    found = sc.get.rank_genes_groups_df(logs, None).rename(columns=COLUMNS)[list(COLUMNS.values())]
    found["domain"] = pd.Categorical(found["domain"].astype(str), categories=domains)
    result = {name: value for name, value in logs.uns["rank_genes_groups"].items() if not name.startswith("pts")}
    return found, result  # names of domains may have slashes, which tables of shares could not be saved with
