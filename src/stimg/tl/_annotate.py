"""Name the regions of a slide."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._apply._names import EVEN_ODDS, known_names, learn_names, name_sections, read_sections
from stimg._apply._run_windows import check_stride
from stimg._cluster._colours import UNLABELLED, domain_colours
from stimg._cluster._labels import joined_labels
from stimg._input._checks import check_positive_int, check_strings, checked, warn
from stimg._input._device import resolve_device
from stimg._input._records import write_record
from stimg._input._tables import distinct_tables, prepare
from stimg._slide._lattice import read_lattice
from stimg.models import Model
from stimg.models._given import given_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg._apply._names import Labelled, Names

logger = logging.getLogger("stimg")


@checked
def annotate(
    adata: AnnData | SpatialData | Sequence[AnnData | SpatialData],
    model: Model | str | Path = "stimg-tiny",
    *,
    labels: str | Sequence[str] | None = None,
    reference: AnnData | SpatialData | Sequence[AnnData | SpatialData] | None = None,
    label_key: str | None = None,
    min_confidence: float = 0.5,
    layer: str | None = None,
    scale: str | None = None,
    gene_symbols: str | None = None,
    stride: int | None = None,
    symmetric: bool = True,
    batch_size: int | None = None,
    device: str = "auto",
    key_added: str = _keys.LABEL,
    lattice_key: str = _keys.LATTICE,
    table_key: str | None = None,
    copy: bool = False,
) -> AnnData | SpatialData | list[AnnData | SpatialData] | None:
    """Name the tissue region of every observation, with a confidence, or `"unknown"`.

    Names come from the expert labels that a model learned in training, or from annotated slides of your own
    (`reference`). A section is compared with the tissue that was labelled: where the mean expression of its genes does
    not correlate with that of the tissue, confidence is low, and its observations stay `"unknown"`. A slide of liver
    does not become cortex.

    Parameters
    ----------
    adata
        A slide after :func:`stimg.pp.to_lattice`, or a list of slides. Sections under a `library_key` are named one by
        one. They need no embedding.
    model
        As in :func:`stimg.tl.embed`.
    labels
        The tissue whose labels are used, or several to choose from, such as `"human cortex"`; those of a model are in
        `stimg.models.card(model)["label_groups"]`. By default each section gets the labels of the tissue that it
        resembles most.
    reference
        One or more annotated slides, after `to_lattice`, whose labels are used in place of the model's. Observations
        without a label (NaN or `"unknown"`) are left out.
    label_key
        Column of `.obs` of the `reference` with the labels.
    min_confidence
        Observations whose confidence is not above this are `"unknown"`; 0 names all.
    layer, scale, gene_symbols, lattice_key
        As in :func:`stimg.tl.embed`, for `adata` and `reference` alike.
    stride, symmetric, batch_size, device
        As in :func:`stimg.tl.embed`.
    key_added
        Key of the names in `.obs`.
    table_key, copy
        Table of a `SpatialData`; whether to return a changed copy and leave `adata` as it is.

    Returns
    -------
    `None` (or the copy, or the list of copies), with
    `.obs[key_added]` : categorical; all labels of the tissues of which anything was named, the same on all slides, and
    `"unknown"`. If these are several tissues, names are written `tissue/label`.
    `.obs[key_added + "_confidence"]` : float32 in [0, 1]. Probability that the best label is right: that the section is
    of the tissue, times that of the label in it.
    `.uns[key_added + "_colors"]` : one colour per category, grey for `"unknown"`.
    `.uns["stimg"]["annotate"]` : parameters, gene overlap and model; for each of the `sections`, its `tissue`, the
    `similarity` of its mean expression, and the share of `named` observations.

    Raises
    ------
    KeyError
        The lattice, a layer, or the column `label_key` is missing.
    ValueError
        The model learned no labels and there is no `reference`; it has no such `labels`; the `reference` has fewer than
        two labels; or as in :func:`stimg.tl.embed`. Nothing is changed then.

    Warns
    -----
    UserWarning
        A section does not resemble the tissue of any labels.

    Notes
    -----
    Features are the states of the network, and its tokens averaged over the sites within 2.3 pitches. They are read
    twice: with expression and features z-scored within each section, which removes differences of depth and platform,
    and with both scaled by the labelled sections, so that a part of a tissue, such as a single layer, keeps its names.
    On each, a multinomial logistic regression is fitted to the labelled sections, and their probabilities are averaged.
    With a `reference`, the first also gets 20 principal components of it and the table together, with their means over
    rings of 1, 2 and 3 pitches. How similar a section is to the tissue is the rank correlation :math:`r` of mean
    log-normalised expression over the tissue's variable genes; it is taken to be of the tissue with probability
    :math:`1 / (1 + e^{-12 (r - 0.7)})`. Below one half, confidence is low on purpose, even if some names are right. A
    region that nobody labelled gets the name of the most similar one.

    Examples
    --------
    >>> first, second = (stimg.datasets.synthetic(n_obs=300, seed=seed) for seed in (0, 1))
    >>> for slide in (first, second):
    ...     stimg.pp.to_lattice(slide)
    >>> stimg.pp.select_genes(first)
    >>> model = stimg.tl.pretrain(stimg.pp.to_patches(first, size=8, label_key="domain"), max_steps=20)
    >>> stimg.tl.annotate(second, model)  # or stimg.tl.annotate(second, reference=first, label_key="domain")
    >>> list(second.obs["stimg_label"].cat.categories)
    ['layer1', 'layer2', 'layer3', 'layer4', 'layer5', 'unknown']
    """
    for name, value in (("stride", stride), ("batch_size", batch_size)):
        if value is not None:
            check_positive_int(name, value)
    number = isinstance(min_confidence, int | float | np.number) and not isinstance(min_confidence, bool)
    if not number or not 0 <= min_confidence < 1:
        msg = f"Expected `min_confidence` from 0 to below 1, found {min_confidence!r}."
        raise ValueError(msg)
    given = list(adata) if isinstance(adata, list | tuple) else [adata]
    tables = distinct_tables(given, table_key, copy=copy)
    annotated, joined = _read_reference(reference, label_key, labels, table_key, key_added)
    model = given_model(Model, model)
    check_stride(model, stride)
    known: Labelled | list[Names] = [] if annotated else _chosen_names(model, labels)
    for table in [*tables, *annotated]:
        read_lattice(table, lattice_key)
    windows: dict[str, Any] = {"stride": stride, "symmetric": symmetric, "batch_size": batch_size}
    windows["device"] = resolve_device(device)
    expression = {"layer": layer, "scale": scale, "lattice_key": lattice_key, "gene_symbols": gene_symbols}
    if annotated:
        known = _learn(annotated, joined, model, windows, expression)
    found = []
    for table in tables:
        read, record = read_sections(table, model, **expression)
        found.append((name_sections(model, read, known, windows), record))
    certain = [one for sections, _ in found for one in sections if one.confidence.max() > min_confidence]
    used = {one.names.tissue: one.names for one in sorted(certain, key=lambda one: one.names.tissue)}
    order = [label for own in used.values() for label in _written(own, len(used))]
    results = []
    for slide, (sections, record) in zip(given, found, strict=True):
        table, result = prepare(slide, table_key, copy)
        codes = np.full(table.n_obs, len(order))
        confidence = np.zeros(table.n_obs, dtype=np.float32)
        for named in sections:
            codes[named.rows] = pd.Index(order).get_indexer(_written(named.names, len(used)))[named.codes]
            confidence[named.rows] = named.confidence
        codes[confidence <= min_confidence] = len(order)
        table.obs[key_added] = pd.Categorical.from_codes(codes, [*order, _keys.UNKNOWN])
        table.obs[key_added + _keys.CONFIDENCE_SUFFIX] = confidence
        table.uns[f"{key_added}_colors"] = [*domain_colours(len(order)), UNLABELLED]
        record |= {
            "label_key": label_key or "",
            "min_confidence": float(min_confidence),
            "stride": stride or 0,
            "symmetric": bool(symmetric),
            "sections": [named.name for named in sections],
            "tissue": [named.names.tissue for named in sections],
            "similarity": [named.similarity for named in sections],
            "named": [float((codes[named.rows] < len(order)).mean()) for named in sections],
        }
        write_record(table, _keys.STEP_ANNOTATE, key_added, record)
        results.append(result)
    _report([record for _, record in found], key_added)
    if not copy:
        return None
    return results if isinstance(adata, list | tuple) else results[0]


def _read_reference(
    reference: Any, label_key: str | None, labels: Any, table_key: str | None, key_added: str
) -> tuple[list[AnnData], pd.Categorical]:
    """Return the tables of the annotated slides, none if there are no such slides, and their labels, joined."""
    if reference is None:
        if label_key is not None:
            msg = f"Expected a `reference` with `label_key`={label_key!r}, found None. Pass the annotated slides."
            raise ValueError(msg)
        return [], pd.Categorical([])
    if labels is not None:
        msg = f"Expected either `labels` of the model or a `reference`, found both (`labels`={labels!r})."
        raise ValueError(msg)
    given = list(reference) if isinstance(reference, list | tuple) else [reference]
    tables = distinct_tables(given, table_key, argument="reference")
    if label_key is None:
        msg = (
            "Expected `label_key`, the column of `.obs` of the `reference` with its labels, found None. It has "
            f"{list(tables[0].obs.columns)}."
        )
        raise ValueError(msg)
    if label_key == key_added:
        msg = f"Expected another `key_added` than `label_key`={label_key!r}, whose labels would be overwritten."
        raise ValueError(msg)
    known = joined_labels(tables, label_key, argument="label_key", advice="It is the column of labels of `reference`.")
    if len(known.categories) < 2:
        msg = f"Expected at least two labels in `reference.obs[{label_key!r}]`, found {list(known.categories)}."
        raise ValueError(msg)
    return tables, known


def _learn(
    tables: list[AnnData], joined: pd.Categorical, model: Model, windows: dict[str, Any], expression: Any
) -> Labelled:
    """Learn names from annotated slides, whose labels are joined one after another."""
    sections, codes, start = [], [], 0
    for table in tables:
        of_table = joined.codes[start : start + table.n_obs]
        start += table.n_obs
        for section in read_sections(table, model, **expression)[0]:
            own = of_table[section.slide.obs_index]
            there = np.flatnonzero(own >= 0)[::-1]  # the first observation of a site counts, as in training
            of_site = np.full(section.slide.n_sites, -1)
            of_site[section.slide.obs_site[there]] = own[there]
            sections.append(section)
            codes.append(of_site)
    return learn_names(model, sections, codes, joined.categories.tolist(), windows)


def _chosen_names(model: Model, labels: str | Sequence[str] | None) -> list[Names]:
    """Return the names that the model learned, of all tissues or of those asked for."""
    names = known_names(model)
    if not names:
        why = "was trained without labels"
        if model.card.get("labels"):
            why = "kept no names of its labels: it has only one, or is from an earlier version of stimg"
        msg = (
            f"Expected a model that knows names of regions, found {model.card['name']!r}, which {why}. Pass annotated "
            "slides as `reference`, or train one: "
            "`stimg.tl.pretrain(stimg.pp.to_patches(slides, label_key=...), init='stimg-tiny')`."
        )
        raise ValueError(msg)
    tissues = [one.tissue for one in names]
    wanted = tissues if labels is None else check_strings("labels", labels)
    if not wanted or not set(wanted) <= set(tissues):
        known = f"tissues of the model, among {tissues}" if any(tissues) else "left out, as the model knows one tissue"
        msg = f"Expected `labels` to be {known}, found {labels!r}."
        raise ValueError(msg)
    return [one for one in names if one.tissue in wanted]


def _written(names: Names, n_tissues: int) -> list[str]:
    """Return the labels of a tissue as they are written, with its name if there are several."""
    return [f"{names.tissue}/{label}" for label in names.labels] if n_tissues > 1 else names.labels


def _report(records: list[dict[str, Any]], key: str) -> None:
    """Log what was named, and warn of sections of another tissue."""
    parts, foreign = [], []
    for number, record in enumerate(records):
        columns = [record[name] for name in ("sections", "tissue", "similarity", "named")]
        for section, tissue, similarity, named in zip(*columns, strict=True):
            where = f"{section!r} of slide {number}" if len(records) > 1 else repr(section)
            like = f"similarity {similarity:.2f}" + (f" to {tissue!r}" if tissue else "")
            parts.append(f"{where}: {f'{named:.0%} named' if named else 'not named'} ({like})")
            if similarity < EVEN_ODDS:
                then = "Its names are guesses." if named else "Its observations stay 'unknown'."
                foreign.append((where, similarity, repr(tissue) if tissue else "the labelled slides", then))
    logger.info("Added .obs[%r]. %s.", key, "; ".join(parts))
    if foreign:
        where, similarity, tissue, then = foreign[0]
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        warn(
            f"Section {where}{more}: mean expression correlates only {similarity:.3f} with that of {tissue}, less than "
            f"{EVEN_ODDS}, as if it were of another tissue or platform. {then} Annotate a section of this tissue, and "
            "pass it as `reference`."
        )
