"""Reconstruct the expression of a whole table from the decoder's states."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._apply._run_windows import run_windows
from stimg._apply._tokens import match_slides, site_tokens
from stimg._input._checks import check_finite, get_layer
from stimg._input._rows import is_stored

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.models import Model

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
    **windows: Any,
) -> tuple[Any, dict[str, Any]]:
    """Return expression (n_obs, n_vars) and what to record of it; a dask array if the table's is not in memory.

    It is a `ValueError` if all of a section is `hidden`, bool (n_obs,).
    """
    matched, record = match_slides(
        table, model, layer=layer, scale=scale, lattice_key=lattice_key, gene_symbols=gene_symbols
    )
    vocabulary = matched[0][1]  # the sections of one table have the same genes
    columns = np.flatnonzero(vocabulary >= 0)
    states = np.empty((table.n_obs, model.config.dim), dtype=np.float32)
    section = np.empty(table.n_obs, dtype=np.int64)
    scales = np.ones((2, len(matched), table.n_vars), dtype=np.float32)
    scales[1] = 0
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
        if model.config.scaling == "zscore":
            scales[:, k] = seen.std, seen.mean
    check_finite("the reconstruction", states)
    weight = np.zeros((model.config.dim, table.n_vars), dtype=np.float32)
    bias = np.full(table.n_vars, np.nan, dtype=np.float32)
    weight[:, columns] = model.network.gene_out.detach().numpy()[vocabulary[columns]].T
    bias[columns] = model.network.gene_bias.detach().numpy()[vocabulary[columns]]
    parts = (states, section, weight, bias, *scales)
    stored = is_stored(get_layer(table, record["layer"] or None))
    return (_lazy_expression if stored else _expression)(*parts), record


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
