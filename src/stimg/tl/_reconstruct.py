"""Predict expression from a slide's context."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg import _keys
from stimg._apply._reconstruction import reconstruct_table
from stimg._apply._run_windows import check_stride
from stimg._input._checks import check_obs_key, checked
from stimg._input._device import resolve_device
from stimg._input._records import write_record
from stimg._input._tables import prepare, resolve_table
from stimg.models import Model
from stimg.models._given import given_model

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("stimg")


@checked
def reconstruct(
    adata: AnnData | SpatialData,
    model: Model | str | Path = "stimg-tiny",
    *,
    hidden: str | np.ndarray | None = None,
    layer: str | None = None,
    scale: str | None = None,
    gene_symbols: str | None = None,
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
        A slide after :func:`stimg.pp.to_lattice`.
    model
        A model, a name of :func:`stimg.models.available` (by default the weights that come with stimg), or the path or
        address of a `.safetensors` file.
    hidden
        Observations that the model is not shown: a bool array (n_obs,) or the name of a bool column of `.obs`. Their
        expression is then predicted from their surroundings alone, and each gene's mean and deviation come from the
        other observations. By default nothing is hidden, and the layer is a denoised slide.
    layer, scale, gene_symbols, stride, device, lattice_key, table_key, copy
        As in :func:`stimg.tl.embed`.
    key_added
        Key of the new layer.

    Returns
    -------
    `None` (or the copy), with
    `.layers[key_added]` : float32, dense (n_obs, n_vars), log-normalised expression; NaN for genes that the model does
    not know. If the slide's expression is not in memory, this is a dask array, which computes only what is asked of it,
    such as one gene, and is written to file in chunks.
    `.uns["stimg"]["reconstruct"]` : parameters, the model's name and the sha256 of its file.

    Raises
    ------
    KeyError
        The lattice, or the column `hidden`, is missing.
    ValueError
        `hidden` is not a bool array of length n_obs, or hides a whole slide; as in :func:`stimg.tl.embed`.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic(n_obs=300), copy=True)
    >>> stimg.pp.select_genes(slide)
    >>> model = stimg.tl.pretrain(stimg.pp.to_patches(slide, size=8), max_steps=2)
    >>> stimg.tl.reconstruct(slide, model, hidden=stimg.metrics.hide_regions(slide.obsm["lattice"], 3))
    """
    device = resolve_device(device)
    table = resolve_table(adata, table_key, copy=copy)
    mask = _hidden_mask(table, hidden)
    model = given_model(Model, model)
    check_stride(model, stride)
    expression: dict[str, Any] = {
        "layer": layer,
        "scale": scale,
        "lattice_key": lattice_key,
        "gene_symbols": gene_symbols,
    }
    values, record = reconstruct_table(table, model, mask, **expression, stride=stride, device=device)
    table, result = prepare(adata, table_key, copy)
    table.layers[key_added] = values
    record |= {
        "n_hidden": int(mask.sum()),
        "target_sum": float(model.card["target_sum"]),
        "unit": f"log1p(counts per {model.card['target_sum']:,.0f})",
        "model": model.card["name"],
        "sha256": model.sha256,
    }
    write_record(table, _keys.STEP_RECONSTRUCT, key_added, record)
    logger.info("Added .layers[%r]: %d genes, %d observations hidden.", key_added, record["n_genes_shared"], mask.sum())
    return result


def _hidden_mask(table: AnnData, hidden: str | np.ndarray | None) -> np.ndarray:
    """Check `hidden` and return it as a bool array (n_obs,)."""
    if hidden is None:
        return np.zeros(table.n_obs, dtype=bool)
    if isinstance(hidden, str):
        check_obs_key(table, hidden, argument="hidden")
        hidden = table.obs[hidden].to_numpy()
    hidden = np.asarray(hidden)
    if hidden.dtype != bool or hidden.shape != (table.n_obs,):
        msg = f"Expected `hidden` as bool of shape ({table.n_obs},), found {hidden.dtype} of shape {hidden.shape}."
        raise ValueError(msg)
    return hidden
