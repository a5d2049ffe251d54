"""HEST-1k: a collection of slides with H&E images, read from its own folders."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._input._checks import checked
from stimg._input._tables import libraries_of
from stimg._platforms import MOST_OFF, OF_TECHNOLOGY, PLATFORMS, spot_um
from stimg._slide._geometry import spacing
from stimg.datasets._collection import Collection
from stimg.datasets._reading import reading, set_spatial

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

TECHNOLOGIES = {"Spatial Transcriptomics": "ST", "Visium HD": "VisiumHD"}
SPECIES = {"Homo sapiens": "human", "Mus musculus": "mouse"}
OWN = "spot_diameter_fullres"
LICENCE = "CC BY-NC-SA 4.0, and that of the study"

logger = logging.getLogger("stimg")


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
        own: dict[str, Any] = next(iter(libraries_of(adata).values()), {})
        factors = {**own.get("scalefactors", {}), **_scale(slide, row, coordinates, own.get("scalefactors", {}))}
        metadata = {"technology": row["technology"], "study": row["study"], "licence": row["licence"]}
        if image:
            metadata["source_image_path"] = str(picture)
        set_spatial(adata, slide, coordinates, factors, own.get("images"), metadata)
        return adata


def _scale(slide: str, row: pd.Series, coordinates: np.ndarray, own: dict[str, float]) -> dict[str, float]:
    """Return micrometres per pixel and the diameter of a spot, as HEST states them for this slide.

    The diameter is that in the slide's file, else in its metadata (which for pooled bins are about the bins before),
    else that of the technology's array. What differs from that array is logged.
    """
    mpp = float(row["mpp"])
    if not mpp > 0:
        return {}
    points = np.asarray(coordinates, dtype=np.float64)
    pitch_um = spacing(points[np.isfinite(points).all(1)]) * mpp
    platform = OF_TECHNOLOGY.get(row["technology"], "free")
    usual = spot_um(platform, pitch_um)
    stated = float(own.get(OWN, np.nan)) * mpp
    if not stated > 0 and not abs(row["pitch_um"] / pitch_um - 1) > MOST_OFF:
        stated = float(row["diameter_um"])
    diameter_um = stated if stated > 0 else usual
    known = PLATFORMS[platform]
    shares = pitch_um / known.pitch_um, (diameter_um or np.nan) / (known.spot_um or np.nan)
    if any(abs(share - 1) > MOST_OFF for share in shares):
        what = "%s: spots of %.4g um at a pitch of %.4g um, as stated for this slide, which are not usual for %s."
        logger.info(what, slide, diameter_um or np.nan, pitch_um, row["technology"])
    found = {"microns_per_pixel": mpp}
    return found if diameter_um is None else {**found, OWN: diameter_um / mpp, "spot_diameter_um": diameter_um}


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
            "mpp": _number(found["pixel_size_um_estimated"]),
            "pitch_um": _number(found.get("inter_spot_dist")),
            "diameter_um": _number(found.get("spot_diameter")),
        }


def _number(value: object) -> float:
    """Return a number of the metadata, NaN where there is none."""
    return float("nan") if value in (None, "") else float(value)  # type: ignore[arg-type]
