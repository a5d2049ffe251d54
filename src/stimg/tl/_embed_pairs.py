"""Embed the H&E and the expression of spots in one space."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg import _keys
from stimg._apply._pairs import embed_genes, embed_images
from stimg._apply._surroundings import read_surroundings
from stimg._data._targets import expression_of
from stimg._image._place import ImageSource, place_on_image, rows_on_image
from stimg._input._checks import check_embedding, check_positive_int, check_var_unique, checked
from stimg._input._device import resolve_device
from stimg._input._records import write_record
from stimg._input._rows import read_expression
from stimg._input._tables import prepare, resolve_table
from stimg._slide._gene_match import match_genes
from stimg.models import AlignmentModel
from stimg.models._given import given_model

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg._data._image_patches import Surroundings

logger = logging.getLogger("stimg")


@checked
def embed_pairs(
    adata: AnnData | SpatialData,
    model: AlignmentModel | str | Path,
    image: Any = None,
    *,
    layer: str | None = None,
    gene_symbols: str | None = None,
    batch_size: int = 128,
    image_mpp: float | None = None,
    device: str = "auto",
    use_rep: str = _keys.EMBEDDING,
    lattice_key: str = _keys.LATTICE,
    image_key_added: str = _keys.IMAGE_EMBEDDING,
    gene_key_added: str = _keys.GENE_EMBEDDING,
    spatial_key: str | None = None,
    library_id: str | None = None,
    image_key: str | None = None,
    table_key: str | None = None,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Embed every spot twice, by its H&E and by its expression, in the space of an aligned model.

    Parameters
    ----------
    adata
        A slide with raw counts.
    model
        From :func:`stimg.tl.align`, or the path of a file that its `save` wrote.
    image
        Path or array whose pixels are the units of `.obsm[spatial_key]`, as in :func:`stimg.pp.to_image_patches`; by
        default the image in `adata`.
    layer
        Layer with raw counts; `.X` by default.
    gene_symbols
        Column of `.var` with the names of the genes, as in :func:`stimg.tl.embed`.
    batch_size
        Number of crops that are embedded at once.
    image_mpp
        Micrometres per pixel of the image, if `adata` and the file do not state them.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"`.
    use_rep
        Spatial embedding in `.obsm`, for a model trained with `gene_encoder="embedding"`.
    lattice_key
        Key written by :func:`stimg.pp.to_lattice`, for a model trained with `gene_encoder="tuned"`.
    image_key_added, gene_key_added
        Keys of the embeddings in `.obsm`.
    spatial_key, library_id, image_key, table_key, copy
        As in :func:`stimg.tl.predict_expression`.

    Returns
    -------
    `None` (or the copy), with
    `.obsm[image_key_added]` : float32 (n_obs, dim), rows of length one; NaN for spots outside the image.
    `.obsm[gene_key_added]` : float32 (n_obs, dim), rows of length one. Genes of the model that the slide lacks count as
    average; a spatial network leaves them out.
    `.uns["stimg"]["embed_pairs"]` : parameters, the model's name and the sha256 of its file.

    Raises
    ------
    KeyError
        Coordinates, image, layer or lattice are missing.
    ValueError
        No raw counts, too few genes of the model in the slide, the same key twice, or image and spots that do not fit
        each other.

    Warns
    -----
    UserWarning
        Spots lie outside the image.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic_histology(n_rows=6, n_cols=6), "st", copy=True)
    >>> model = stimg.tl.align(stimg.pp.to_image_patches(slide), max_steps=2)
    >>> stimg.tl.embed_pairs(slide, model)
    >>> slide.obsm["X_stimg_image"].shape, slide.obsm["X_stimg_gene"].shape
    ((36, 64), (36, 64))
    """
    device = resolve_device(device)
    check_positive_int("batch_size", batch_size)
    if image_key_added == gene_key_added:
        msg = f"Expected two different keys, found {image_key_added!r} for both `image_key_added` and `gene_key_added`."
        raise ValueError(msg)
    model = given_model(AlignmentModel, model)
    table = resolve_table(adata, table_key, copy=copy)
    check_var_unique(table)
    read = _gene_side(table, model, layer=layer, gene_symbols=gene_symbols, use_rep=use_rep, lattice_key=lattice_key)
    diameter_um, mpp = float(model.card["diameter_um"]), float(model.card["mpp"])
    source = ImageSource(image, image_mpp, diameter_um, spatial_key, library_id, image_key, table_key)
    place = place_on_image(adata, source, mpp=mpp)
    inside = rows_on_image(place.image, place.centres)
    options: dict[str, Any] = {"batch_size": batch_size, "device": device}
    images = np.full((table.n_obs, model.config.dim), np.nan, dtype=np.float32)
    images[inside] = embed_images(model, place.image, place.centres[inside], **options)
    genes = embed_genes(model, read, place.centres, **options)
    table, result = prepare(adata, table_key, copy)
    table.obsm[image_key_added], table.obsm[gene_key_added] = images, genes
    encoder = model.config.gene_encoder
    record = {
        "image_key_added": image_key_added,
        "gene_key_added": gene_key_added,
        "gene_encoder": encoder,
        "layer": layer or "",
        "use_rep": use_rep if encoder == "embedding" else "",
        "mpp": mpp,
        "crop_size": int(model.card["size"]),
        "model": model.card["name"],
        "sha256": model.sha256,
    }
    for key in (image_key_added, gene_key_added):
        write_record(table, _keys.STEP_ALIGN, key, record)
    logger.info("Added .obsm[%r] and .obsm[%r]: %d spots.", image_key_added, gene_key_added, table.n_obs)
    return result


def _gene_side(
    table: AnnData,
    model: AlignmentModel,
    *,
    layer: str | None,
    gene_symbols: str | None,
    use_rep: str,
    lattice_key: str,
) -> np.ndarray | Surroundings:
    """Check and read what the model's gene encoder needs to know about every spot."""
    everyone = np.arange(table.n_obs)
    if model.config.gene_encoder == "tuned":
        where: dict[str, Any] = {"layer": layer, "lattice_key": lattice_key, "gene_symbols": gene_symbols}
        return read_surroundings(table, model.spatial, everyone, **where)
    if model.config.gene_encoder != "embedding":
        match = match_genes(table, model.genes, gene_symbols)
        counts = read_expression(table, layer, "counts", into=match.into)
        return expression_of(counts, match.column_of, float(model.card["target_sum"]))
    embedding, width = check_embedding(table, use_rep), model.config.embedding_dim
    if embedding.shape[1] != width:
        msg = (
            f"Expected `adata.obsm[{use_rep!r}]` with {width} columns, as in the model's training, found "
            f"{embedding.shape[1]}. Embed with the weights that the model was trained with."
        )
        raise ValueError(msg)
    return embedding
