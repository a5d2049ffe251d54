"""From slides to a dataset of patches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg import _keys
from stimg._input._checks import (
    check_choice,
    check_names,
    check_obsm,
    check_positive_int,
    check_var_unique,
    checked,
    get_layer,
)
from stimg._input._rows import collect_rows, read_rows
from stimg._input._tables import resolve_table
from stimg._platforms import collection_platform
from stimg._slide._genes import to_human
from stimg._slide._read import read_slides
from stimg.datasets import Collection
from stimg.pp._select_genes import select_genes
from stimg.pp._to_lattice import to_lattice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg._data._patches import ChannelRule, PatchDataset
    from stimg._slide._slide import Slide


@checked
def to_patches(
    slides: AnnData | SpatialData | Sequence[AnnData | SpatialData] | Collection,
    size: int = 16,
    *,
    n_channels: int = 512,
    stride: int | None = None,
    min_tissue: float = 0.25,
    channel_rule: ChannelRule = "variance",
    augment: bool = True,
    names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    orthologs: bool = False,
    label_key: str | None = None,
    weight_key: str = _keys.WEIGHT,
    lattice_key: str = _keys.LATTICE,
    table_key: str | None = None,
    rng: int | np.random.Generator | None = 0,
) -> PatchDataset:
    """Crop slides into fixed windows with a controlled set of gene channels.

    Slides are treated as images (Zhu et al. 2026, arXiv 2603.13432): windows of `size x size` lattice sites, each with
    its own `n_channels` genes, drawn without replacement with probability proportional to the variance weight of
    :func:`stimg.pp.select_genes` (exponential keys, Efraimidis and Spirakis 2006). Windows are cropped when asked
    for: memory is that of the slides' non-zeros plus one batch.

    Parameters
    ----------
    slides
        One slide or several, each with :func:`stimg.pp.to_lattice` and :func:`stimg.pp.select_genes` done. Gene
        panels may differ. They are not changed. Or a collection, such as :func:`stimg.datasets.stimage_1k4m` opens:
        its slides are read one after another, get their lattice and genes by the defaults, and stay on disk in the
        cache, so that memory does not grow with their number.
    size
        Side of a patch in sites.
    n_channels
        Genes a patch; reduced to the largest number that any slide selected.
    stride
        Sites between neighbouring patches; by default a quarter of `size`.
    min_tissue
        Least share of a patch's sites that hold an observation, in [0, 1].
    channel_rule
        `"variance"` (the paper's), `"uniform"`, or always the `"top"` genes by weight.
    augment
        Jitter windows by up to half a stride and apply a random symmetry of the lattice (flips; quarter turns on
        square and free lattices).
    names
        One name a slide, for messages, plots and the model's card. By default `slide0`, `slide1`, ..., or those of the
        collection; sections of one object keep the names of their library.
    groups
        Tissue, or any other group, of each slide. Training then draws every group equally often, and in a group every
        slide; by default every window.
    orthologs
        Call mouse genes by their one-to-one human orthologs (Ensembl), so that slides of both species share rows of the
        vocabulary.
    label_key
        Column of `.obs` with expert labels, which pretraining then learns as well (`stimg.nn.Config.label_loss`).
        Slides without the column, and observations without a label, are only reconstructed. With `groups`, equal
        labels of different groups are different.
    weight_key, lattice_key
        Keys written by `select_genes` and `to_lattice`.
    table_key
        Table of a `SpatialData`.
    rng
        Seed or generator of channels and augmentation.

    Returns
    -------
    PatchDataset
        A map-style torch dataset.

    Raises
    ------
    KeyError
        The lattice or the channel weights are missing, or no slide has the column `label_key`.
    ValueError
        A bad number, expression that does not fit its recorded scale, or a slide with no window of enough tissue.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic("visium", seed=0)
    >>> stimg.pp.to_lattice(slide)
    >>> stimg.pp.select_genes(slide, n_genes=200)
    >>> stimg.pp.to_patches(slide, size=8, n_channels=64)
    """
    from stimg._data._patches import PatchDataset

    check_positive_int("size", size)
    check_positive_int("n_channels", n_channels)
    stride = max(1, size // 4) if stride is None else stride
    check_positive_int("stride", stride)
    check_choice("channel_rule", channel_rule, ("variance", "uniform", "top"))
    if not 0 <= min_tissue <= 1:
        msg = f"Expected `min_tissue` between 0 and 1, found {min_tissue}."
        raise ValueError(msg)
    collection = slides if isinstance(slides, Collection) else None
    given: list[Any] = list(slides) if isinstance(slides, list | tuple) else [slides]
    if not given:
        msg = "Expected at least one slide in `slides`, found an empty list."
        raise ValueError(msg)
    if collection is not None:
        given = collection.names
        names = given if names is None else names
    for argument, values in (("names", names), ("groups", groups)):
        if values is not None:
            check_names(argument, values, len(given))
    tables = _prepared(collection) if collection is not None else (resolve_table(slide, table_key) for slide in given)
    columns: list[str] = []
    arrays: list[Slide] = []
    group_of: list[str] = []
    target_sums: set[tuple[str, float]] = set()
    for i, table in enumerate(tables):
        name = f"slide{i}" if names is None else names[i]
        read = _selected_slides(table, name, weight_key, lattice_key, target_sums)
        if orthologs:
            read = [replace(one, genes=to_human(one.genes)) for one in read]
        if label_key is not None:
            read = [replace(one, labels=_site_labels(table, one, label_key)) for one in read]
            columns += table.obs.columns.tolist()
        if collection is not None:
            read = [replace(s, expression=collect_rows([s.expression], len(s.genes), mapped=True)) for s in read]
        arrays += read
        if groups is not None:
            group_of += [str(groups[i])] * (len(arrays) - len(group_of))
    if label_key is not None and label_key not in columns:
        msg = f"Key {label_key!r} (`label_key`) not found in `adata.obs` of any slide: {list(dict.fromkeys(columns))}."
        raise KeyError(msg)
    if len(target_sums) > 1:
        msg = (
            f"Expected one scale for all slides, found (scale, target_sum) = {sorted(target_sums)}. "
            "Run `stimg.pp.select_genes` with the same `scale` and `target_sum` on each."
        )
        raise ValueError(msg)
    dataset = PatchDataset(
        arrays,
        size=size,
        stride=stride,
        n_channels=min(n_channels, max(int((s.weights > 0).sum()) for s in arrays)),
        min_tissue=min_tissue,
        channel_rule=channel_rule,
        augment=augment,
        target_sum=target_sums.pop()[1],
        seed=int(np.random.default_rng(rng).integers(2**31)),
        groups=None if groups is None else group_of,
    )
    covered = set(dataset._windows[:, 0].tolist())
    for k, array in enumerate(arrays):
        if k not in covered:
            msg = (
                f"Slide {array.name!r} ({array.n_sites} occupied sites on a {array.grid.shape[0]} x "
                f"{array.grid.shape[1]} lattice) has no {size} x {size} patch with at least {min_tissue:.0%} tissue. "
                "Choose a smaller `size` or `min_tissue`."
            )
            raise ValueError(msg)
    return dataset


def _prepared(collection: Collection) -> Iterator[AnnData]:
    """Read each slide without its image and run `to_lattice` and `select_genes` with their defaults on it."""
    for name, technology in collection.catalogue["technology"].items():
        table = collection.read(str(name), image=False)
        to_lattice(table, collection_platform(technology))
        select_genes(table)
        yield table


def _site_labels(table: AnnData, slide: Slide, label_key: str) -> np.ndarray | None:
    """Label of every site, str (n_sites,), empty where no observation has one; the first where several differ."""
    if label_key not in table.obs:
        return None
    column = table.obs[label_key].iloc[slide.obs_index]
    there = np.flatnonzero(column.notna().to_numpy())[::-1]
    labels = np.full(slide.n_sites, "", dtype=object)
    labels[slide.obs_site[there]] = column.astype(str).to_numpy()[there]
    return labels.astype(str)


def _selected_slides(
    table: AnnData, name: str, weight_key: str, lattice_key: str, target_sums: set[tuple[str, float]]
) -> list[Slide]:
    """Check one table and read its slides, restricted to the selected genes."""
    check_obsm(table, lattice_key, advice="Run `stimg.pp.to_lattice(adata)` first.")
    if weight_key not in table.var:
        msg = (
            f"Key {weight_key!r} not found in `adata.var` of {name!r}. Available keys: {list(table.var.columns)}. "
            "Run `stimg.pp.select_genes(adata)` first."
        )
        raise KeyError(msg)
    check_var_unique(table)
    chosen = table.uns[_keys.UNS][_keys.STEP_GENES]
    target_sums.add((str(chosen["scale"]), float(chosen["target_sum"])))
    layer = chosen["layer"] or None
    expression = read_rows(get_layer(table, layer), chosen["scale"], name=f"layers[{layer!r}]" if layer else "X")
    weights = np.nan_to_num(table.var[weight_key].to_numpy(dtype=float))
    return read_slides(
        table,
        expression,
        np.flatnonzero(weights > 0),
        scale=chosen["scale"],
        target_sum=float(chosen["target_sum"]),
        lattice_key=lattice_key,
        weights=weights,
        name=name,
    )
