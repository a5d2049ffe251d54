"""Reconstruct the expression of a whole table from the decoder's states."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._apply._run_windows import run_windows
from stimg._apply._tokens import match_slides, site_tokens
from stimg._input._checks import check_finite, get_layer
from stimg._input._predictions import distinct_genes
from stimg._input._rows import is_stored
from stimg._slide._gene_match import columns_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from stimg.models import Model

MOST_GENES = 2000
ROWS_A_CHUNK = 10_000
GENES_A_CHUNK = 500


def reconstruct_table(
    table: AnnData,
    model: Model,
    hidden: np.ndarray,
    *,
    layer: str | None,
    scale: str | None,
    lattice_key: str,
    gene_symbols: str | None,
    genes: Sequence[str] | None,
    **windows: Any,
) -> tuple[Any, np.ndarray, dict[str, Any]]:
    """Return expression (n_obs, n_genes), the names of its genes, and what to record of it.

    By default the genes are the `MOST_GENES` most variable ones of those that the model knows; if the table's
    expression is not in memory, the result is then a dask array of all genes of the table. It is a `KeyError` if one of
    the `genes` is not known, and a `ValueError` if all of a section is `hidden`, bool (n_obs,).
    """
    matched, record = match_slides(
        table, model, layer=layer, scale=scale, lattice_key=lattice_key, gene_symbols=gene_symbols
    )
    vocabulary = matched[0][1]  # the sections of one table have the same genes
    known = np.flatnonzero(vocabulary >= 0)
    asked = (
        None
        if genes is None
        else _columns_of(genes, table, known, gene_symbols, np.where(vocabulary >= 0, model.genes[vocabulary], ""))
    )
    states = np.empty((table.n_obs, model.config.dim), dtype=np.float32)
    section = np.empty(table.n_obs, dtype=np.int64)
    scales = np.ones((2, len(matched), table.n_vars), dtype=np.float32)
    scales[1] = 0
    deviation = np.zeros(table.n_vars)
    for k, (slide, _) in enumerate(matched):
        visible = np.ones(slide.n_sites, dtype=bool)
        visible[slide.obs_site[hidden[slide.obs_index]]] = False
        if not visible.any():
            msg = f"`hidden` hides every site of section {slide.name!r}. Leave some to predict from."
            raise ValueError(msg)
        seen = replace(slide, seen=visible)
        tokens = site_tokens(model, seen, vocabulary)
        found = run_windows(model, seen, tokens, readout="decoder", visible=visible, **windows)
        states[slide.obs_index], section[slide.obs_index] = found[slide.obs_site], k
        deviation += seen.std * seen.n_sites
        if model.config.scaling == "zscore":
            scales[:, k] = seen.std, seen.mean
    check_finite("the reconstruction", states)
    weight, bias = (part.detach().numpy() for part in (model.network.gene_out, model.network.gene_bias))
    names = table.var_names.to_numpy().astype(str)
    if asked is None and is_stored(get_layer(table, record["layer"] or None)):
        every = np.zeros((model.config.dim, table.n_vars), dtype=np.float32)
        offset = np.full(table.n_vars, np.nan, dtype=np.float32)
        every[:, known], offset[known] = weight[vocabulary[known]].T, bias[vocabulary[known]]
        return _lazy_expression(states, section, every, offset, *scales), names, record
    columns = known[_most_variable(deviation[known])] if asked is None else asked
    rows = vocabulary[columns]
    return _expression(states, section, weight[rows].T, bias[rows], *scales[:, :, columns]), names[columns], record


def _columns_of(
    genes: Sequence[str], table: AnnData, known: np.ndarray, gene_symbols: str | None, of_model: np.ndarray
) -> np.ndarray:
    """Return the columns of `genes`, int64 (n,), by any of the table's names or those of the model."""
    wanted = distinct_genes(genes)
    columns = columns_of(table, wanted, gene_symbols, also=of_model)
    if absent := [str(gene) for gene, column in zip(wanted, columns, strict=True) if column not in known]:
        msg = (
            f"{len(absent)} of `genes` are not in `adata.var_names` or not known to the model ({absent[:3]}, ...). "
            f"Choose from {list(table.var_names[known[:5]])}, ..."
        )
        raise KeyError(msg)
    return columns


def _most_variable(deviation: np.ndarray) -> np.ndarray:
    """Return the positions of the `MOST_GENES` largest values, in their order in the table."""
    return np.sort(np.argsort(-deviation, kind="stable")[:MOST_GENES])


def _expression(
    states: np.ndarray, section: np.ndarray, weight: np.ndarray, bias: np.ndarray, std: np.ndarray, mean: np.ndarray
) -> np.ndarray:
    """Return log-normalised expression (n, n_genes) from states (n, d) and the genes' moments in each section."""
    values = states @ weight
    values += bias
    values *= std[section]
    values += mean[section]
    return np.maximum(values, 0, out=values)


def _lazy_expression(states: np.ndarray, section: np.ndarray, *genes: np.ndarray) -> Any:
    """Return the same as a dask array, which computes only the parts that are read."""
    import dask.array as da

    rows = [da.from_array(states, chunks=(ROWS_A_CHUNK, -1)), da.from_array(section, chunks=ROWS_A_CHUNK)]
    columns = [da.from_array(part, chunks=(*[-1] * (part.ndim - 1), GENES_A_CHUNK)) for part in genes]
    axes = ("nd", "n", "dg", "g", "sg", "sg")  # weight, bias, std and mean are `genes`
    parts = chain.from_iterable(zip([*rows, *columns], axes, strict=True))
    options: dict[str, Any] = {"dtype": np.float32, "meta": np.empty((0, 0), np.float32)}
    return da.blockwise(_expression, "ng", *parts, concatenate=True, **options)
