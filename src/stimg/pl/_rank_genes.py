"""Draw the best genes of each domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._cluster._labels import read_labels
from stimg._input._checks import check_positive_int, checked
from stimg._input._records import read_record
from stimg._input._tables import resolve_table
from stimg._slide._gene_match import gene_names
from stimg._slide._read import read_log_rows

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

LETTER = 0.1  # inches of a letter in a name of a domain
WIDTH, HEIGHT = 0.37, 0.35  # inches of a column and a row of scanpy's dots
AGAIN = "Run `stimg.tl.rank_genes(adata)` again."


@checked
def rank_genes(
    adata: AnnData | SpatialData,
    key: str = _keys.RANKED,
    *,
    n_genes: int = 4,
    title: str | None = None,
    ax: Axes | None = None,
    table_key: str | None = None,
) -> Axes:
    """Draw the best genes of each domain: how strongly, and in how many observations, every domain expresses them.

    This is scanpy's dot plot (`scanpy.pl.DotPlot`) of the log-normalised values that were ranked. Each gene is
    scaled from 0, its lowest mean in a domain, to 1, its highest.

    Parameters
    ----------
    adata
        A slide after :func:`stimg.tl.rank_genes`.
    key
        Key of the ranked genes in `.uns`.
    n_genes
        Number of genes per domain; only genes that are higher in it than in the others are drawn.
    title
        Title; by default it says what is drawn.
    ax
        Axes whose place the figure takes.
    table_key
        Table of a `SpatialData`.

    Returns
    -------
    Axes
        Those with one dot per domain (from top to bottom) and gene. Legends have axes of their own in `ax.figure`.

    Raises
    ------
    KeyError
        There are no ranked genes under `key`, or the labels or some of the genes are no longer there.
    ValueError
        The labels have changed since the genes were ranked, no gene is higher in a domain than in the others, or
        `n_genes` is not positive.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic(n_obs=300, n_genes=60)
    >>> best = stimg.tl.rank_genes(slide, "domain")
    >>> [label.get_text() for label in stimg.pl.rank_genes(slide, n_genes=2).get_yticklabels()]
    ['layer1', 'layer2', 'layer3', 'layer4', 'layer5']
    """
    from anndata import AnnData
    from scanpy.pl import DotPlot

    check_positive_int("n_genes", n_genes)
    table = resolve_table(adata, table_key)
    record = _read_ranking(table, key)
    labels = read_labels(table, record["key"])
    _check_same(labels, record)
    names = pd.Series(gene_names(table, None), index=table.var_names)
    best = _best_genes(table.uns[key], n_genes)
    chosen = list(dict.fromkeys(gene for genes in best.values() for gene in genes))
    if lost := [gene for gene in chosen if gene not in names]:
        msg = f"Genes that were ranked are not in `adata.var_names`: {lost[:5]}. {AGAIN}"
        raise KeyError(msg)
    rows = np.flatnonzero(labels.codes >= 0)
    values = read_log_rows(
        table,
        record["layer"] or None,
        record["scale"],
        float(record["target_sum"]),
        rows,
        table.var_names.get_indexer(chosen),
    )
    obs = pd.DataFrame({"domain": labels[rows]}, index=pd.RangeIndex(len(rows)).astype(str))
    drawn = AnnData(values.toarray(), obs=obs, var=pd.DataFrame(index=pd.Index(names[chosen])))
    title = "Best genes of each domain" if title is None else title
    shown = {domain: names[genes].tolist() for domain, genes in best.items()}
    rotation, room = _label_room(shown)
    dots = DotPlot(drawn, shown, "domain", standard_scale="var", title=title, var_group_rotation=rotation, ax=ax)
    dots.min_figure_height = max(dots.min_figure_height, HEIGHT * len(dots.categories) + 1 + room)
    dots.style(cmap="Reds", dot_edge_lw=0.3)
    dots.legend(
        colorbar_title="mean expression\n(scaled per gene)", size_title="share of observations\nwith the gene (%)"
    )
    dots.make_figure()
    found: Axes = dots.get_axes()["mainplot_ax"]
    found.set_ylabel(record["key"])
    return found


def _read_ranking(table: AnnData, key: str) -> dict[str, Any]:
    """Return the record of ranked genes, or say what is missing."""
    record = read_record(table, _keys.STEP_RANK, key)
    if key not in table.uns or not record:
        lost = "has no record in `adata.uns['stimg']`" if key in table.uns else "was not found"
        msg = f"Key {key!r} {lost}: no genes of domains that could be drawn. Run `stimg.tl.rank_genes(adata)` first."
        raise KeyError(msg)
    return record


def _check_same(labels: pd.Categorical, record: dict[str, Any]) -> None:
    """Refuse labels other than those whose genes were ranked; a subset of the observations has no more of any."""
    ranked = dict(zip(map(str, record["domains"]), np.asarray(record["n_obs"]).tolist(), strict=True))
    if any(count > ranked.get(str(name), 0) for name, count in labels.value_counts().items()):
        msg = f"The labels in `adata.obs[{record['key']!r}]` have changed since their genes were ranked. {AGAIN}"
        raise ValueError(msg)


def _best_genes(ranking: Any, n_genes: int) -> dict[str, list[str]]:
    """Return the first genes of each domain with a score above 0; leave out domains without any."""
    names, scores = ranking["names"], ranking["scores"]
    best = {
        domain: [str(gene) for gene in names[domain][np.asarray(scores[domain]) > 0][:n_genes]]
        for domain in names.dtype.names
    }
    found = {domain: genes for domain, genes in best.items() if genes}
    if not found:
        msg = f"Expected genes that are higher in one domain than in the others, found none. {AGAIN}"
        raise ValueError(msg)
    return found


def _label_room(shown: dict[str, list[str]]) -> tuple[int, float]:
    """Return the rotation of the names of domains above their genes, and the inches that they need in addition."""
    if all(LETTER * len(name) <= WIDTH * len(genes) for name, genes in shown.items()):
        return 0, 0.0
    return 90, LETTER * max(map(len, shown))
