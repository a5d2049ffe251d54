"""Draw observations at their true size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import EllipseCollection

from stimg import _keys
from stimg._input._checks import check_gene_list, check_library_key
from stimg._input._coordinates import check_coordinates
from stimg._input._records import read_record, said
from stimg._input._sections import check_one_section
from stimg._input._tables import libraries_of, scale_factor
from stimg._slide._gene_match import columns_of
from stimg._slide._geometry import spacing
from stimg._slide._lattice import read_lattice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from stimg._input._predictions import Prediction

FILL = 0.92
LARGEST_SIDE = 2000


@dataclass(frozen=True)
class Section:
    """The part of a table that is drawn: the observations of one section."""

    rows: np.ndarray  # their numbers in the table, int64 (n,)
    coordinates: np.ndarray  # float64 (n, 2)
    name: str | None  # `None` if the table is not divided into sections
    pitch: float  # between neighbours, in units of the coordinates
    um_per_unit: float  # micrometres per unit of the coordinates, NaN if unknown


def read_section(
    table: AnnData,
    spatial_key: str | None,
    library_key: str | None,
    library: str | None,
    argument: str = "library",
) -> Section:
    """Return the section asked for, or refuse to draw several sections on top of each other.

    Keys are by default those given to `to_lattice`. Messages call `library` by the name of the public `argument`.

    Raises
    ------
    KeyError
        No such column, or no coordinates.
    ValueError
        Several sections and no `library`, an unknown `library`, a `library` without a `library_key`, or sections
        without a `library_key` that lie over one another.
    """
    spatial_key = said(table, "spatial_key", spatial_key, _keys.SPATIAL)
    library_key = said(table, "library_key", library_key)
    coordinates = check_coordinates(table, str(spatial_key))
    rows = np.arange(table.n_obs)
    if library_key is None:
        if library is not None:
            msg = f"Expected `library_key` with `library`={library!r}, found None. Pass the column of `adata.obs`."
            raise ValueError(msg)
        check_one_section(table, coordinates, spatial_key=str(spatial_key))
    else:
        check_library_key(table, library_key)
        sections = table.obs[library_key].astype(str).to_numpy()
        names = [str(name) for name in dict.fromkeys(sections)]
        if library is None and len(names) > 1:
            msg = f"`adata.obs[{library_key!r}]` has several sections. Pass one of them as `{argument}`: {names}."
            raise ValueError(msg)
        if library is not None and str(library) not in names:
            msg = f"No section {library!r} (`{argument}`) in `adata.obs[{library_key!r}]`. Available: {names}."
            raise ValueError(msg)
        library = names[0] if library is None else str(library)
        rows = np.flatnonzero(sections == library)
    pitch, um_per_unit = _recorded(table, str(spatial_key), rows)
    if not pitch > 0:
        pitch = spacing(coordinates[rows])
    return Section(rows, coordinates[rows], library, pitch if pitch > 0 else 1.0, um_per_unit)


def _recorded(table: AnnData, spatial_key: str, rows: np.ndarray) -> tuple[float, float]:
    """Return the pitch of a section's lattice and micrometres per unit; NaN if it was laid on other coordinates."""
    try:
        lattice = read_lattice(table, str(read_record(table, _keys.STEP_LATTICE).get("key_added", _keys.LATTICE)))
    except (KeyError, ValueError):
        return float("nan"), float("nan")
    number = lattice.section[rows[0]]
    if lattice.spatial_key != spatial_key or (lattice.section[rows] != number).any():
        return float("nan"), float("nan")
    return float(lattice.pitch[number]), float(lattice.um_per_unit[number])


def check_drawn_genes(genes: str | Sequence[str]) -> list[str]:
    """Return one or several genes to draw as a list; refuse anything else, and none."""
    found = [genes] if isinstance(genes, str) else genes
    check_gene_list(found)
    if not len(found):
        msg = "Expected at least one gene to draw in `genes`, found none."
        raise ValueError(msg)
    return list(found)


def measured_columns(table: AnnData, genes: list[str]) -> np.ndarray:
    """Return the columns of genes in the table, int64 (n_genes,); a `KeyError` names those that are not there."""
    columns = columns_of(table, genes)
    if unknown := [str(gene) for gene, column in zip(genes, columns, strict=True) if column < 0]:
        msg = f"`genes` not in `adata.var_names`: {unknown[:5]}. Choose from {list(table.var_names[:5])}, ..."
        raise KeyError(msg)
    return columns


def predicted_values(found: Prediction, genes: list[str], rows: np.ndarray) -> np.ndarray:
    """Return predictions to draw, float32 (n_rows, n_genes); it is a `ValueError` if a gene has none in these rows."""
    values = found.read(genes, rows)
    if empty := [gene for gene, column in zip(genes, values.T, strict=True) if not np.isfinite(column).any()]:
        msg = f"Expected `genes` with predicted values where they are drawn, found only NaN for {empty[:5]}."
        raise ValueError(msg)
    return values


def draw_spots(ax: Axes, coordinates: np.ndarray, diameter: float, **style: Any) -> EllipseCollection:
    """Draw a circle of this diameter, in data units, for every observation; y points down, scales are equal."""
    size = np.full(len(coordinates), diameter)
    spots = EllipseCollection(
        size, size, np.zeros(len(size)), units="xy", offsets=coordinates, offset_transform=ax.transData, **style
    )
    ax.add_collection(spots)
    frame(ax, coordinates, diameter)
    return spots


def frame(ax: Axes, coordinates: np.ndarray, diameter: float) -> None:
    """Set limits a diameter around the observations, with y pointing down, equal scales and no axis lines."""
    low, high = coordinates.min(0) - diameter, coordinates.max(0) + diameter
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(high[1], low[1])
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)


def section_image(table: AnnData, section: Section, names: tuple[str, ...]) -> tuple[np.ndarray, float] | None:
    """Return the first of the section's images with these names, and its pixels per unit of the coordinates.

    If the section is not a library with images, the only library counts, provided that all rows are drawn: an image
    of another section is never returned.
    """
    libraries, library = libraries_of(table), section.name
    if library not in libraries:
        if len(libraries) != 1 or len(section.rows) < table.n_obs:
            return None
        library = next(iter(libraries))
    images = libraries[library]["images"]
    for name in names:
        if name in images and (factor := scale_factor(libraries[library], f"tissue_{name}_scalef")) is not None:
            return np.asarray(images[name]), factor
    return None


def draw_raster(ax: Axes, values: np.ndarray, scale: float = 1.0, **style: Any) -> AxesImage:
    """Draw an image of `scale` pixels per unit, from the origin; large ones by every second, third, ... pixel."""
    step = -(-max(values.shape[:2]) // LARGEST_SIDE)
    values = values[::step, ::step]
    height, width = (side * step / scale for side in values.shape[:2])
    return ax.imshow(values, extent=(0, width, height, 0), **style)


def add_scale_bar(ax: Axes, section: Section) -> None:
    """Add a scale bar if the unit of the coordinates is known."""
    if np.isfinite(section.um_per_unit):
        from matplotlib_scalebar.scalebar import ScaleBar

        ax.add_artist(ScaleBar(section.um_per_unit, "um", location="lower left", frameon=False, length_fraction=0.2))


def add_colour_bar(spots: Any, ax: Axes, label: str) -> None:
    """Add a narrow colour bar with a label."""
    bar = ax.figure.colorbar(spots, ax=ax, shrink=0.7, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
