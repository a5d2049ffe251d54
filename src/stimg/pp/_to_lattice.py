"""Lay a slide's observations on a compact integer lattice."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._input._checks import check_choice, check_library_key, check_positive, checked, warn, warn_of_glass
from stimg._input._coordinates import array_indices, coordinates_of, units_of
from stimg._input._records import write_record
from stimg._input._sections import check_one_section, section_columns
from stimg._input._tables import prepare, resolve_table
from stimg._platforms import PLATFORMS
from stimg._slide._detect import name_platform, plan_sections
from stimg._slide._geometry import evenly_spaced, n_distinct
from stimg._slide._grid import FEWEST_TO_FIND
from stimg._slide._lattice import SINGLE, axis_lengths
from stimg._slide._layout import Layout, fit_affine, lay

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("stimg")

MOST_SHARED = 0.05


@checked
def to_lattice(
    adata: AnnData | SpatialData,
    platform: str = "auto",
    *,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    pitch: float | None = None,
    um_per_unit: float | None = None,
    key_added: str = _keys.LATTICE,
    table_key: str | None = None,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Lay every observation on a compact integer lattice, the pixel grid of the slide.

    Hexagonal arrays (Visium) become `(row, col // 2)`, without checkerboard holes; square arrays (legacy ST, Visium
    HD, Stereo-seq bins) stay as they are; free coordinates (Slide-seq, Xenium, MERFISH) are sorted into square bins.
    Nothing is dropped: observations of a free slide may share a site.

    Parameters
    ----------
    adata
        A slide. Array platforms have integers in `.obs["array_row"]` and `.obs["array_col"]`, others coordinates in
        `.obsm[spatial_key]`. If the table of a `SpatialData` has neither, the centroids of the element that it
        annotates are used and written to `.obsm[spatial_key]`.
    platform
        `"auto"` looks for array columns, then for coordinates on a regular hexagonal or square grid (at any angle, with
        gaps, and in spite of a few duplicates, of jitter up to a tenth of the pitch and of rounding), falls back to
        `"free"`, and logs its choice. Or one of `"visium"`, `"hex"`, `"st"`, `"visium_hd"`, `"stereo_seq"`,
        `"square"`, `"free"`, `"slide_seq"`, `"xenium"`, `"merfish"`, `"cosmx"`, `"osmfish"`, `"starmap"`, `"seqfish"`.
    spatial_key
        Key of the coordinates (x, y) in `.obsm`.
    library_key
        Column of `.obs` that tells sections apart; each gets its own lattice. Without it, sections that lie over one
        another are refused, by the name of the column that tells them apart (as `library_id`, `fov`, `batch`, the
        `region_key` of a `SpatialData`, or a third coordinate). A column with one value says that all is one section.
    pitch
        Side of the square bins for coordinates without array positions, in units of the coordinates. By default (for
        free coordinates) one over the root of the median local density, for about one observation per site of tissue.
        All sections get the same, unless their coordinates have different units.
    um_per_unit
        Micrometres per unit of the coordinates. By default from the pitch of the array (Visium, ST, named bins), the
        scale factor `microns_per_pixel`, or the platform (Xenium). Files of other platforms may be in pixels or in
        micrometres; unless something states the unit, it stays unknown and figures get no scale bar.
    key_added
        Key of the lattice in `.obsm`.
    table_key, copy
        Table of a `SpatialData`; whether to return a changed copy and leave `adata` as it is.

    Returns
    -------
    `None` (or the copy), with
    `.obsm[key_added]` : int32, shape (n_obs, 2). Row and column, from 0 in each library.
    `.uns["stimg"]["lattice"]` : `platform`, `kind` (`"hex"`, `"square"` or `"free"`), and, as means over the libraries,
    `pitch` (units of the coordinates) and `pitch_um` (NaN if unknown); then one entry per library: `libraries`,
    `n_obs`, `um_per_unit` (NaN if unknown), and `origin`, `parity`, `step`, `transposed`, `affine`, which map sites
    back exactly. Later steps read `library_key` and `spatial_key` here, and refuse a table to which the lattice does
    not belong.

    Notes
    -----
    The true position of a site in units of the pitch is `x = col + ((row + parity) % 2) / 2`, `y = row * sqrt(3) / 2`
    on hexagonal, and `x = col`, `y = row` on other lattices. `(x, y, 1) @ affine` gives its coordinates: exactly the
    middle of the bin for free coordinates, a least-squares fit for arrays (whose axes may differ in length, as those of
    ST 2K arrays do). Array positions are `origin + step * (row, col)` on square, and `origin + (row, 2 * col + (row +
    parity) % 2)` on hexagonal lattices, with row and column of the array exchanged if `transposed`.

    Raises
    ------
    KeyError
        No coordinates, no table `table_key`, or no column `library_key`.
    ValueError
        NaN, text or rounded (float16) coordinates; missing or non-integer array positions; sections without a
        `library_key` that lie over one another or have no coordinate system in common; two spots of a hexagonal array,
        or more than 5 % of other spots, on one site; hexagonal and square libraries in one object; an unknown platform;
        a lattice that is all but empty; a `pitch` that is not positive or given for an array.

    Warns
    -----
    UserWarning
        Up to 5 % of the spots share a site with another, or lie off the grid of the others; only some sections lie on a
        grid, or spots lie evenly but on no single grid; sections have coordinates in different units; `adata` has array
        positions, but `platform` names one without an array; `.obs["in_tissue"]` says that some observations lie beside
        the tissue.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic("visium", seed=0)
    >>> stimg.pp.to_lattice(slide)
    >>> slide.obsm["lattice"].shape, slide.uns["stimg"]["lattice"]["kind"]
    ((1000, 2), 'hex')
    """
    check_choice("platform", platform, ("auto", *PLATFORMS))
    for name, value in (("pitch", pitch), ("um_per_unit", um_per_unit)):
        if value is not None:
            check_positive(name, value)
    table = resolve_table(adata, table_key, copy=copy)
    warn_of_glass(table)
    check_library_key(table, library_key)
    kind: str | None = None if platform == "auto" else PLATFORMS[platform].kind
    array = array_indices(table) if kind != "free" else None
    if kind == "free" and platform != "free" and {_keys.ARRAY_ROW, _keys.ARRAY_COL} <= set(table.obs):
        warn(
            f"`adata.obs` has positions on an array, which slides of {platform!r} do not have, and which are not used. "
            "Pass `platform='auto'` to use them, or 'free' to bin the coordinates."
        )
    coordinates, derived = coordinates_of(
        adata, table, spatial_key, optional=array is not None, apart=library_key is not None
    )
    if (points := coordinates if array is None else array) is not None:
        check_one_section(table, points, library_key, spatial_key=spatial_key)
    of_library = np.full(table.n_obs, SINGLE) if library_key is None else table.obs[library_key].astype(str).to_numpy()
    libraries = [str(name) for name in dict.fromkeys(of_library)]
    members = [np.flatnonzero(of_library == name) for name in libraries]
    plan = plan_sections(kind, array, coordinates, members, pitch)
    kind = plan.kind
    tell_apart = [] if library_key else section_columns(table)
    layouts, fits = [], []
    lattice = np.zeros((table.n_obs, 2), dtype=np.int32)
    for number, (name, rows) in enumerate(zip(libraries, members, strict=True)):
        here = None if coordinates is None else coordinates[rows]
        layout = lay(kind, plan.arrays[number], here, plan.pitches[number], _advice(tell_apart))
        _check_sharing(layout, name, table.obs[tell_apart].iloc[rows], exact=array is not None, split=bool(library_key))
        if platform == "auto" and pitch is None and here is not None:
            _warn_of_array(layout, name, here)
        if off := plan.n_off[number]:
            warn(f"{off} of {len(rows)} observations of library {name!r} lie off the grid of the others, at its edges.")
        lattice[rows] = layout.lattice
        layouts.append(layout)
        fits.append(fit_affine(layout, here, plan.pitches[number]))
    affine = np.stack([fit for fit, _ in fits])
    measured = axis_lengths(affine).mean(1)
    platform = name_platform(kind, affine) if platform == "auto" else platform
    units, pitch_um = units_of(table, platform, libraries, measured, um_per_unit, table_key)
    record = {
        "platform": platform,
        "kind": kind,
        "spatial_key": spatial_key,
        "library_key": library_key or "",
        "libraries": np.array(libraries, dtype=object),
        "pitch": _mean(measured),
        "pitch_um": _mean(pitch_um),
        "um_per_unit": units,
        "affine": affine,
        "deviation": np.array([away for _, away in fits]),
        **_by_library(layouts),
    }
    table, result = prepare(adata, table_key, copy)
    table.obsm[key_added] = lattice
    if derived:
        table.obsm[spatial_key] = coordinates
    write_record(table, _keys.STEP_LATTICE, key_added, record)
    logger.info(
        "Added .obsm[%r]: %s lattice (platform %s, by %s), %d librar%s, %d observations on %d sites, pitch %.4g%s.",
        key_added,
        kind,
        platform,
        "bins of the coordinates" if kind == "free" else "array columns" if array is not None else "a regular grid",
        len(libraries),
        "y" if len(libraries) == 1 else "ies",
        table.n_obs,
        table.n_obs - record["n_shared"].sum(),
        record["pitch"],
        f" = {record['pitch_um']:.4g} um" if np.isfinite(record["pitch_um"]) else ", unit unknown",
    )
    return result


def _by_library(layouts: list[Layout]) -> dict[str, Any]:
    """Return the fields of the record that have one entry per library."""
    n_obs = np.array([len(layout.lattice) for layout in layouts])
    return {
        "n_obs": n_obs,
        "n_shared": n_obs - [n_distinct(layout.lattice) for layout in layouts],
        "origin": np.array([layout.origin for layout in layouts], dtype=np.float64),
    } | {name: np.array([getattr(one, name) for one in layouts]) for name in ("parity", "transposed", "step")}


def _mean(values: np.ndarray) -> float:
    """Return the mean over the libraries whose value is known; NaN if none is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _advice(tell_apart: list[str]) -> str:
    """Say which columns may divide a slide whose pieces lie far apart."""
    if not tell_apart:
        return ""
    return f", pass `library_key={tell_apart[0]!r}` if pieces of tissue lie far apart"


def _check_sharing(layout: Layout, name: str, columns: pd.DataFrame, *, exact: bool, split: bool) -> None:
    """Refuse spots of a hexagonal array, or many of another grid, that share a site; warn if they are few.

    `columns` may tell sections apart; `exact` says that array positions were given, `split` that sections were.
    """
    shared = len(layout.lattice) - n_distinct(layout.lattice)
    if layout.kind == "free" or not shared:
        return
    what = f"{shared} of {len(layout.lattice)} observations of library {name!r} share an array position with another."
    if (layout.kind == "hex" and exact) or shared > MOST_SHARED * len(layout.lattice):
        key = next((one for one in columns if _are_apart(layout.lattice, columns[one])), None)
        advice = "Pass the column that tells sections apart as `library_key`"
        if split:
            advice = "Remove the duplicates"
        elif key is not None:
            advice = f"Pass `library_key={key!r}`, by which they are of different sections"
        elif shared <= MOST_SHARED * len(layout.lattice):
            advice = "Remove the duplicates, or pass the column that tells sections apart as `library_key`"
        msg = f"{what} {advice}, or pass `platform='free'`."
        raise ValueError(msg)
    warn(f"{what} Their counts are summed for the model.")


def _warn_of_array(layout: Layout, name: str, coordinates: np.ndarray) -> None:
    """Warn if spots of an array were binned, and some share a bin, since no single grid fits them all."""
    shared = len(layout.lattice) - n_distinct(layout.lattice)
    if layout.kind == "free" and shared and len(coordinates) >= FEWEST_TO_FIND and evenly_spaced(coordinates):
        warn(
            f"Library {name!r}: neighbours are all about as far apart, as on an array, but no single grid fits them. "
            f"They are binned, and {shared} of {len(coordinates)} share a bin with another. If these are pieces that "
            "were turned or moved, pass the column that tells them apart as `library_key`; or add array positions."
        )


def _are_apart(lattice: np.ndarray, column: pd.Series) -> bool:
    """Tell whether all observations that share a site have different values in a column."""
    places = pd.DataFrame(lattice).assign(value=column.astype(str).to_numpy())
    return not places.duplicated().any()
