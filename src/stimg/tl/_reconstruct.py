"""Predict expression from a slide's context."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from stimg import _keys
from stimg._resolve import prepare, resolve_table, write_uns

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg.models import Model

logger = logging.getLogger("stimg")


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
    not know.
    `.uns["stimg"]["reconstruct"]` : parameters, the model's name and the sha256 of its file.

    Raises
    ------
    KeyError
        The lattice, or the column `hidden`, is missing.
    ValueError
        `hidden` is no bool array of length n_obs or hides a whole slide; no gene in common with the model.
    """
    from stimg import __version__
    from stimg.tl._infer import get_device, get_model, match_slides, run_windows, site_tokens

    device = get_device(device)
    table = resolve_table(adata, table_key)
    mask = _hidden_mask(table, hidden)
    model = get_model(model)
    matched, record = match_slides(table, model, layer=layer, scale=scale, lattice_key=lattice_key)
    columns = np.flatnonzero(matched[0][1] >= 0)
    values = np.full((table.n_obs, table.n_vars), np.nan, dtype=np.float32)
    gene_out = model.network.gene_out.detach().numpy()
    gene_bias = model.network.gene_bias.detach().numpy()
    for slide, vocabulary in matched:
        visible = np.ones(slide.n_sites, dtype=bool)
        visible[slide.obs_site[mask[slide.obs_index]]] = False
        if not visible.any():
            msg = f"`hidden` hides every site of slide {slide.name!r}: nothing is left to predict from."
            raise ValueError(msg)
        seen = replace(slide, seen=visible)
        tokens = site_tokens(model, seen, vocabulary)
        states = run_windows(model, seen, tokens, readout="decoder", visible=visible, stride=stride, device=device)
        known = vocabulary[columns]
        predicted = states @ gene_out[known].T + gene_bias[known]
        if model.config.scaling == "zscore":
            predicted = predicted * seen.std[columns] + seen.mean[columns]
        values[np.ix_(slide.obs_index, columns)] = np.maximum(predicted, 0)[slide.obs_site]
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
