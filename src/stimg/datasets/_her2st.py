"""Human HER2-positive breast cancer, legacy Spatial Transcriptomics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._input._checks import checked
from stimg.datasets._fetch import fetch, load
from stimg.datasets._reading import set_spatial

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

SECTIONS = tuple(f"{p}{i + 1}" for p, n in zip("ABCDEFGH", (6, 6, 6, 6, 3, 3, 3, 3), strict=True) for i in range(n))
ANNOTATED = ("A1", "B1", "C1", "D1", "E1", "F1", "G2", "H1")
REPOSITORY = "https://raw.githubusercontent.com/almaan/her2st/master/data"
SPOT_PITCHES = 0.5  # spots of 100 micrometres at a pitch of 200


@checked
def her2st(section: str) -> AnnData:
    """Load a section of human HER2-positive breast cancer.

    The section is read from `$STIMG_DATA_DIR/her2st/<section>.h5ad` if that file exists. Otherwise it is downloaded
    from the authors' repository and kept in `stimg.settings.cachedir`.

    Parameters
    ----------
    section
        One of 36: A1 to A6, B1 to B6, C1 to C6, D1 to D6, E1 to E3, F1 to F3, G1 to G3, H1 to H3. The letter is
        the patient.

    Returns
    -------
    AnnData
        Raw counts in `.X` (CSR), `.obs["array_row"]`, `.obs["array_col"]` (square array), `.obsm["spatial"]` (x, y in
        pixels of the full-resolution image) and, for the sections that a pathologist annotated (A1, B1, C1, D1, E1,
        F1, G2, H1), `.obs["domain"]` (categorical). Downloaded sections come without an image; a local file is
        returned as it is.

    Raises
    ------
    ValueError
        The section is unknown.
    ConnectionError
        The section is not on disk and the download failed; the message says where to put the file.
    OSError
        A file is damaged.

    Notes
    -----
    Andersson et al. 2021, Nature Communications 12, 6012; github.com/almaan/her2st.
    """
    return load("her2st", "section", section, SECTIONS, _assemble)


def _assemble(name: str) -> AnnData:
    """Fetch the published files of a section and put them together."""
    from anndata import AnnData
    from scipy import sparse

    counts = fetch(f"{REPOSITORY}/ST-cnts/{name}.tsv.gz", "her2st", name)
    spots = fetch(f"{REPOSITORY}/ST-spotfiles/{name}_selection.tsv", "her2st", name)
    table = pd.read_csv(counts, sep="\t", index_col=0)
    under_tissue = pd.read_csv(spots, sep="\t")
    under_tissue = under_tissue[under_tissue["selected"] == 1]
    under_tissue.index = _array_names(under_tissue["x"], under_tissue["y"])
    shared = table.index[table.index.isin(under_tissue.index)]
    if not len(shared):
        msg = f"Expected spots of {spots.name} in {counts.name}, found none. Delete both files to download them again."
        raise OSError(msg)
    spot = under_tissue.loc[shared]
    obs = pd.DataFrame(index=[f"{name}_{place}" for place in shared])
    obs[_keys.ARRAY_ROW], obs[_keys.ARRAY_COL] = spot["y"].to_numpy(np.int32), spot["x"].to_numpy(np.int32)
    obs["sample"], obs["patient"] = pd.Categorical([name] * len(obs)), pd.Categorical([name[0]] * len(obs))
    if name in ANNOTATED:
        labels = fetch(f"{REPOSITORY}/ST-pat/lbl/{name}_labeled_coordinates.tsv", "her2st", name)
        obs["domain"] = pd.Categorical(_read_labels(labels).reindex(shared))
    matrix = sparse.csr_matrix(table.loc[shared].to_numpy(dtype=np.float32))
    adata = AnnData(matrix, obs=obs, var=pd.DataFrame(index=table.columns.astype(str)))
    adata.var_names_make_unique()
    pitch = np.ptp(spot["pixel_x"]) / max(np.ptp(spot["new_x"]), 1)
    factors = {"spot_diameter_fullres": float(SPOT_PITCHES * pitch)}
    set_spatial(adata, name, spot[["pixel_x", "pixel_y"]], factors)
    platform = "legacy ST (100 um spots, 200 um pitch)"
    adata.uns["source"] = {"origin": REPOSITORY, "platform": platform, "species": "human"}
    return adata


def _array_names(x: pd.Series, y: pd.Series) -> list[str]:
    """Name array positions as the count tables do: 10x13 is column 10, row 13."""
    return [f"{col}x{row}" for col, row in zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True)]


def _read_labels(path: Path) -> pd.Series:
    """Read the pathologist's label at each array position; positions in the file are measured, not quite integers."""
    table = pd.read_csv(path, sep="\t").dropna(subset=["x", "y", "label"])
    labels = pd.Series(table["label"].to_numpy(dtype=object), index=_array_names(table["x"], table["y"]))
    return labels[~labels.index.duplicated()]
