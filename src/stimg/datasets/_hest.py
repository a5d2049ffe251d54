"""HEST-1k: a collection of slides with H&E images, read from its own folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stimg import _keys
from stimg._input._checks import checked
from stimg._platforms import SPOT_UM
from stimg.datasets._collection import Collection
from stimg.datasets._reading import reading, set_spatial

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

TECHNOLOGIES = {"Spatial Transcriptomics": "ST", "Visium HD": "VisiumHD"}
SPECIES = {"Homo sapiens": "human", "Mus musculus": "mouse"}
LICENCE = "CC BY-NC-SA 4.0, and that of the study"


@checked
def hest(
    root: str | Path,
    slides: str | Iterable[str] | None = None,
    *,
    tissue: str | Sequence[str] | None = None,
    species: str | Sequence[str] | None = None,
    technology: str | Sequence[str] | None = None,
) -> HEST:
    """Open a copy of HEST-1k on disk: expression in `st`, images in `wsis`, one JSON file per slide in `metadata`.

    Nothing is downloaded, since the authors ask for an account. Slides without a file in `st` are left out.

    Parameters
    ----------
    root
        The folder.
    slides, tissue, species, technology
        Conditions, as in :meth:`Collection.filter`; `tissue` is what HEST calls organ.

    Returns
    -------
    HEST
        With `catalogue`, `read` and `filter`.

    Raises
    ------
    FileNotFoundError
        `root` does not have HEST's folders.
    OSError
        A file in `metadata` is damaged.
    KeyError, ValueError
        As in :meth:`Collection.filter`.

    References
    ----------
    Jaume et al. 2024, HEST-1k, arXiv 2406.16192.
    """
    root = Path(root).expanduser()
    paths = sorted((root / "st").glob("*.h5ad"))
    if not paths or not (root / "metadata").is_dir():
        msg = f"No `st/*.h5ad` or no `metadata` in `root`={str(root)!r}. Give the folder of a copy of HEST-1k."
        raise FileNotFoundError(msg)
    rows = {path.stem: _row(root / "metadata" / f"{path.stem}.json") for path in paths}
    catalogue = pd.DataFrame.from_dict(rows, orient="index").rename_axis("slide")
    return HEST(catalogue, root).filter(slides, tissue=tissue, species=species, technology=technology)


class HEST(Collection):
    """HEST-1k or a part of it, as returned by :func:`stimg.datasets.hest`."""

    def __init__(self, catalogue: pd.DataFrame, root: Path) -> None:
        super().__init__(catalogue)
        self.root = root

    def read(self, slide: str, *, image: bool = True) -> AnnData:
        """Read a slide; see `Collection.read`."""
        import anndata

        slide = self.check_name(slide)
        picture = self.root / "wsis" / f"{slide}.tif"
        if image and not picture.is_file():
            msg = f"Image 'wsis/{slide}.tif' not found under {str(self.root)!r}. Copy it there, or pass `image=False`."
            raise FileNotFoundError(msg)
        path = self.root / "st" / f"{slide}.h5ad"
        with reading(path, "an AnnData object with `.obsm['spatial']`"):
            adata = anndata.read_h5ad(path)
            coordinates = adata.obsm[_keys.SPATIAL]
        adata.var_names_make_unique()
        row = self.catalogue.loc[slide]
        mpp = float(row["mpp"])
        own: dict[str, Any] = next(iter(adata.uns.get(_keys.SPATIAL, {}).values()), {})
        factors = {**own.get("scalefactors", {}), "microns_per_pixel": mpp}
        if row["technology"] in SPOT_UM:
            factors["spot_diameter_fullres"] = SPOT_UM[row["technology"]] / mpp
        metadata = {"technology": row["technology"], "study": row["study"], "licence": row["licence"]}
        if image:
            metadata["source_image_path"] = str(picture)
        set_spatial(adata, slide, coordinates, factors, own.get("images"), metadata)
        return adata


def _row(path: Path) -> dict[str, object]:
    """Return one slide's row of the catalogue."""
    with reading(path, "a JSON object with st_technology, species, organ and pixel_size_um_estimated"):
        found = json.loads(path.read_text())
        technology, species = str(found["st_technology"]), str(found["species"])
        return {
            "technology": TECHNOLOGIES.get(technology, technology),
            "species": SPECIES.get(species, species),
            "tissue": str(found["organ"]).lower(),
            "study": str(found.get("dataset_title", "")),
            "title": str(found.get("dataset_title", "")),
            "cancer": str(found.get("disease_state", "")).lower() == "cancer",
            "spots": found.get("spots_under_tissue"),
            "genes": found.get("nb_genes"),
            "annotated": False,
            "licence": LICENCE,
            "mpp": float(found["pixel_size_um_estimated"]),
        }
