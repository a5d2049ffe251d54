"""Embed every observation of a slide."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from stimg import _keys
from stimg._apply._embedding import embed_jointly, embed_table
from stimg._apply._run_windows import Readout, check_stride
from stimg._input._checks import check_choice, check_positive_int, checked
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
    from distributed import Client
    from spatialdata import SpatialData

    from stimg._apply._embedding import Embedded

logger = logging.getLogger("stimg")

SLIDES_AT_ONCE = 4


@checked
def embed(
    adata: AnnData | SpatialData | Sequence[AnnData | SpatialData],
    model: Model | str | Path = "stimg-tiny",
    *,
    layer: str | None = None,
    scale: str | None = None,
    gene_symbols: str | None = None,
    readout: Readout = "decoder",
    stride: int | None = None,
    symmetric: bool = True,
    batch_size: int | None = None,
    device: str = "auto",
    client: Client | None = None,
    key_added: str = _keys.EMBEDDING,
    lattice_key: str = _keys.LATTICE,
    table_key: str | None = None,
    copy: bool = False,
) -> AnnData | SpatialData | list[AnnData | SpatialData] | None:
    """Embed every observation with a pretrained model.

    The slide's tokens are computed by one sparse matrix product; overlapping windows gather them and pass through the
    network, and their results are averaged, with more weight on the windows' centres, and over the symmetries of the
    lattice. Genes are found by their symbols or Ensembl ids, whatever their version, case, or prefix of a genome, mouse
    genes also by their human orthologs; columns of the same gene are added up. Genes that the model does not know are
    ignored, genes that the slide lacks are left out; both are reported. If the slide has more genes than the training
    slides, those
    with the highest variance on the slide are used. The result is deterministic.

    Parameters
    ----------
    adata
        A slide after :func:`stimg.pp.to_lattice`, or a list of slides. Sections under a `library_key` are embedded
        one by one. Expression may be in memory, or stored by rows in a backed file, zarr or a dask array. In the latter
        case memory holds a few rows and the embedding, and 8 bytes per non-zero value are used on disk while it runs,
        in `stimg.settings.cachedir`.
    model
        A model, a name of :func:`stimg.models.available` (by default the weights that come with stimg), or the path or
        address of a `.safetensors` file.
    layer, scale
        Layer with expression, and whether it holds raw `"counts"` or `"log"`-normalised values. By default as recorded
        by :func:`stimg.pp.select_genes`, else counts in `.X`.
    gene_symbols
        Column of `.var` with the names of the genes, symbols or Ensembl ids. By default that given to
        :func:`stimg.pp.select_genes`, else `.var_names`, or the column that has clearly more of the model's genes.
    readout
        `"decoder"` states, from which expression is predicted (measured better for domains and probes), or the
        `"encoder"` output.
    stride
        Sites between windows; by default three quarters of a window, or half of one if not `symmetric`. Smaller
        strides give smoother embeddings and take longer.
    symmetric
        Average over four symmetries of the lattice: flips of a hexagonal, quarter turns of any other. Measured better,
        and a turned slide gets the same embedding. `False` is about twice as fast.
    batch_size
        Windows per batch; by default set by the device and the size of a window.
    device
        `"auto"`, `"cpu"`, `"cuda"` or `"mps"`. With `client`, that of the workers: `"cpu"` unless another is named.
    client
        A `distributed.Client`, over whose workers the windows of all slides are spread; what a lost worker had is run
        again. Only tokens and states travel. By default everything runs in this process.
    key_added
        Key of the embedding in `.obsm`.
    lattice_key
        Key written by `to_lattice`.
    table_key, copy
        Table of a `SpatialData`; whether to return a changed copy and leave `adata` as it is.

    Returns
    -------
    `None` (or the copy, or the list of copies), with
    `.obsm[key_added]` : float32, shape (n_obs, d). The network's embedding, comparable between slides. Observations
    that share a site have equal rows.
    `.obsm[key_added + "_slide"]` : float32, shape (n_obs, d + 30). The same, joined with 30 principal components of the
    slide's own 2,000 most variable genes, averaged over the sites within 2.3 pitches; each of the two parts is centred
    and has a total variance of one. For domains of one slide, since it also holds what the model never learned; not
    comparable between slides.
    `.obsm[key_added + "_joint"]` : float32, shape (n_obs, 50), if several sections are embedded in one call. For
    domains over these sections, since it is comparable between them: the network's embedding, joined with components of
    the genes that all of them have and their means over rings of 1, 2 and 3 pitches, each centred within its section.
    `.uns["stimg"]["embed"]` : parameters, gene overlap, the model's name and the sha256 of its file.

    Raises
    ------
    KeyError
        The lattice, a layer, or the column `gene_symbols` is missing.
    ValueError
        Fewer than 20 genes in common (or half of the model's, if these are fewer), expression that is all zeros or does
        not fit `scale`, a slide given twice, or a damaged weights file. None of several slides is changed then.
    TypeError
        `client` is not a `distributed.Client`, or expression is stored by columns.

    Warns
    -----
    UserWarning
        The slide shares with the model less than 40 % of the genes that it could share; counts that are not integers;
        hardly any counts.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic(n_obs=300), copy=True)
    >>> stimg.pp.select_genes(slide)
    >>> model = stimg.tl.pretrain(stimg.pp.to_patches(slide, size=8), max_steps=2)
    >>> stimg.tl.embed(slide, model)  # slides with real gene names need no `model`
    >>> slide.obsm["X_stimg"].shape
    (300, 128)
    """
    check_choice("readout", readout, ("encoder", "decoder"))
    for name, value in (("stride", stride), ("batch_size", batch_size)):
        if value is not None:
            check_positive_int(name, value)
    if client is not None and not (hasattr(client, "submit") and hasattr(client, "nthreads")):
        msg = f"Expected `client` to be a `distributed.Client`, found {type(client).__name__}."
        raise TypeError(msg)
    device = resolve_device(device, here=client is None)
    given = list(adata) if isinstance(adata, list | tuple) else [adata]
    tables = distinct_tables(given, table_key, copy=copy)
    model = given_model(Model, model)
    check_stride(model, stride)
    for table in tables:
        read_lattice(table, lattice_key)
    windows: dict[str, Any] = {"readout": readout, "stride": stride, "symmetric": symmetric, "batch_size": batch_size}
    windows |= {"device": device, "client": client}
    expression: dict[str, Any] = {
        "layer": layer,
        "scale": scale,
        "lattice_key": lattice_key,
        "gene_symbols": gene_symbols,
    }

    def run(table: AnnData) -> Embedded:
        return embed_table(table, model, windows, **expression)

    if client is None:
        found = [run(table) for table in tables]
    else:  # a few slides at once keep the workers busy while the next ones are read
        with ThreadPoolExecutor(SLIDES_AT_ONCE) as pool:
            found = list(pool.map(run, tables))
    joint, together = embed_jointly(found, model) or ([], "")
    results = []
    for number, (slide, one) in enumerate(zip(given, found, strict=True)):
        table, result = prepare(slide, table_key, copy)
        table.obsm[key_added] = one.states
        table.obsm[key_added + _keys.SLIDE_SUFFIX] = one.joined
        table.obsm.pop(key_added + _keys.JOINT_SUFFIX, None)
        if joint:
            table.obsm[key_added + _keys.JOINT_SUFFIX] = joint[number]
        record = one.record | {"readout": readout, "stride": stride or 0, "symmetric": bool(symmetric)}
        record |= {"embedded_together": together, "n_obs": table.n_obs}
        write_record(table, _keys.STEP_EMBED, key_added, record)
        results.append(result)
        logger.info(
            "Added .obsm[%r] and .obsm[%r], %d x %d, with model %r; %d genes shared.",
            key_added + (_keys.JOINT_SUFFIX if joint else _keys.SLIDE_SUFFIX),
            key_added,
            *one.states.shape,
            record["model"],
            record["n_genes_shared"],
        )
    if not copy:
        return None
    return results if isinstance(adata, list | tuple) else results[0]
