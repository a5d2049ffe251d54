"""STimage-1K4M: 1,149 slides with H&E images, read from the data set's own folders."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._downloads import has_recorded_hash, inside, record_hash, short_name
from stimg._files import written_whole
from stimg._input._checks import check_positive_int, checked, warn
from stimg._settings import settings
from stimg.datasets import _stimage_tables as tables
from stimg.datasets._collection import Collection
from stimg.datasets._reading import set_spatial
from stimg.datasets._stimage_source import CACHE, HubFiles, LocalFiles, read_catalogue

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

LEAST_SHARED = 0.5


@checked
def stimage_1k4m(
    slides: str | Iterable[str] | None = None,
    *,
    root: str | Path | None = None,
    tissue: str | Sequence[str] | None = None,
    species: str | Sequence[str] | None = None,
    technology: str | Sequence[str] | None = None,
    study: str | None = None,
    cancer: bool | None = None,
    annotated: bool | None = None,
    revision: str | None = None,
) -> STimage1K4M:
    """Open STimage-1K4M, or a part of it: 1,149 slides of human, mouse and other tissues with H&E images.

    Only the catalogue (1.5 MB) is downloaded before a slide is read. Files come from the hub where the authors
    published them, are kept in `stimg.settings.cachedir`, and are compared with the sha256 of their first download. The
    collection is published under the MIT licence; the licence of each study applies to its slides.

    Parameters
    ----------
    root
        Folder of your own copy, with the data set's `meta`, `annotation`, `ST`, `Visium` and `VisiumHD`. Nothing is
        downloaded then.
    slides, tissue, species, technology, study, cancer, annotated
        Conditions, as in :meth:`Collection.filter`. Technologies are `"ST"`, `"Visium"` and `"VisiumHD"`.
    revision
        Commit of the hub. By default the one that was the newest at the first download, which the cache records.

    Returns
    -------
    STimage1K4M
        With `catalogue`, `read`, `download` and `filter`.

    Raises
    ------
    FileNotFoundError
        `root` does not have the data set's folders.
    ConnectionError
        The catalogue is not in the cache and could not be downloaded.
    KeyError, ValueError
        As in :meth:`Collection.filter`.

    References
    ----------
    Chen et al. 2024, STimage-1K4M, arXiv 2406.06393.

    Examples
    --------
    >>> root = stimg.datasets.synthetic_1k4m("miniature")  # leave out `root` for the published slides
    >>> brain = stimg.datasets.stimage_1k4m(root=root, tissue="brain", species="human")
    >>> brain[0].shape
    (36, 40)
    """
    source = LocalFiles(root) if root is not None else HubFiles(revision)
    return STimage1K4M(read_catalogue(source), source).filter(
        slides, tissue=tissue, species=species, technology=technology, study=study, cancer=cancer, annotated=annotated
    )


class STimage1K4M(Collection):
    """STimage-1K4M or a part of it, as returned by :func:`stimg.datasets.stimage_1k4m`."""

    def __init__(self, catalogue: pd.DataFrame, source: LocalFiles | HubFiles) -> None:
        super().__init__(catalogue)
        self.source = source

    def files(self, slide: str) -> dict[str, str]:
        """Return the files of a slide by role, as paths inside the data set."""
        slide = self.check_name(slide)
        folder = self.catalogue.loc[slide, "technology"]
        found = {
            "coordinates": f"{folder}/coord/{slide}_coord.csv",
            "counts": f"{folder}/gene_exp/{slide}_count.csv",
            "image": f"{folder}/image/{slide}.png",
        }
        annotation = self.source.annotations.get(slide)
        return found | ({"annotation": annotation} if annotation else {})

    def download(self, *, image: bool = True, n_jobs: int = 4) -> None:
        """Download all slides of this collection, several files at once, except for files that are there already.

        Parameters
        ----------
        image
            Download the images as well, which are by far the largest files.
        n_jobs
            Number of files to download at once.

        Raises
        ------
        ConnectionError
            A file could not be downloaded. Call again to continue where it stopped.
        OSError
            A file differs from its recorded sha256.
        """
        from tqdm.auto import tqdm

        check_positive_int("n_jobs", n_jobs)
        files = [(slide, role, path) for slide in self.names for role, path in self.files(slide).items()]
        wanted = [(path, slide) for slide, role, path in files if image or role != "image"]
        with ThreadPoolExecutor(n_jobs) as pool:
            done = pool.map(lambda pair: self.source.path(*pair), wanted)
            for _ in tqdm(done, total=len(wanted), desc="STimage-1K4M", disable=not settings.progress):
                pass

    def read(self, slide: str, *, image: bool = True) -> AnnData:
        """Read a slide; see `Collection.read`. The parsed slide is kept in `stimg.settings.cachedir` as `.h5ad`."""
        import anndata

        wanted = {role: file for role, file in self.files(slide).items() if image or role != "image"}
        paths = {role: self.source.path(file, slide) for role, file in wanted.items()}
        cached = inside(settings.cachedir / "datasets" / CACHE / "h5ad", short_name(f"{slide}.h5ad"))
        stats = {role: (path, path.stat()) for role, path in paths.items() if role != "image"}
        state = json.dumps({role: [str(path), s.st_size, s.st_mtime_ns] for role, (path, s) in sorted(stats.items())})
        if has_recorded_hash(cached) and _cached_state(cached) == state:
            adata = anndata.read_h5ad(cached)
        else:
            adata = self._assemble(slide, paths)
            adata.uns["stimg_source"] = state
            cached.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(cached) as unfinished:
                adata.write_h5ad(unfinished, compression="lzf")
            record_hash(cached)
        del adata.uns["stimg_source"]
        if image:
            adata.uns[_keys.SPATIAL][slide]["metadata"]["source_image_path"] = str(paths["image"])
        return adata

    def _assemble(self, slide: str, paths: dict[str, Path]) -> AnnData:
        from anndata import AnnData

        places = tables.read_coordinates(paths["coordinates"])
        counts, spots, genes = tables.read_wide_counts(paths["counts"])
        tables.check_unique(spots, paths["counts"])
        rows = places.index.get_indexer(spots)
        known = np.flatnonzero(rows >= 0)
        if len(known) < LEAST_SHARED * max(len(spots), len(places)):
            msg = (
                f"Only {len(known):,} spots of {slide!r} are in both its counts ({len(spots):,}, {spots[0]!r}, ...) "
                f"and its coordinates ({len(places):,}, {places.index[0]!r}, ...). The files do not belong together."
            )
            raise ValueError(msg)
        if len(known) < max(len(spots), len(places)):
            warn(
                f"{len(spots):,} spots of {slide!r} have counts and {len(places):,} have coordinates; the "
                f"{len(known):,} with both are kept."
            )
        places = places.iloc[rows[known]]
        technology = str(self.catalogue.loc[slide, "technology"])
        obs = pd.DataFrame(index=spots[known])
        positions, bin_um = tables.array_positions(spots[known], technology)
        if positions is not None:
            obs[_keys.ARRAY_ROW], obs[_keys.ARRAY_COL] = positions.T.astype(np.int32)
        if "annotation" in paths:
            obs["domain"] = tables.read_annotation(paths["annotation"], obs.index)
        adata = AnnData(counts[known], obs=obs, var=pd.DataFrame(index=genes))
        adata.var_names_make_unique()
        factors = tables.scale_factors(places, technology, positions, bin_um, slide)
        metadata = {name: str(self.catalogue.loc[slide, name]) for name in ("technology", "study", "licence")}
        set_spatial(adata, slide, places[["xaxis", "yaxis"]], factors, metadata=metadata)
        return adata


def _cached_state(path: Path) -> str | None:
    """Return what the cached slide was made from, or `None` if there is no readable one."""
    import h5py

    try:
        with h5py.File(path) as file:
            return file["uns/stimg_source"][()].decode()  # type: ignore[index, union-attr]
    except (OSError, KeyError):
        return None
