"""From slides with H&E to a dataset of crops and the spots inside them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import rankdata

from stimg import _keys
from stimg._input._checks import (
    check_choice,
    check_embedding,
    check_expression,
    check_obsm,
    check_positive,
    check_positive_int,
    check_var_unique,
    checked,
    get_layer,
)
from stimg._input._tables import resolve_table
from stimg._slide._values import log_normalise, moments

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg._data._image_patches import ImagePatchDataset, ImageSlide
    from stimg._image._place import ImagePlace
    from stimg.models import Model

TARGET_SUM = 1e4
GeneRule = Literal["mean", "variable", "variable_in_each"]
RULES = ("mean", "variable", "variable_in_each")


@checked
def to_image_patches(
    slides: AnnData | SpatialData | Sequence[AnnData | SpatialData],
    images: Any = None,
    *,
    mpp: float = 2.0,
    size: int = 256,
    stride: int | None = None,
    genes: Sequence[str] | None = None,
    n_genes: int = 250,
    gene_rule: GeneRule = "mean",
    image_mpp: float | None = None,
    diameter_um: float | None = None,
    stain_normalise: bool = True,
    augment: bool = True,
    names: Sequence[str] | None = None,
    layer: str | None = None,
    use_rep: str | None = None,
    spatial_model: Model | str | Path | None = None,
    lattice_key: str = _keys.LATTICE,
    spatial_key: str = _keys.SPATIAL,
    library_id: str | None = None,
    image_key: str | None = None,
    table_key: str | None = None,
    rng: int | np.random.Generator | None = 0,
) -> ImagePatchDataset:
    """Crop H&E images into squares, each with the spots inside it and their expression.

    Everything is in micrometres: images are brought to one resolution, so that slides of different scanners and
    platforms may be mixed. Images are read when crops are asked for; TIFF pyramids are streamed.

    Parameters
    ----------
    slides
        One slide or several, with raw counts. They are not changed.
    images
        One image a slide, whose pixels are the units of `.obsm[spatial_key]`: a path (PNG, JPEG, TIFF, OME-TIFF) or an
        array. By default the largest in `.uns["spatial"]`, or the image `image_key` of a `SpatialData`, on which the
        spots are placed by their shapes and all transformations.
    mpp
        Micrometres per pixel of the crops.
    size
        Side of a crop in pixels, a multiple of 32 for the bundled network.
    stride
        Pixels between neighbouring crops; by default `size` less twice a spot's diameter, so that every spot is whole
        in some crop.
    genes
        Genes to predict. Those that a slide lacks are left out of its loss.
    n_genes
        Without `genes`: so many are chosen by `gene_rule`.
    gene_rule
        `"mean"`: of the genes that all slides have, those with the highest mean of log-normalised expression over all
        spots (as PixNet, arXiv 2503.01347). For :func:`stimg.tl.align` also, as in STimage-1K4M's code (arXiv
        2406.06393), `"variable"`: those that vary most in all slides (median rank of the variance), or
        `"variable_in_each"`: each slide's own most variable; in a slide that has other ones a gene is left out.
    image_mpp
        Micrometres per pixel of the images; by default from the pitch that :func:`stimg.pp.to_lattice` recorded, from
        `microns_per_pixel` among the scale factors (Space Ranger), or those in a TIFF file.
    diameter_um
        Diameter of the spots; by default `spot_diameter_fullres` of the scale factors.
    stain_normalise
        Bring each slide's colours to a reference: mean and deviation of the optical density of tissue.
    augment
        Jitter crops by up to half a stride, flip and turn them.
    names
        One name a slide. By default `slide0`, `slide1`, ...
    layer
        Layer with raw counts; `.X` by default.
    use_rep
        Embedding in `.obsm` of every slide, such as `"X_stimg"`, for `stimg.nn.AlignConfig(gene_encoder="embedding")`.
    spatial_model
        A model of :func:`stimg.tl.pretrain`, its name or path, to be tuned by :func:`stimg.tl.align` with
        `stimg.nn.AlignConfig(gene_encoder="tuned")`: the surroundings of every spot are kept for it.
    lattice_key
        Key written by :func:`stimg.pp.to_lattice`, for `spatial_model`.
    spatial_key, library_id, image_key, table_key
        Where coordinates, images and the table of a `SpatialData` are.
    rng
        Seed or generator of the augmentation.

    Returns
    -------
    ImagePatchDataset
        A map-style torch dataset. Targets are counts per 10,000 of all genes of the slide, log1p.

    Raises
    ------
    KeyError
        Coordinates, image, scale factor, genes or lattice are missing.
    ValueError
        Bad numbers; expression that is no raw counts; resolution or diameter unknown; an image too coarse for `mpp`, or
        whose tissue is not where the spots are; no spot whole inside any crop; a `spatial_model` of whole slides.
    OSError
        An image file is damaged.

    Examples
    --------
    >>> slide = stimg.datasets.her2st("A1")
    >>> stimg.pp.to_lattice(slide, platform="st")
    >>> stimg.pp.to_image_patches(slide, "A1_HE.jpg")
    """
    from stimg._apply._surroundings import read_surroundings
    from stimg._data._image_patches import ImagePatchDataset
    from stimg._image._place import read_image_slide
    from stimg.models import Model
    from stimg.models._given import given_model

    check_positive_int("size", size)
    check_positive_int("n_genes", n_genes)
    if stride is not None:
        check_positive_int("stride", stride)
    check_positive("mpp", mpp)
    check_choice("gene_rule", gene_rule, RULES)
    given = list(slides) if isinstance(slides, list | tuple) else [slides]
    if not given:
        msg = "Expected at least one slide in `slides`, found an empty list."
        raise ValueError(msg)
    sources = _one_a_slide("images", images, len(given), several=isinstance(slides, list | tuple))
    named = _one_a_slide("names", names, len(given), several=True)
    named = [f"slide{i}" if name is None else str(name) for i, name in enumerate(named)]
    tables = [resolve_table(slide, table_key) for slide in given]
    for table in tables:
        check_var_unique(table)
        if use_rep is not None:
            check_embedding(table, use_rep)
        if spatial_model is not None:
            check_obsm(table, lattice_key, advice="Run `stimg.pp.to_lattice(adata)` first.")
    network = None if spatial_model is None else given_model(Model, spatial_model, "spatial_model")
    counts = [
        check_expression(get_layer(table, layer), "counts", name=f"layers[{layer!r}]" if layer else "X")
        for table in tables
    ]
    if genes is None and gene_rule == "variable_in_each":
        own = [_most_variable(table, matrix, n_genes) for table, matrix in zip(tables, counts, strict=True)]
        chosen = np.unique(np.concatenate(own))
    else:
        chosen = _choose_genes(tables, counts, genes, n_genes, gene_rule)
        own = [chosen] * len(tables)
    where: dict[str, Any] = {
        "spatial_key": spatial_key,
        "library_id": library_id,
        "image_key": image_key,
        "table_key": table_key,
        "image_mpp": image_mpp,
        "diameter_um": diameter_um,
    }
    read = [
        _image_slide(
            table,
            matrix,
            chosen,
            mine,
            name,
            read_image_slide(slide, source, mpp=mpp, name=name, **where),
            use_rep,
        )
        for slide, table, matrix, mine, source, name in zip(given, tables, counts, own, sources, named, strict=True)
    ]
    if network is not None:
        options: dict[str, Any] = {"layer": layer, "lattice_key": lattice_key}
        read = [
            replace(slide, surroundings=read_surroundings(table, network, slide.obs_index, **options))
            for slide, table in zip(read, tables, strict=True)
        ]
    largest = max(slide.diameter_um for slide in read) / mpp
    if largest >= size:
        msg = f"Expected crops larger than a spot, found `size`={size} pixels and spots of {largest:.0f}. Raise `size`."
        raise ValueError(msg)
    dataset = ImagePatchDataset(
        read,
        genes=chosen,
        mpp=float(mpp),
        size=size,
        stride=max(1, int(size - 2 * largest), size // 4) if stride is None else stride,
        stain_normalise=stain_normalise,
        augment=augment,
        target_sum=TARGET_SUM,
        seed=int(np.random.default_rng(rng).integers(2**31)),
        spatial_model=network,
    )
    if not len(dataset):
        msg = f"No spot lies wholly inside any crop of {size} pixels at {mpp:g} um. Raise `size`."
        raise ValueError(msg)
    return dataset


def _one_a_slide(argument: str, values: Any, n_slides: int, *, several: bool) -> list[Any]:
    """Return one value a slide, `None` where nothing is given."""
    if values is None:
        return [None] * n_slides
    if not several:
        return [values]
    if isinstance(values, str) or not isinstance(values, list | tuple) or len(values) != n_slides:
        found = len(values) if isinstance(values, list | tuple) else type(values).__name__
        msg = f"Expected a list with one of `{argument}` a slide: {n_slides} slides, found {found}."
        raise ValueError(msg)
    return list(values)


def _choose_genes(
    tables: list[AnnData], counts: list[sparse.csr_array], genes: Sequence[str] | None, n_genes: int, rule: str
) -> np.ndarray:
    """Names of the genes, str (n_genes,)."""
    if genes is not None:
        chosen = np.asarray(list(genes), dtype=str)
        if len(set(chosen)) < len(chosen) or not len(chosen):
            msg = f"Expected `genes` without duplicates, found {len(chosen)}, {len(set(chosen))} of them different."
            raise ValueError(msg)
        known = set().union(*(table.var_names for table in tables))
        if absent := [gene for gene in chosen if gene not in known]:
            msg = f"{len(absent)} of `genes` are in no slide ({absent[:3]}, ...). Check identifiers and species."
            raise KeyError(msg)
        return chosen
    shared = tables[0].var_names
    for table in tables[1:]:
        shared = shared[shared.isin(table.var_names)]
    if not len(shared):
        msg = "No gene is in all of `slides`. Name the `genes` to predict."
        raise KeyError(msg)
    columns = [table.var_names.get_indexer(shared) for table in tables]
    values = [log_normalise(matrix, TARGET_SUM, index) for matrix, index in zip(counts, columns, strict=True)]
    if rule == "mean":
        score = np.sum([np.asarray(one.sum(0)).ravel() for one in values], axis=0)
    else:
        score = -np.median([rankdata(-moments([one])[1]) for one in values], axis=0)
    return shared.to_numpy().astype(str)[np.argsort(-score, kind="stable")[:n_genes]]


def _most_variable(table: AnnData, matrix: sparse.csr_array, n_genes: int) -> np.ndarray:
    """Names of the genes of one slide whose log-normalised expression varies most."""
    deviation = moments([log_normalise(matrix, TARGET_SUM)])[1]
    order = np.argsort(-deviation, kind="stable")[:n_genes]
    return table.var_names.to_numpy().astype(str)[order[deviation[order] > 0]]


def _image_slide(
    table: AnnData,
    matrix: sparse.csr_array,
    genes: np.ndarray,
    own: np.ndarray,
    name: str,
    place: ImagePlace,
    use_rep: str | None,
) -> ImageSlide:
    """Spots of one slide that have counts and lie wholly on the image."""
    from stimg._data._image_patches import ImageSlide

    totals = np.asarray(matrix.sum(1), dtype=np.float64).ravel()
    edge = place.diameter_um / 2
    size = np.array(place.image.shape) * place.image.mpp
    whole = ((place.centres >= edge) & (place.centres <= size - edge)).all(1)
    index = np.flatnonzero((totals > 0) & whole)
    columns = table.var_names.get_indexer(pd.Index(genes))
    found = np.flatnonzero((columns >= 0) & np.isin(genes, own))
    counts = sparse.csc_array(matrix[index])[:, columns[found]]
    widen = sparse.csr_array((np.ones(len(found)), (np.arange(len(found)), found)), shape=(len(found), len(genes)))
    targets = np.full((len(index), len(genes)), np.nan, dtype=np.float32)
    targets[:, found] = log_normalise(matrix[index], TARGET_SUM)[:, columns[found]].toarray()
    return ImageSlide(
        name=name,
        image=place.image,
        centres=place.centres[index],
        diameter_um=place.diameter_um,
        counts=sparse.csr_array(counts @ widen, dtype=np.float32),
        totals=totals[index],
        targets=targets,
        obs_index=index,
        embedding=None if use_rep is None else check_embedding(table, use_rep)[index],
    )
