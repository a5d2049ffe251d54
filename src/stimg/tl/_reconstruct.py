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
from stimg._input._predictions import write_prediction
from stimg._input._tables import prepare, resolve_table
from stimg.models import Model
from stimg.models._given import given_model

if TYPE_CHECKING:
    from collections.abc import Sequence
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
    genes: Sequence[str] | None = None,
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
        other observations. By default nothing is hidden, and the result is a denoised slide.
    layer, scale, gene_symbols, stride, device, lattice_key, table_key, copy
        As in :func:`stimg.tl.embed`.
    genes
        Genes to predict, of those that the slide and the model share, by their names in `.var_names`, their symbols
        (as found by `gene_symbols`) or those of the model; by default the 2,000 of them whose expression
        varies most over the slide.
    key_added
        Key of the result.

    Returns
    -------
    `None` (or the copy), with
    `.obsm[key_added]` : DataFrame, float32 (n_obs, n_genes), log-normalised expression; its columns are names of genes,
    as in `adata.var_names`.
    `.layers[key_added]` instead, if the slide's expression is not in memory and no `genes` are named: a dask array
    (n_obs, n_vars), NaN for genes that the model does not know, which computes only what is asked of it, such as one
    gene, and is written to file in chunks.
    `.uns["stimg"]["reconstruct"]` : parameters, the model's name and the sha256 of its file, and `slot`, `"obsm"` or
    `"layers"`.

    Raises
    ------
    KeyError
        The lattice, the column `hidden`, or one of `genes` is missing, or the model does not know the gene.
    ValueError
        `hidden` is not a bool array of length n_obs, or hides a whole slide; `genes` are empty or repeated; as in
        :func:`stimg.tl.embed`.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic(n_obs=300), copy=True)
    >>> stimg.pp.select_genes(slide)
    >>> model = stimg.tl.pretrain(stimg.pp.to_patches(slide, size=8), max_steps=2)
    >>> stimg.tl.reconstruct(slide, model, hidden=stimg.metrics.hide_regions(slide.obsm["lattice"], 3))
    >>> stimg.tl.reconstruct(slide, model, genes=model.genes[:2], key_added="two_genes")
    >>> slide.obsm["two_genes"].shape
    (300, 2)
    """
    device = resolve_device(device)
    table = resolve_table(adata, table_key, copy=copy)
    mask = _hidden_mask(table, hidden)
    model = given_model(Model, model)
    check_stride(model, stride)
    options: dict[str, Any] = {
        "layer": layer,
        "scale": scale,
        "gene_symbols": gene_symbols,
        "stride": stride,
        "device": device,
        "lattice_key": lattice_key,
    }
    values, names, record = reconstruct_table(table, model, mask, genes=genes, **options)
    table, result = prepare(adata, table_key, copy)
    record |= {
        "n_hidden": int(mask.sum()),
        "target_sum": float(model.card["target_sum"]),
        "unit": f"log1p(counts per {model.card['target_sum']:,.0f})",
        "model": model.card["name"],
        "sha256": model.sha256,
    }
    slot = write_prediction(table, _keys.STEP_RECONSTRUCT, key_added, values, names, record)
    logger.info("Added .%s[%r]: %d genes, %d observations hidden.", slot, key_added, len(names), mask.sum())
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
