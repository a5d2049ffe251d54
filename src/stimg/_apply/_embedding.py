"""Embed the sections of a table: the network's states, joined with the table's own components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._apply._components import join, local_components
from stimg._apply._run_windows import run_windows
from stimg._apply._tokens import match_slides, site_tokens
from stimg._input._checks import check_finite

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.models import Model


def embed_table(
    table: AnnData, model: Model, windows: dict[str, Any], **expression: Any
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return a table's embedding (n_obs, d), the embedding joined with its own components, and the record of both.

    `expression` says where it is and which genes it has, as in `match_slides`.
    """
    matched, record = match_slides(table, model, **expression)
    embedding = np.empty((table.n_obs, model.config.dim), dtype=np.float32)
    components = local_components([slide for slide, _ in matched])
    own = np.empty((table.n_obs, components[0].shape[1]), dtype=np.float32)
    for (slide, vocabulary), part in zip(matched, components, strict=True):
        states = run_windows(model, slide, site_tokens(model, slide, vocabulary), **windows)
        embedding[slide.obs_index] = states[slide.obs_site]
        own[slide.obs_index] = part[slide.obs_site]
    joined = join(embedding, own)
    check_finite("the embedding", joined)
    return embedding, joined, {**record, "model": model.card["name"], "sha256": model.sha256}
