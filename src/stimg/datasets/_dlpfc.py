"""Human dorsolateral prefrontal cortex, Visium."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from stimg import _keys
from stimg._input._checks import checked
from stimg.datasets._fetch import fetch, load
from stimg.datasets._reading import set_spatial

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

SLICES = tuple(str(first + i) for first in (151507, 151669, 151673) for i in range(4))
LAYERS = ("L1", "L2", "L3", "L4", "L5", "L6", "WM")
# Both addresses as in the README of github.com/LieberInstitute/HumanPilot.
BUCKET = "https://spatial-dlpfc.s3.us-east-2.amazonaws.com"
REPOSITORY = "https://raw.githubusercontent.com/LieberInstitute/HumanPilot/master/10X"
POSITIONS = ("in_tissue", _keys.ARRAY_ROW, _keys.ARRAY_COL, "pxl_row_in_fullres", "pxl_col_in_fullres")


@checked
def dlpfc(slice: str | int) -> AnnData:
    """Load a slice of human dorsolateral prefrontal cortex with its expert layers.

    The slice is read from `$STIMG_DATA_DIR/dlpfc/<slice>.h5ad` if that file exists. Otherwise it is downloaded from
    where the authors published it (about 10 MB) and kept in `stimg.settings.cachedir`.

    Parameters
    ----------
    slice
        One of twelve: 151507 to 151510, 151669 to 151672, 151673 to 151676 (four from each donor).

    Returns
    -------
    AnnData
        Raw counts in `.X` (CSR), `.obs["domain"]` (categorical: L1 to L6 and WM; NaN where not annotated),
        `.obs["array_row"]`, `.obs["array_col"]`, `.obsm["spatial"]` (x, y in pixels of the full-resolution image) and
        the low-resolution image in `.uns["spatial"][slice]`. Downloaded slices have all genes, with Ensembl ids
        in `.var["gene_ids"]`; a local file is returned as it is.

    Raises
    ------
    ValueError
        The slice is unknown.
    ConnectionError
        The slice is not on disk and the download failed; the message says where to put the file.
    OSError
        A file is damaged.

    Notes
    -----
    Maynard et al. 2021, Nature Neuroscience 24, 425-436; data from spatialLIBD, Artistic-2.0.
    """
    return load("dlpfc", "slice", slice, SLICES, _assemble)


def _assemble(name: str) -> AnnData:
    """Fetch the published files of a slice and put them together."""
    counts = fetch(f"{BUCKET}/h5/{name}_filtered_feature_bc_matrix.h5", "dlpfc", name)
    image = fetch(f"{BUCKET}/images/{name}_tissue_lowres_image.png", "dlpfc", name)
    positions, scales = (
        fetch(f"{REPOSITORY}/{name}/{file}", "dlpfc", name, f"{name}_{file}")
        for file in ("tissue_positions_list.txt", "scalefactors_json.json")
    )
    layers = fetch(f"{REPOSITORY}/barcode_level_layer_map.tsv", "dlpfc", name)
    adata = _read_counts(counts)
    table = pd.read_csv(positions, header=None, index_col=0, names=["barcode", *POSITIONS])
    if missing := int((~adata.obs_names.isin(table.index)).sum()):
        msg = f"Expected every spot of {counts.name} in {positions.name}, found {missing} missing. Delete both files."
        raise OSError(msg)
    table = table.loc[adata.obs_names]
    adata.obs[[_keys.ARRAY_ROW, _keys.ARRAY_COL]] = table[[_keys.ARRAY_ROW, _keys.ARRAY_COL]].astype(np.int32)
    labels = pd.read_csv(layers, sep="\t", header=None, names=["barcode", "slice", "layer"], dtype=str)
    labels = labels[labels["slice"] == name].set_index("barcode")["layer"]
    adata.obs["domain"] = pd.Categorical(labels.reindex(adata.obs_names), categories=LAYERS).remove_unused_categories()
    pixels = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]]
    set_spatial(
        adata,
        name,
        pixels,
        json.loads(scales.read_text()),
        images={"lowres": np.asarray(Image.open(image, formats=["PNG", "JPEG"]).convert("RGB"))},
    )
    adata.uns["source"] = {"counts": BUCKET, "meta": REPOSITORY, "platform": "10x Visium", "species": "human"}
    return adata


def _read_counts(path: Path) -> AnnData:
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        adata = sc.read_10x_h5(path)
    adata.var_names_make_unique()
    return adata
