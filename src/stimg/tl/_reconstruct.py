"""Predict expression from a slide's context."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg import _keys
from stimg._input._checks import checked, get_layer
from stimg._input._rows import is_stored
from stimg._input._tables import prepare, resolve_table, write_uns

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg.models import Model

logger = logging.getLogger("stimg")

ROWS_A_CHUNK = 10_000
GENES_A_CHUNK = 500


@checked
def reconstruct(
    adata: AnnData | SpatialData,
    model: Model | str | Path = "stimg-tiny",
    *,
    hidden: str | np.ndarray | None = None,
    layer: str | None = None,
    scale: str | None = None,
    stride: int | None = None,
    device: str = "auto",
    key_added: str = _keys.RECONSTRUCTION,
    lattice_key: str = _keys.LATTICE,
    table_key: str | None = None,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Write denoised expression, or fill in hidden regions, from the decoder of a pretrained model.

    Parameters
    ----------
    adata
        A slide with :func:`stimg.pp.to_lattice` done.
    model
        A model, a name of :func:`stimg.models.available` (by default the weights that come with stimg), or the path or
        address of a `.safetensors` file.
    hidden
        Observations that the model is not shown: a bool array (n_obs,) or the name of a bool column of `.obs`. Their
        expression is then predicted from their surroundings alone, and each gene's mean and deviation come from the
        other observations. By default nothing is hidden: the layer is a denoised slide.
    layer, scale, stride, device, lattice_key, table_key, copy
        As for :func:`stimg.tl.embed`.
    key_added
        Key of the new layer.

    Returns
    -------
    `None` (or the copy), with
    `.layers[key_added]` : float32, dense (n_obs, n_vars), log-normalised expression; NaN in genes that the model does
    not know. Of a slide whose expression is not in memory a dask array, which computes what is asked of it, such as one
    gene, and is written to file in chunks.
    `.uns["stimg"]["reconstruct"]` : parameters, the model's name and the sha256 of its file.

    Raises
    ------
    KeyError
        The lattice, or the column `hidden`, is missing.
    ValueError
        `hidden` is no bool array of length n_obs or hides a whole slide; no gene in common with the model.
    """
    from stimg import __version__
    from stimg._apply._run_windows import get_device, run_windows
    from stimg._apply._tokens import match_slides, site_tokens
    from stimg.models import Model
    from stimg.models._given import given_model

    device = get_device(device)
    table = resolve_table(adata, table_key, copy=copy)
    mask = _hidden_mask(table, hidden)
    model = given_model(Model, model)
    matched, record = match_slides(table, model, layer=layer, scale=scale, lattice_key=lattice_key)
    vocabulary = matched[0][1]  # the sections of one table have the same genes
    columns = np.flatnonzero(vocabulary >= 0)
    states = np.empty((table.n_obs, model.config.dim), dtype=np.float32)
    section = np.empty(table.n_obs, dtype=np.int64)
    scales = np.ones((2, len(matched), table.n_vars), dtype=np.float32)
    scales[1] = 0
    for k, (slide, _) in enumerate(matched):
        visible = np.ones(slide.n_sites, dtype=bool)
        visible[slide.obs_site[mask[slide.obs_index]]] = False
        if not visible.any():
            msg = f"`hidden` hides every site of slide {slide.name!r}: nothing is left to predict from."
            raise ValueError(msg)
        seen = replace(slide, seen=visible)
        tokens = site_tokens(model, seen, vocabulary)
        found = run_windows(model, seen, tokens, readout="decoder", visible=visible, stride=stride, device=device)
        states[slide.obs_index], section[slide.obs_index] = found[slide.obs_site], k
        if model.config.scaling == "zscore":
            scales[:, k] = seen.std, seen.mean
    weight = np.zeros((model.config.dim, table.n_vars), dtype=np.float32)
    bias = np.full(table.n_vars, np.nan, dtype=np.float32)
    weight[:, columns] = model.network.gene_out.detach().numpy()[vocabulary[columns]].T
    bias[columns] = model.network.gene_bias.detach().numpy()[vocabulary[columns]]
    parts = (states, section, weight, bias, *scales)
    values = _lazy_expression(*parts) if is_stored(get_layer(table, record["layer"] or None)) else _expression(*parts)
    table, result = prepare(adata, table_key, copy)
    table.layers[key_added] = values
    write_uns(
        table,
        _keys.STEP_RECONSTRUCT,
        {
            **record,
            "key_added": key_added,
            "n_hidden": int(mask.sum()),
            "target_sum": float(model.card["target_sum"]),
            "unit": f"log1p(counts per {model.card['target_sum']:,.0f})",
            "model": model.card["name"],
            "sha256": model.sha256,
            "version": __version__,
        },
    )
    logger.info("Added .layers[%r]: %d genes, %d observations hidden.", key_added, len(columns), mask.sum())
    return result


def _expression(
    states: np.ndarray, section: np.ndarray, weight: np.ndarray, bias: np.ndarray, std: np.ndarray, mean: np.ndarray
) -> np.ndarray:
    """Log-normalised expression (n, n_genes) from decoder states (n, d) and the genes' moments in each section."""
    values = states @ weight
    values += bias
    values *= std[section]
    values += mean[section]
    return np.maximum(values, 0, out=values)


def _lazy_expression(states: np.ndarray, section: np.ndarray, *genes: np.ndarray) -> Any:
    """Return the same as a dask array, computed when and as far as it is asked for."""
    import dask.array as da

    rows = da.from_array(states, chunks=(ROWS_A_CHUNK, -1))
    weight, bias, std, mean = (da.from_array(part, chunks=(*[-1] * (part.ndim - 1), GENES_A_CHUNK)) for part in genes)
    parts = (
        rows,
        "nd",
        da.from_array(section, chunks=ROWS_A_CHUNK),
        "n",
        weight,
        "dg",
        bias,
        "g",
        std,
        "sg",
        mean,
        "sg",
    )
    return da.blockwise(
        _expression, "ng", *parts, concatenate=True, dtype=np.float32, meta=np.empty((0, 0), np.float32)
    )


def _hidden_mask(table: AnnData, hidden: str | np.ndarray | None) -> np.ndarray:
    """Check `hidden` and return it as a bool array (n_obs,)."""
    if hidden is None:
        return np.zeros(table.n_obs, dtype=bool)
    if isinstance(hidden, str):
        if hidden not in table.obs:
            msg = f"Key {hidden!r} (`hidden`) not found in `adata.obs`. Available keys: {list(table.obs.columns)}."
            raise KeyError(msg)
        hidden = table.obs[hidden].to_numpy()
    hidden = np.asarray(hidden)
    if hidden.dtype != bool or hidden.shape != (table.n_obs,):
        msg = f"Expected `hidden` as bool, shape ({table.n_obs},), found {hidden.dtype}, shape {hidden.shape}."
        raise ValueError(msg)
    return hidden
