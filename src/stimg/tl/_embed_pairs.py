"""Embed the H&E and the expression of spots in one space."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg import _keys
from stimg._input._checks import (
    check_embedding,
    check_expression,
    check_positive_int,
    check_var_unique,
    checked,
    get_layer,
)
from stimg._input._tables import prepare, resolve_table, write_uns
from stimg._slide._values import log_normalise

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData

    from stimg.models import AlignmentModel

logger = logging.getLogger("stimg")


@checked
def embed_pairs(
    adata: AnnData | SpatialData,
    model: AlignmentModel | str | Path,
    image: Any = None,
    *,
    layer: str | None = None,
    batch_size: int = 128,
    image_mpp: float | None = None,
    device: str = "auto",
    use_rep: str = _keys.EMBEDDING,
    lattice_key: str = _keys.LATTICE,
    image_key_added: str = _keys.IMAGE_EMBEDDING,
    gene_key_added: str = _keys.GENE_EMBEDDING,
    spatial_key: str = _keys.SPATIAL,
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
        As `images` of :func:`stimg.pp.to_image_patches`; by default the image in `adata`.
    layer
        Layer with raw counts; `.X` by default.
    batch_size
        Crops embedded at once.
    image_mpp
        Micrometres per pixel of the image, where they are unknown.
    device
        `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
    use_rep
        Spatial embedding in `.obsm`, for a model trained with `gene_encoder="embedding"`.
    lattice_key
        Key written by :func:`stimg.pp.to_lattice`, for a model trained with `gene_encoder="tuned"`.
    image_key_added, gene_key_added
        Keys of the embeddings in `.obsm`.
    spatial_key, library_id, image_key, table_key
        Where coordinates, the image and the table are.
    copy
        Return a changed copy and leave `adata` as it is.

    Returns
    -------
    `None` (or the copy), with
    `.obsm[image_key_added]` : float32 (n_obs, dim), of length one.
    `.obsm[gene_key_added]` : float32 (n_obs, dim), of length one. Genes of the model that the slide lacks count as
    average; a spatial network leaves them out.
    `.uns["stimg"]["embed_pairs"]` : parameters, the model's name and the sha256 of its file.

    Raises
    ------
    KeyError
        Coordinates, image, layer or lattice are missing.
    ValueError
        No raw counts, no gene of the model in the slide, one key for both, or image and spots that do not fit each
        other.
    """
    import torch
    from tqdm.auto import tqdm

    from stimg import __version__
    from stimg._apply._run_windows import get_device
    from stimg._apply._surroundings import read_surroundings
    from stimg._data._spot_crops import gene_inputs, read_crop, stain_inputs, window_inputs, z_scores
    from stimg._image._place import read_image_slide
    from stimg._settings import settings
    from stimg.models import AlignmentModel

    device = get_device(device)
    check_positive_int("batch_size", batch_size)
    if image_key_added == gene_key_added:
        msg = f"Expected two different keys, found {image_key_added!r} as `image_key_added` and as `gene_key_added`."
        raise ValueError(msg)
    if isinstance(model, str | Path):
        model = AlignmentModel.load(model)
    if not isinstance(model, AlignmentModel):
        msg = f"Expected `model` to be a `stimg.models.AlignmentModel` or a path, found {type(model).__name__}."
        raise TypeError(msg)
    table = resolve_table(adata, table_key, copy=copy)
    check_var_unique(table)
    name = f"layers[{layer!r}]" if layer else "X"
    counts = check_expression(get_layer(table, layer), "counts", name=name)
    encoder = model.config.gene_encoder
    if encoder == "embedding":
        read = _spatial_embedding(table, model, use_rep)
    elif encoder == "tuned":
        around = read_surroundings(table, model.spatial, np.arange(table.n_obs), layer=layer, lattice_key=lattice_key)
    else:
        read = _targets(table, model, counts)
    mpp, size = float(model.card["mpp"]), int(model.card["size"])
    place = read_image_slide(
        adata,
        image,
        mpp=mpp,
        spatial_key=spatial_key,
        library_id=library_id,
        image_key=image_key,
        table_key=table_key,
        image_mpp=image_mpp,
        diameter_um=float(model.card["diameter_um"]),
        name="adata",
    )
    if encoder != "tuned":
        values = torch.from_numpy(z_scores(read) if encoder == "embedding" else gene_inputs(read, place.centres))
    normalise = bool(model.card["stain_normalise"])
    looks = torch.from_numpy(stain_inputs(place.image, place.centres, size=size, mpp=mpp, stain_normalise=normalise))
    network = model.network.to(device).eval()
    found: dict[str, list[np.ndarray]] = {image_key_added: [], gene_key_added: []}
    try:
        with torch.no_grad():
            starts = range(0, table.n_obs, batch_size)
            for start in tqdm(starts, desc="Reading H&E", disable=not settings.progress, leave=False):
                some = slice(start, start + batch_size)
                pixels = None
                if network.encoder is not None:
                    crops = [read_crop(place.image, centre, size, mpp, normalise) for centre in place.centres[some]]
                    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(device).float() / 255
                images = network.encode_images(looks[some].to(device), pixels)
                if encoder == "tuned":
                    windows = {key: part.to(device) for key, part in window_inputs(around, some).items()}
                    genes = network.encode_genes(network.encode_surroundings(**windows))
                else:
                    genes = network.encode_genes(values[some].to(device))
                for key, part in ((image_key_added, images), (gene_key_added, genes)):
                    found[key].append(part.cpu().numpy())
    finally:
        network.cpu()
    table, result = prepare(adata, table_key, copy)
    for key, parts in found.items():
        table.obsm[key] = np.concatenate(parts)
    record = {
        "image_key_added": image_key_added,
        "gene_key_added": gene_key_added,
        "gene_encoder": encoder,
        "layer": layer or "",
        "use_rep": use_rep if encoder == "embedding" else "",
        "mpp": mpp,
        "crop_size": size,
        "model": model.card["name"],
        "sha256": model.sha256,
        "version": __version__,
    }
    write_uns(table, _keys.STEP_ALIGN, record)
    logger.info("Added .obsm[%r] and .obsm[%r]: %d spots.", image_key_added, gene_key_added, table.n_obs)
    return result


def _targets(table: AnnData, model: AlignmentModel, counts: sparse.csr_array) -> np.ndarray:
    """Log-normalised expression float32 (n_obs, n_genes) of the model's genes, NaN for those that the table lacks."""
    columns = table.var_names.get_indexer(model.genes)
    known = np.flatnonzero(columns >= 0)
    if not len(known):
        msg = f"None of the model's {len(model.genes)} genes ({model.genes[0]}, ...) is in `adata.var_names`."
        raise ValueError(msg)
    targets = np.full((table.n_obs, len(model.genes)), np.nan, dtype=np.float32)
    targets[:, known] = log_normalise(counts, float(model.card["target_sum"]))[:, columns[known]].toarray()
    return targets


def _spatial_embedding(table: AnnData, model: AlignmentModel, key: str) -> np.ndarray:
    """Embedding `.obsm[key]`, whose width is compared with that of the model."""
    embedding = check_embedding(table, key)
    if embedding.shape[1] != model.config.embedding_dim:
        msg = (
            f"Expected `adata.obsm[{key!r}]` of {model.config.embedding_dim} columns, which the model reads, "
            f"found {embedding.shape[1]}. Embed with the weights it was trained with."
        )
        raise ValueError(msg)
    return embedding
