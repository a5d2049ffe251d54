"""Crop slides with H&E into a data set of images and the spots inside them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._apply._surroundings import read_surroundings
from stimg._data._image_patches import ImagePatchDataset, ImageSlide
from stimg._data._targets import GENE_RULES, TARGET_SUM, GeneRule, choose_genes, counts_of, expression_of
from stimg._image._place import ImagePlace, ImageSource, place_on_image
from stimg._input._checks import (
    check_choice,
    check_embedding,
    check_obsm,
    check_positive,
    check_positive_int,
    check_var_unique,
    checked,
)
from stimg._input._rows import read_expression
from stimg._input._tables import resolve_table
from stimg._slide._gene_match import gene_names
from stimg.models import Model
from stimg.models._given import given_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData


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
    gene_symbols: str | None = None,
    use_rep: str | None = None,
    spatial_model: Model | str | Path | None = None,
    lattice_key: str = _keys.LATTICE,
    spatial_key: str | None = None,
    library_id: str | None = None,
    image_key: str | None = None,
    table_key: str | None = None,
    rng: int | np.random.Generator | None = 0,
) -> ImagePatchDataset:
    """Crop H&E images into squares, each with the spots inside it and their expression.

    All images are brought to one resolution in micrometres per pixel, so that slides from different scanners and
    platforms can be mixed. Crops are read from the images on demand; from tiled files only the tiles that are needed.

    Parameters
    ----------
    slides
        One slide or several, with raw counts. They are not changed.
    images
        One image per slide, whose pixels are the units of `.obsm[spatial_key]`: a path (PNG, JPEG, TIFF, OME-TIFF, or
        a scanner's file such as Aperio's SVS) or an array. By default the largest image in `.uns["spatial"]`, or the
        image `image_key` of a `SpatialData`, on which the spots are placed by their shapes and all transformations.
        What lies beyond its edges is mirrored.
    mpp
        Micrometres per pixel of the crops.
    size
        Side of a crop in pixels, a multiple of 32 for the bundled network.
    stride
        Pixels between neighbouring crops; by default `size` minus twice a spot's diameter, so that every spot lies
        wholly inside some crop.
    genes
        Genes to predict. Genes that a slide lacks do not count in its loss.
    n_genes
        Number of genes to choose by `gene_rule` if `genes` is not given.
    gene_rule
        Which of the genes that all slides have are chosen. `"mean"`: those with the highest mean of log-normalised
        expression over all spots (as in PixNet, arXiv 2503.01347). `"variable"`: those that vary most in all slides
        (median rank of the variance). `"variable_in_each"`: each slide's most variable genes, which may be absent from
        other slides; a gene counts only in the slides that chose it. The last two are meant for
        :func:`stimg.tl.align`, as in STimage-1K4M's code (arXiv 2406.06393).
    image_mpp
        Micrometres per pixel of the images; by default from the pitch that :func:`stimg.pp.to_lattice` recorded, from
        `microns_per_pixel` among the scale factors (Space Ranger), or from a TIFF file.
    diameter_um
        Diameter of the spots in micrometres; by default that of the platform's array (55 for Visium, 100 for legacy ST,
        the side of bins) and, on other arrays, `spot_diameter_fullres` of the scale factors. For Visium, Space Ranger
        writes 65 to 70 micrometres there, which is not used.
    stain_normalise
        Bring the mean and deviation of each slide's optical density in tissue to those of a reference.
    augment
        Shift crops by up to half a stride, flip and turn them at random.
    names
        One name per slide. By default `slide0`, `slide1`, ...
    layer
        Layer with raw counts; `.X` by default.
    gene_symbols
        Column of `.var` with the names of the genes; by default `.var_names`. Ensembl ids are known by their symbols.
    use_rep
        Embedding in `.obsm` of every slide, such as `"X_stimg"`, for `stimg.nn.AlignConfig(gene_encoder="embedding")`.
    spatial_model
        A model from :func:`stimg.tl.pretrain`, or its name or path, which :func:`stimg.tl.align` tunes with
        `stimg.nn.AlignConfig(gene_encoder="tuned")`. The surroundings that it reads of every spot are kept in memory.
    lattice_key
        Key written by :func:`stimg.pp.to_lattice`, for `spatial_model`.
    spatial_key, library_id, image_key, table_key
        Coordinates in `.obsm`, section in `.uns["spatial"]`, and the image and table of a `SpatialData`.
    rng
        Seed or generator of the augmentation.

    Returns
    -------
    ImagePatchDataset
        A map-style torch dataset. Targets are log1p of counts per 10,000, normalised over all genes of the slide.

    Raises
    ------
    KeyError
        Coordinates, image, scale factor, genes or lattice are missing.
    ValueError
        Bad numbers; expression that is not raw counts; unknown resolution or diameter; an `image_mpp` that contradicts
        the lattice; a table of several sections; an image that is too coarse for `mpp`, or whose tissue is not where
        the spots are or fits them far better turned; no spot wholly inside any crop; a `spatial_model` that reads whole
        slides.
    OSError
        An image file is damaged.

    Warns
    -----
    UserWarning
        The spots would fit the tissue somewhat better if they were turned, flipped or moved, or the image file states a
        resolution other than `image_mpp`.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic_histology(n_rows=6, n_cols=6)
    >>> stimg.pp.to_lattice(slide, platform="st")
    >>> stimg.pp.to_image_patches(slide)
    ImagePatchDataset: 9 crops of 256 x 256 pixels at 2 um with 36 spots and 30 genes, from 1 slides
    """
    check_positive_int("size", size)
    check_positive_int("n_genes", n_genes)
    check_positive("mpp", mpp)
    check_choice("gene_rule", gene_rule, GENE_RULES)
    several = isinstance(slides, list | tuple)
    given = list(slides) if several else [slides]
    if not given:
        msg = "Expected at least one slide in `slides`, found an empty list."
        raise ValueError(msg)
    sources = _one_per_slide("images", images, len(given), several=several)
    named = _one_per_slide("names", names, len(given), several=True)
    named = [f"slide{i}" if name is None else str(name) for i, name in enumerate(named)]
    tables = [resolve_table(slide, table_key) for slide in given]
    for table in tables:
        check_var_unique(table)
        if spatial_model is not None:
            check_obsm(table, lattice_key, advice="Run `stimg.pp.to_lattice(adata)` first.")
    embeddings = [None if use_rep is None else check_embedding(table, use_rep) for table in tables]
    network = None if spatial_model is None else given_model(Model, spatial_model, "spatial_model")
    counts = [read_expression(table, layer, "counts") for table in tables]
    chosen, columns = choose_genes(
        [pd.Index(gene_names(table, gene_symbols)) for table in tables], counts, genes, n_genes, gene_rule
    )
    where = ImageSource(None, image_mpp, diameter_um, spatial_key, library_id, image_key, table_key)
    read = []
    for i, (slide, image, name) in enumerate(zip(given, sources, named, strict=True)):
        place = place_on_image(slide, replace(where, image=image, name=name), mpp=mpp)
        read.append(_image_slide(name, place, counts[i], columns[i], embeddings[i]))
    if network is not None:
        spatial: dict[str, Any] = {"layer": layer, "lattice_key": lattice_key, "gene_symbols": gene_symbols}
        for i, table in enumerate(tables):
            around = read_surroundings(table, network, read[i].obs_index, **spatial)
            read[i] = replace(read[i], surroundings=around)
    largest = max(slide.diameter_um for slide in read) / mpp
    if largest >= size:
        msg = f"Expected crops larger than a spot, found `size`={size} and spots of {largest:.0f} pixels. Raise `size`."
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
        msg = f"No spot lies wholly inside any crop of {size} pixels at {mpp:g} micrometres per pixel. Raise `size`."
        raise ValueError(msg)
    return dataset


def _one_per_slide(argument: str, values: Any, n_slides: int, *, several: bool) -> list[Any]:
    """Return one value per slide, `None` where nothing is given."""
    if values is None:
        return [None] * n_slides
    if not several:
        return [values]
    if isinstance(values, str) or not isinstance(values, list | tuple) or len(values) != n_slides:
        found = len(values) if isinstance(values, list | tuple) else type(values).__name__
        msg = f"Expected `{argument}` to be a list with one entry per slide ({n_slides}), found {found}."
        raise ValueError(msg)
    return list(values)


def _image_slide(
    name: str, place: ImagePlace, counts: sparse.csr_array, columns: np.ndarray, embedding: np.ndarray | None
) -> ImageSlide:
    """Keep the spots of a slide that have counts and lie wholly on the image."""
    totals = np.asarray(counts.sum(1), dtype=np.float64).ravel()
    edge = place.diameter_um / 2
    size = np.array(place.image.shape) * place.image.mpp
    whole = ((place.centres >= edge) & (place.centres <= size - edge)).all(1)
    index = np.flatnonzero((totals > 0) & whole)
    return ImageSlide(
        name=name,
        image=place.image,
        centres=place.centres[index],
        diameter_um=place.diameter_um,
        counts=counts_of(counts[index], columns),
        totals=totals[index],
        targets=expression_of(counts[index], columns, TARGET_SUM),
        obs_index=index,
        embedding=None if embedding is None else embedding[index],
    )
