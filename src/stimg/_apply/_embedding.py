"""Embed the sections of a table: the network's states, joined with the table's own components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._apply._components import join, local_components
from stimg._apply._run_windows import run_windows
from stimg._apply._shared import join_sections, shared_components
from stimg._apply._tokens import match_slides, site_tokens
from stimg._input._checks import check_finite

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg._apply._shared import Matched
    from stimg.models import Model


@dataclass(frozen=True)
class Embedded:
    """What `embed` found of a table."""

    states: np.ndarray  # float32 (n_obs, d): states of the network
    joined: np.ndarray  # float32 (n_obs, d + k): the same, joined with the table's own components
    record: dict[str, Any]
    sections: list[Matched]


def embed_table(table: AnnData, model: Model, windows: dict[str, Any], **expression: Any) -> Embedded:
    """Embed the sections of a table.

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
    record |= {"model": model.card["name"], "sha256": model.sha256}
    return Embedded(embedding, joined, record, matched)


def embed_jointly(found: list[Embedded], model: Model) -> tuple[list[np.ndarray], str] | None:
    """Return an embedding of the observations of several tables that is comparable between them, and its run's name.

    It is float32 (n_obs, 50) for each table; `None` if there is one section, or the sections share hardly any genes.
    """
    sections = [(one, section) for one in found for section in one.sections]
    components = shared_components(model, [section for _, section in sections]) if len(sections) > 1 else None
    if components is None:
        return None
    blocks = []
    for (one, (slide, _)), (rings, near) in zip(sections, components, strict=True):
        blocks.append([one.states[slide.obs_index], rings[slide.obs_site], near[slide.obs_site]])
    parts, run = join_sections(blocks)
    joint = [np.empty((len(one.states), parts[0].shape[1]), dtype=np.float32) for one in found]
    of_table = {id(one): values for one, values in zip(found, joint, strict=True)}
    for (one, (slide, _)), part in zip(sections, parts, strict=True):
        of_table[id(one)][slide.obs_index] = part
    return joint, run
