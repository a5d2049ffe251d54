"""Lay a slide's observations on a compact integer lattice."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg import _keys
from stimg._input._checks import check_choice, check_library_key, check_positive, checked, warn
from stimg._input._coordinates import array_indices, bin_um, coordinates_of
from stimg._input._tables import prepare, resolve_table, write_uns
from stimg._slide._lattice import (
    Layout,
    fit_affine,
    grid_indices,
    has_one_parity,
    lay_free,
    lay_hex,
    lay_square,
)
from stimg._slide._lattice_detect import detect_kind, free_pitch, kind_with_pitch, mean_pitch, name_platform

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("stimg")

KIND_OF_PLATFORM = {
    "visium": "hex",
    "hex": "hex",
    "st": "square",
    "visium_hd": "square",
    "stereo_seq": "square",
    "square": "square",
    "free": "free",
    "slide_seq": "free",
    "xenium": "free",
    "merfish": "free",
    "cosmx": "free",
    "osmfish": "free",
    "starmap": "free",
    "seqfish": "free",
}
PITCH_UM = {"visium": 100.0, "st": 200.0}
MICROMETRE_PLATFORMS = {"slide_seq", "xenium", "merfish", "cosmx"}
BINNED_PLATFORMS = {"visium_hd", "stereo_seq"}
MOST_SHARED = 0.05
MOST_SITES_AN_OBSERVATION = 1000


@checked
def to_lattice(
    adata: AnnData | SpatialData,
    platform: str = "auto",
    *,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    pitch: float | None = None,
    key_added: str = _keys.LATTICE,
    table_key: str | None = None,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Lay every observation on a compact integer lattice, the pixel grid of the slide.

    Hexagonal arrays (Visium) become `(row, col // 2)`, without checkerboard holes; square arrays (legacy ST, Visium
    HD, Stereo-seq bins) stay as they are; free coordinates (Slide-seq, Xenium, MERFISH) fall into square bins of a
    pitch. Nothing is dropped: observations of a free slide may share a site.

    Parameters
    ----------
    adata
        A slide. Array platforms have integer `.obs["array_row"]` and `.obs["array_col"]`, others coordinates in
        `.obsm[spatial_key]`. Where a SpatialData's table has none, the centroids of the element that it annotates
        are taken and written to `.obsm[spatial_key]`.
    platform
        `"auto"` chooses by array columns, else by whether coordinates lie on a regular hexagonal or square grid, else
        `"free"`, and logs what it chose. Or one of `"visium"`, `"hex"`, `"st"`, `"visium_hd"`, `"stereo_seq"`,
        `"square"`, `"free"`, `"slide_seq"`, `"xenium"`, `"merfish"`, `"cosmx"`, `"osmfish"`, `"starmap"`, `"seqfish"`.
    spatial_key
        Coordinates (x, y) in `.obsm`.
    library_key
        Column of `.obs` that tells sections apart; each gets a lattice of its own.
    pitch
        Side of a bin in units of the coordinates: lays coordinates without array positions in square bins. By default
        (for free coordinates) one over the root of the median local density, so that there is about one observation a
        site of tissue.
    key_added
        Key of the lattice in `.obsm`.
    table_key
        Table of a `SpatialData`.
    copy
        Return a changed copy and leave `adata` as it is.

    Returns
    -------
    `None` (or the copy), with
    `.obsm[key_added]` : int32, shape (n_obs, 2). Row and column, from 0 in each library.
    `.uns["stimg"]["lattice"]` : `platform`, `kind` (`"hex"`, `"square"` or `"free"`), `pitch` (units of the
    coordinates), `pitch_um` (NaN where unknown), and what maps sites back exactly, a row a library: `libraries`,
    `origin`, `parity`, `step`, `transposed`, `affine`.

    Notes
    -----
    The true position of a site in units of the pitch is `x = col + ((row + parity) % 2) / 2`, `y = row * sqrt(3) / 2`
    on hexagonal, and `x = col`, `y = row` on other lattices. `(x, y, 1) @ affine` are its coordinates: exactly the
    middle of the bin for free coordinates, a least-squares fit for arrays (whose axes may differ in length, as those of
    ST 2K arrays do). Array positions are `origin + step * (row, col)` on square, and
    `origin + (row, 2 * col + (row + parity) % 2)` on hexagonal lattices, with row and column of the array
    exchanged where `transposed`.

    Raises
    ------
    KeyError
        No coordinates, no table `table_key`, or no column `library_key`.
    ValueError
        NaN coordinates, array positions that are missing or no integers, two hexagonal spots or more than 5 % of a
        square array's on one site (several sections without a `library_key`), libraries of hexagonal and square arrays
        in one object, an unknown platform, a lattice that is all but empty, or a `pitch` that is not positive or given
        for an array.

    Warns
    -----
    UserWarning
        Up to 5 % of the observations of a square array share a position with another.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic("visium", seed=0)
    >>> stimg.pp.to_lattice(slide)
    >>> slide.obsm["lattice"][:2]
    """
    check_choice("platform", platform, ("auto", *KIND_OF_PLATFORM))
    if pitch is not None:
        check_positive("pitch", pitch)
    table = resolve_table(adata, table_key, copy=copy)
    check_library_key(table, library_key)
    kind = None if platform == "auto" else KIND_OF_PLATFORM[platform]
    array = array_indices(table) if kind != "free" else None
    coordinates, derived = coordinates_of(adata, table, spatial_key, optional=array is not None)
    libraries = np.full(table.n_obs, "slide") if library_key is None else table.obs[library_key].astype(str).to_numpy()
    names = list(dict.fromkeys(libraries))
    members = [np.flatnonzero(libraries == name) for name in names]
    if pitch is not None:
        kind = kind_with_pitch(kind, array)
    elif kind is None:
        kind = detect_kind(array, coordinates, members)
    if kind == "free" and coordinates is not None and pitch is None:
        pitch = free_pitch([coordinates[rows] for rows in members])
    layouts, affines = [], []
    lattice = np.zeros((table.n_obs, 2), dtype=np.int32)
    for name, rows in zip(names, members, strict=True):
        here = None if coordinates is None else coordinates[rows]
        layout = _lay(kind, None if array is None else array[rows], here, pitch)
        _check_sharing(layout, name, library_key)
        lattice[rows] = layout.lattice
        layouts.append(layout)
        affines.append(fit_affine(layout, here, pitch))
    affine = np.stack(affines)
    measured = mean_pitch(affine)
    platform = name_platform(kind, affine) if platform == "auto" else platform
    if platform in MICROMETRE_PLATFORMS:
        pitch_um = measured
    elif platform in BINNED_PLATFORMS:
        pitch_um = bin_um(platform, table, [table_key or "", *names])
    else:
        pitch_um = PITCH_UM.get(platform, np.nan)
    info: dict[str, Any] = {
        "platform": platform,
        "kind": kind,
        "spatial_key": spatial_key,
        "library_key": library_key or "",
        "libraries": np.array(names, dtype=object),
        "pitch": measured,
        "pitch_um": float(pitch_um),
        "parity": np.array([layout.parity for layout in layouts]),
        "transposed": np.array([layout.transposed for layout in layouts]),
        "step": np.array([layout.step for layout in layouts]),
        "origin": np.array([layout.origin for layout in layouts], dtype=np.float64),
        "affine": affine,
        "version": _version(),
    }
    table, result = prepare(adata, table_key, copy)
    table.obsm[key_added] = lattice
    if derived:
        table.obsm[spatial_key] = coordinates
    write_uns(table, _keys.STEP_LATTICE, info)
    logger.info(
        "Added .obsm[%r]: %s lattice (platform %s, by %s), %d librar%s, %d observations on %d sites, pitch %.4g.",
        key_added,
        kind,
        platform,
        "bins of the coordinates" if kind == "free" else "array columns" if array is not None else "a regular grid",
        len(names),
        "y" if len(names) == 1 else "ies",
        table.n_obs,
        sum(len(np.unique(layout.lattice, axis=0)) for layout in layouts),
        measured,
    )
    return result


def _version() -> str:
    from stimg import __version__

    return __version__


def _lay(kind: str, array: np.ndarray | None, coordinates: np.ndarray | None, pitch: float | None) -> Layout:
    """Lay one library."""
    if kind == "free":
        if coordinates is None or pitch is None:
            msg = "Expected coordinates for a free lattice, found none."
            raise ValueError(msg)
        _check_size(
            np.ptp(coordinates, axis=0) / pitch + 1,
            len(coordinates),
            "Pass a larger `pitch` (in units of the coordinates)",
        )
        return lay_free(coordinates, pitch)
    if array is None:
        found = None if coordinates is None or len(coordinates) < 7 else grid_indices(coordinates, kind)
        if found is None:
            msg = (
                f"Expected `adata.obs['array_row']` and `['array_col']`, or coordinates on a regular {kind} grid; "
                "found neither. Pass `platform='free'` to bin the coordinates."
            )
            raise ValueError(msg)
        array = np.column_stack(found)
    rows, cols = array.T
    if kind == "square":
        layout = lay_square(rows, cols)
        _check_size(np.ptp(array, axis=0) / layout.step + 1, len(array), "Correct the array positions")
        return layout
    if not has_one_parity(rows, cols):
        msg = (
            "Expected a hexagonal array, in which `array_row + array_col` is even for all spots or odd for all, found "
            "both. Pass `platform='square'` for a square array, or `library_key` for sections with different frames."
        )
        raise ValueError(msg)
    _check_size(np.ptp(array, axis=0) / [1, 2] + 1, len(array), "Correct the array positions")
    return lay_hex(rows, cols, coordinates)


def _check_size(shape: np.ndarray, n_obs: int, advice: str) -> None:
    """Refuse a lattice that is all but empty: a far outlier, or the wrong unit."""
    if np.prod(shape) > MOST_SITES_AN_OBSERVATION * n_obs + 10_000:
        msg = (
            f"The lattice would have {np.prod(shape):.3g} sites for {n_obs} observations. {advice}, or remove far "
            "outliers."
        )
        raise ValueError(msg)


def _check_sharing(layout: Layout, name: str, library_key: str | None) -> None:
    """Refuse hexagonal spots, and many of a square array, on one site; warn of a few."""
    shared = len(layout.lattice) - len(np.unique(layout.lattice, axis=0))
    if layout.kind == "free" or not shared:
        return
    what = (
        f"{shared} of {len(layout.lattice)} observations of library {str(name)!r} share an array position with another."
    )
    if layout.kind == "hex" or shared > MOST_SHARED * len(layout.lattice):
        advice = (
            "Remove the duplicates" if library_key else "Name the column that tells sections apart as `library_key`"
        )
        msg = f"{what} {advice}, or pass `platform='free'`."
        raise ValueError(msg)
    warn(f"{what} Their counts are summed for the model.")
