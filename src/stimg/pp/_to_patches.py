"""Crop slides into a data set of patches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg import _keys
from stimg._data._patches import ChannelRule, PatchDataset
from stimg._input._checks import check_choice, check_names, check_positive_int, checked
from stimg._input._rows import collect_rows
from stimg._input._tables import resolve_table
from stimg._platforms import collection_platform
from stimg._slide._genes import to_human
from stimg._slide._read import read_selected
from stimg.datasets import Collection
from stimg.pp._select_genes import select_genes
from stimg.pp._to_lattice import to_lattice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

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
    its own `n_channels` genes, drawn without replacement with probability proportional to the weights of
    :func:`stimg.pp.select_genes` (exponential keys, Efraimidis and Spirakis 2006). Windows are cropped on demand, so
    that memory holds the slides' non-zero values and one batch.

    Parameters
    ----------
    slides
        One slide or several, after :func:`stimg.pp.to_lattice` and :func:`stimg.pp.select_genes`. Gene panels may
        differ. They are not changed. Or a collection, such as that of :func:`stimg.datasets.stimage_1k4m`: its slides
        are read one after another, get their lattice and genes by the defaults, and stay on disk in the cache, so that
        memory does not grow with their number.
    size
        Side of a patch in sites.
    n_channels
        Genes per patch; at most the largest number that was selected on any slide.
    stride
        Sites between neighbouring patches; by default a quarter of `size`.
    min_tissue
        Smallest share of a patch's sites that hold an observation, in [0, 1].
    channel_rule
        `"variance"` (as in the paper), `"uniform"`, or always the `"top"` genes by weight.
    augment
        Shift windows by up to half a stride and apply a random symmetry of the lattice (flips; quarter turns on square
        and free lattices).
    names
        One name per slide, for messages, plots and the model's card. By default `slide0`, `slide1`, ..., or those of
        the collection; sections of one object keep the names of their library.
    groups
        Tissue, or any other group, of each slide. Training then draws every group equally often, and every slide
        within a group; by default it draws every window equally often.
    orthologs
        Rename mouse genes to their one-to-one human orthologs (Ensembl), so that slides of both species share rows of
        the vocabulary.
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
        A bad number, `groups` that cannot be told apart in `group/label`, expression that does not fit its recorded
        scale, or a slide with no window of enough tissue.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic("visium", seed=0)
    >>> stimg.pp.to_lattice(slide)
    >>> stimg.pp.select_genes(slide, n_genes=200)
    >>> stimg.pp.to_patches(slide, size=8, n_channels=64)
    PatchDataset: 228 patches of 8 x 8 sites with 64 of 200 genes, from 1 slides (hex lattice)
    """
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
    if label_key is not None and groups is not None:
        _check_prefixes(groups)
    tables = _prepared(collection) if collection is not None else (resolve_table(slide, table_key) for slide in given)
    columns: list[str] = []
    arrays: list[Slide] = []
    group_of: list[str] = []
    scales: set[tuple[str, float]] = set()
    for i, table in enumerate(tables):
        name = f"slide{i}" if names is None else names[i]
        read, scale = read_selected(table, name, weight_key, lattice_key, label_key=label_key)
        if orthologs:
            read = [replace(one, genes=to_human(one.genes)) for one in read]
        if collection is not None:
            read = [replace(s, expression=collect_rows([s.expression], len(s.genes), mapped=True)) for s in read]
        columns += table.obs.columns.tolist()
        arrays += read
        scales.add(scale)
        group_of += [] if groups is None else [str(groups[i])] * len(read)
    if label_key is not None and label_key not in columns:
        found = list(dict.fromkeys(columns))
        msg = f"Key {label_key!r} (`label_key`) not found in `adata.obs` of any slide. Available keys: {found}."
        raise KeyError(msg)
    if len(scales) > 1:
        msg = (
            f"Expected one scale for all slides, found (scale, target_sum) = {sorted(scales)}. "
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
        target_sum=scales.pop()[1],
        seed=int(np.random.default_rng(rng).integers(2**31)),
        groups=None if groups is None else group_of,
    )
    dataset.check_covered()
    return dataset


def _check_prefixes(groups: Sequence[str]) -> None:
    """Refuse groups that cannot be told apart in `group/label`."""
    if nested := sorted({one for one in groups for other in groups if one.startswith(f"{other}/")}):
        msg = (
            f"Expected `groups` of which none begins with another one and '/', since labels are written `group/label`, "
            f"found {nested[:3]}. Rename them."
        )
        raise ValueError(msg)


def _prepared(collection: Collection) -> Iterator[AnnData]:
    """Read each slide without its image, and run `to_lattice` and `select_genes` on it with their defaults."""
    for name, technology in collection.catalogue["technology"].items():
        table = collection.read(str(name), image=False)
        to_lattice(table, collection_platform(technology))
        select_genes(table)
        yield table
