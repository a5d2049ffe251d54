"""From a table to its sections, each a `Slide`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stimg import _keys
from stimg._input._checks import check_obsm, check_var_unique, is_no_label
from stimg._input._records import read_record
from stimg._input._rows import by_nonzeros, collect_rows, expression_blocks, is_mapped, read_expression, row_blocks
from stimg._slide._gene_match import gene_names
from stimg._slide._lattice import SINGLE, read_lattice
from stimg._slide._slide import Slide
from stimg._slide._values import log_normalise, take_columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from anndata import AnnData


def read_slides(
    table: AnnData,
    expression: sparse.csr_array,
    columns: np.ndarray,
    *,
    scale: str,
    target_sum: float,
    lattice_key: str = _keys.LATTICE,
    genes: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    name: str = "slide",
) -> list[Slide]:
    """Lay the genes at `columns` of a table's checked `expression` on its lattice, one `Slide` per section.

    Counts of observations that share a site are summed before they are normalised; log values are averaged. If
    `expression` is memory-mapped, so is that of the slides. The names of the `genes`, (n_vars,), are those of
    the table by default, and `weights` (n_vars,) are 1.
    """
    lattice = read_lattice(table, lattice_key)
    names = lattice.libraries if len(lattice.libraries) > 1 or lattice.libraries != [SINGLE] else [name]
    genes = table.var_names.to_numpy().astype(str) if genes is None else genes
    weights = np.ones(table.n_vars) if weights is None else weights
    slides = []
    for number in dict.fromkeys(lattice.section.tolist()):
        rows = np.flatnonzero(lattice.section == number)
        sites, obs_site = np.unique(lattice.sites[rows], axis=0, return_inverse=True)
        obs_site = obs_site.ravel()
        values = _site_rows(expression, rows, obs_site, columns, scale=scale, target_sum=target_sum)
        slides.append(
            Slide(
                name=names[number],
                expression=collect_rows(values, len(columns), mapped=is_mapped(expression)),
                genes=genes[columns],
                weights=weights[columns].astype(np.float32),
                sites=sites.astype(np.int32),
                obs_site=obs_site,
                obs_index=rows,
                kind=lattice.kind,
                parity=int(lattice.parity[number]),
            )
        )
    return slides


def _site_rows(
    expression: sparse.csr_array,
    rows: np.ndarray,
    obs_site: np.ndarray,
    columns: np.ndarray,
    *,
    scale: str,
    target_sum: float,
) -> Iterator[sparse.csr_array]:
    """Yield log-normalised expression of the genes at `columns`, in blocks of sites in their order."""
    members = rows[np.argsort(obs_site, kind="stable")]
    counts = np.bincount(obs_site)
    first = np.concatenate([[0], np.cumsum(counts)])
    lengths = np.diff(expression.indptr)[members]
    nonzeros = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[first]
    for start, stop in by_nonzeros(nonzeros):
        here = members[first[start] : first[stop]]
        values, shared = expression[here], counts[start:stop]
        if (shared > 1).any():
            adder = (np.ones(len(here), np.float32), np.arange(len(here)), first[start : stop + 1] - first[start])
            values = sparse.csr_array(sparse.csr_array(adder, shape=(stop - start, len(here))) @ values)
            if scale == "log":
                values = sparse.csr_array(sparse.diags_array(1 / shared.astype(np.float32)) @ values)
        yield log_normalise(values, target_sum, columns) if scale == "counts" else take_columns(values, columns)


def read_log_rows(
    table: AnnData,
    layer: str | None,
    scale: str,
    target_sum: float,
    rows: np.ndarray,
    columns: np.ndarray | None = None,
) -> sparse.csr_array:
    """Return checked, log-normalised expression, float32 (len(rows), n_genes), of increasing `rows` of a table.

    The table is read in blocks, of which only these rows, and the genes at `columns` (by default all), are kept.
    """
    parts, start = [], 0
    for block in expression_blocks(table, layer, scale):
        for here, part in row_blocks(block):
            first, last = np.searchsorted(rows, [start + here.start, start + here.stop])
            chosen = sparse.csr_array(part[rows[first:last] - start - here.start])
            counts = scale == "counts"
            parts.append(log_normalise(chosen, target_sum, columns) if counts else take_columns(chosen, columns))
        start += block.shape[0]
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def read_selected(
    table: AnnData, name: str, weight_key: str, lattice_key: str, *, label_key: str | None = None
) -> tuple[list[Slide], tuple[str, float]]:
    """Check one table and read its slides, with the genes that `select_genes` chose and the labels, if any.

    Also return the scale and target sum of the expression.
    """
    check_obsm(table, lattice_key, advice="Run `stimg.pp.to_lattice(adata)` first.")
    if weight_key not in table.var:
        msg = (
            f"Key {weight_key!r} not found in `adata.var` of {name!r}. Available keys: {list(table.var.columns)}. "
            "Run `stimg.pp.select_genes(adata)` first."
        )
        raise KeyError(msg)
    check_var_unique(table)
    chosen = read_record(table, _keys.STEP_GENES, weight_key)
    if not chosen:
        msg = f"`adata.uns['stimg']` has no record of `adata.var[{weight_key!r}]`. Run `stimg.pp.select_genes(adata)`."
        raise KeyError(msg)
    layer, scale, target_sum = chosen["layer"] or None, str(chosen["scale"]), float(chosen["target_sum"])
    weights = _checked_weights(table, weight_key, name)
    slides = read_slides(
        table,
        read_expression(table, layer, scale),
        np.flatnonzero(weights > 0),
        scale=scale,
        target_sum=target_sum,
        lattice_key=lattice_key,
        genes=gene_names(table, chosen.get("gene_symbols") or None),
        weights=weights,
        name=name,
    )
    if label_key is not None and label_key in table.obs:
        slides = [replace(slide, labels=_site_labels(table.obs[label_key], slide)) for slide in slides]
    return slides, (scale, target_sum)


def _checked_weights(table: AnnData, key: str, name: str) -> np.ndarray:
    """Return the weights of genes, float64 (n_vars,), 0 where they are missing, if any of them is above 0."""
    column = table.var[key]
    weights = np.nan_to_num(column.to_numpy(dtype=float), nan=0) if column.dtype.kind in "buif" else np.zeros(0)
    if not (weights > 0).any() or not np.isfinite(column.to_numpy(dtype=float, na_value=0)).all():
        msg = (
            f"Expected weights of genes in `adata.var[{key!r}]` of {name!r}, finite numbers of which some are above 0, "
            f"found {column.dtype} such as {column.iloc[:3].tolist()}. Run `stimg.pp.select_genes(adata)` again."
        )
        raise ValueError(msg)
    return weights


def _site_labels(column: pd.Series, slide: Slide) -> np.ndarray:
    """Return the first label of every site's observations, str (n_sites,), empty if they have none."""
    column = column.iloc[slide.obs_index]
    names = column.astype(str).to_numpy()
    there = np.flatnonzero(column.notna().to_numpy() & ~np.array([is_no_label(name) for name in names]))[::-1]
    labels = np.full(slide.n_sites, "", dtype=object)
    labels[slide.obs_site[there]] = names[there]
    return labels.astype(str)
