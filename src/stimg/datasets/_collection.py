"""Many slides on disk, read one by one."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from stimg import _keys
from stimg._downloads import is_file_name
from stimg._input._checks import check_strings, checked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData


class Collection(ABC):
    """A catalogue of slides, each of which is read when you ask for it.

    :func:`stimg.datasets.stimage_1k4m` and :func:`stimg.datasets.hest` return one. `collection["name"]` and
    `collection[3]` read a slide; iteration reads one slide after another.

    Attributes
    ----------
    catalogue
        One row per slide, indexed by its name, with `technology` (`"ST"`, `"Visium"`, `"VisiumHD"`, ...), `species`,
        `tissue`, `study`, `title`, `cancer`, `spots`, `genes`, `annotated`, `licence`.
    """

    def __init__(self, catalogue: pd.DataFrame) -> None:
        self.catalogue = catalogue

    def __repr__(self) -> str:
        counts = self.catalogue["technology"].value_counts()
        parts = [f"{count:,} {name}" for name, count in counts.items() if count > 0]
        spots = int(self.catalogue["spots"].fillna(0).sum())
        return f"{type(self).__name__}: {len(self):,} slides ({', '.join(parts)}), {spots:,} spots"

    def __len__(self) -> int:
        return len(self.catalogue)

    def __iter__(self) -> Iterator[AnnData]:
        return (self.read(name) for name in self.names)

    def __getitem__(self, slide: str | int) -> AnnData:
        """Read a slide by its name or number."""
        return self.read(self.names[slide] if isinstance(slide, int | np.integer) else slide)

    @property
    def names(self) -> list[str]:
        """Names of the slides in the order of the catalogue."""
        return self.catalogue.index.tolist()

    @checked
    def filter(
        self,
        slides: str | Iterable[str] | None = None,
        *,
        tissue: str | Sequence[str] | None = None,
        species: str | Sequence[str] | None = None,
        technology: str | Sequence[str] | None = None,
        study: str | None = None,
        cancer: bool | None = None,
        annotated: bool | None = None,
    ) -> Self:
        """Return the slides that meet all conditions.

        Parameters
        ----------
        slides
            Names of slides; all by default.
        tissue, species, technology
            One value or several; upper and lower case do not matter.
        study
            Part of the study's identifiers (PubMed numbers), such as `"34650042"`.
        cancer, annotated
            Tissue with or without a tumour; slides with or without a pathologist's annotation.

        Raises
        ------
        KeyError
            A slide is unknown.
        ValueError
            No slide has this value, or none meets all conditions.
        TypeError
            Names or values are not strings.
        """
        kept = np.ones(len(self), dtype=bool)
        if slides is not None:
            kept &= self.catalogue.index.isin([self.check_name(name) for name in check_strings("slides", slides)])
        for column, values in (("tissue", tissue), ("species", species), ("technology", technology)):
            if values is not None:
                kept &= self._fits(column, check_strings(column, values))
        if study is not None:
            kept &= self.catalogue["study"].astype(str).str.contains(study, regex=False).to_numpy()
        for column, flag in (("cancer", cancer), ("annotated", annotated)):
            if flag is not None:
                kept &= (self.catalogue[column] == flag).fillna(False).to_numpy(dtype=bool)
        if not kept.any():
            msg = f"No slide of {len(self)} fits all conditions. Look at `collection.catalogue`."
            raise ValueError(msg)
        other = copy(self)
        other.catalogue = self.catalogue[kept]
        return other

    def check_name(self, name: str) -> str:
        """Return the name of a slide; if it is unknown, the error suggests similar ones.

        A `ValueError` refuses a name that is not that of a file, and one that several slides have.
        """
        if isinstance(name, str) and name in self.catalogue.index:
            several = (self.catalogue.index == name).sum() > 1
            if several or not is_file_name(name):
                what = "the name of several slides" if several else "not the name of a file"
                msg = f"{name!r} in the catalogue is {what}. The table of slides is damaged or not genuine: replace it."
                raise ValueError(msg)
            return name
        msg = f"No slide {name!r} among the {len(self)} of this collection."
        raise KeyError(msg + _suggest(str(name), self.names, 0.4))

    @abstractmethod
    def read(self, slide: str, *, image: bool = True) -> AnnData:
        """Read a slide.

        Parameters
        ----------
        slide
            Its name.
        image
            Whether the image must be there. Only its path is kept.

        Returns
        -------
        AnnData
            Raw counts in `.X` (CSR), `.obsm["spatial"]` (x, y in pixels of the image), `.obs["domain"]` (categorical)
            if the slide is annotated, `.obs["array_row"]` and `.obs["array_col"]` if the names of spots contain them,
            and `.uns["spatial"][slide]` with the scale factors `spot_diameter_fullres`, `spot_diameter_um` and
            `microns_per_pixel` (without the latter two if the scale is unknown), and `metadata` with
            `source_image_path`, which :func:`stimg.pp.to_image_patches` opens.

        Raises
        ------
        KeyError
            The slide is unknown; the error suggests similar names.
        FileNotFoundError
            A file is missing.
        OSError
            A file is damaged.
        ValueError
            Files do not belong together.
        """

    def to_spatialdata(self, slide: str) -> SpatialData:
        """Read a slide as `SpatialData`, with its spots as circles and its image as a lazy multi-scale raster.

        Raises the errors of :meth:`read`.
        """
        import dask.array as da
        import geopandas
        import shapely
        from spatialdata import SpatialData
        from spatialdata.models import Image2DModel, ShapesModel, TableModel

        from stimg._image._files import open_file
        from stimg._image._whole import WholeFile

        table = self.read(slide)
        entry = table.uns[_keys.SPATIAL][slide]
        radius = entry["scalefactors"]["spot_diameter_fullres"] / 2
        points = shapely.points(table.obsm[_keys.SPATIAL])
        numbers = np.arange(table.n_obs)
        frame = geopandas.GeoDataFrame({"geometry": points, "radius": radius}, index=numbers)
        level = open_file(Path(entry["metadata"]["source_image_path"]))[0]
        pixels = level.at(1)[0] if isinstance(level, WholeFile) else level
        values = da.from_array(pixels, chunks=(2048, 2048, -1), fancy=False)  # levels of files are cut by slices alone
        raster = Image2DModel.parse(values.transpose(2, 0, 1), dims=("c", "y", "x"), scale_factors=[2, 2, 2])
        table.obs["region"], table.obs["instance"] = slide, numbers
        table.obs["region"] = table.obs["region"].astype("category")
        parsed = TableModel.parse(table, region=slide, region_key="region", instance_key="instance")
        shapes = {slide: ShapesModel.parse(frame)}
        return SpatialData(images={f"{slide}_image": raster}, shapes=shapes, tables={"table": parsed})

    def _fits(self, column: str, values: list[str]) -> np.ndarray:
        found = self.catalogue[column].astype(str).str.lower()
        if unknown := [value for value in values if value.lower() not in set(found)]:
            known = sorted(self.catalogue[column].dropna().astype(str).unique())
            msg = f"No slide with `{column}`={unknown[0]!r}."
            raise ValueError(msg + (_suggest(unknown[0], known, 0.6) or f" Known are {known}."))
        return found.isin([value.lower() for value in values]).to_numpy()


def _suggest(name: str, known: list[str], cutoff: float) -> str:
    """Ask whether up to three similar names were meant; empty where none is similar."""
    lower = {str(one).lower(): one for one in known}
    near = [lower[found] for found in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=cutoff)]
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
