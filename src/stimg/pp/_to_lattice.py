"""Lay a slide's observations on a compact integer lattice."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg import _keys
from stimg._resolve import prepare, resolve_table, write_uns
from stimg._validators import check_choice, check_coordinates, check_library_key
from stimg.pp._lattice_layout import (
    Layout,
    default_pitch,
    fit_affine,
    grid_indices,
    is_checkerboard,
    lay_free,
    lay_hex,
    lay_square,
    regular_grid,
)

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
MOST_SHARED = 0.05
MOST_SITES_AN_OBSERVATION = 1000


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
        Side of a bin in units of the coordinates, for free coordinates; by default such that there is about one
        observation a site.
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
    `.uns["stimg"]["lattice"]` : platform, kind, pitch (units of the coordinates), `pitch_um` (NaN where unknown) and,
    a row a library, `libraries`, `origin`, `parity`, and `affine`, which maps true positions `(x, y, 1)` in units of the
    pitch back to coordinates. A hex site lies at `x = col + ((row + parity) % 2) / 2`, `y = row * sqrt(3) / 2`.

    Raises
    ------
    KeyError
        No coordinates, or no column `library_key`.
    ValueError
        NaN coordinates, array indices that are missing or no integers, two hexagonal spots on one site (several
        sections without a `library_key`), an unknown platform, or a pitch that is not positive.

    Warns
    -----
    UserWarning
        A few observations of a square array share a position.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic("visium", seed=0)
    >>> stimg.pp.to_lattice(slide)
    >>> slide.obsm["lattice"][:2]
    """
    check_choice("platform", platform, ("auto", *KIND_OF_PLATFORM))
    if pitch is not None and not (np.isfinite(pitch) and pitch > 0):
        msg = f"Expected `pitch` to be a positive number, found {pitch!r}."
        raise ValueError(msg)
    table = resolve_table(adata, table_key)
    check_library_key(table, library_key)
    kind = None if platform == "auto" else KIND_OF_PLATFORM[platform]
    array = _array_indices(table) if kind != "free" else None
    coordinates, derived = _coordinates(adata, table, spatial_key, optional=array is not None)
    libraries = np.full(table.n_obs, "slide") if library_key is None else table.obs[library_key].astype(str).to_numpy()
    names = list(dict.fromkeys(libraries))
    if kind is None:
        kind = _detect(array, coordinates, libraries)
    if kind == "free" and coordinates is not None and pitch is None:
        pitch = _free_pitch(coordinates, libraries)
    layouts = []
    for name in names:
        rows = np.flatnonzero(libraries == name)
        here = None if coordinates is None else coordinates[rows]
        layout = _lay(kind, None if array is None else array[rows], here, pitch)
        _check_sharing(layout, name, library_key)
        layouts.append(layout)
    affine = np.stack(
        [
            fit_affine(layout, None if coordinates is None else coordinates[libraries == name])
            for layout, name in zip(layouts, names, strict=True)
        ]
    )
    measured = float(pitch) if kind == "free" and pitch else _pitch_of(affine)
    platform = _name_platform(kind, affine) if platform == "auto" else platform
    pitch_um = measured if platform in MICROMETRE_PLATFORMS else PITCH_UM.get(platform, np.nan)
    lattice = np.zeros((table.n_obs, 2), dtype=np.int32)
    for name, layout in zip(names, layouts, strict=True):
        lattice[libraries == name] = layout.lattice
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
        "Added .obsm[%r]: %s lattice (platform %s), %d librar%s, %d observations on %d sites, pitch %.4g.",
        key_added,
        kind,
        platform,
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


def _array_indices(table: AnnData) -> np.ndarray | None:
    """Return int64 (n_obs, 2) array row and column, `None` where the table has none."""
    if _keys.ARRAY_ROW not in table.obs or _keys.ARRAY_COL not in table.obs:
        return None
    values = table.obs[[_keys.ARRAY_ROW, _keys.ARRAY_COL]].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        bad = int((~np.isfinite(values) | (values != np.rint(values))).any(1).sum())
        msg = (
            f"Expected integers in `adata.obs['array_row']` and `['array_col']`, found {bad} observations with NaN or "
            "fractions. Correct them, or pass `platform='free'` to go by the coordinates."
        )
        raise ValueError(msg)
    return values.astype(np.int64)


def _coordinates(
    adata: AnnData | SpatialData, table: AnnData, key: str, *, optional: bool
) -> tuple[np.ndarray | None, bool]:
    """Coordinates float64 (n_obs, 2), and whether they were derived from a SpatialData's element."""
    if key in table.obsm:
        return check_coordinates(table, key), False
    if table is not adata and "spatialdata_attrs" in table.uns:
        return _centroids(adata, table), True
    if optional:
        return None, False
    return check_coordinates(table, key), False


def _centroids(sdata: Any, table: AnnData) -> np.ndarray:
    """Centroids of the shapes or labels that a SpatialData's table annotates, in the table's order."""
    from spatialdata import get_centroids

    attributes = table.uns["spatialdata_attrs"]
    regions = table.obs[attributes["region_key"]].astype(str).to_numpy()
    instances = table.obs[attributes["instance_key"]]
    coordinates = np.full((table.n_obs, 2), np.nan)
    for region in np.unique(regions):
        rows = regions == region
        points = get_centroids(sdata[region]).compute()
        coordinates[rows] = points.reindex(instances[rows])[["x", "y"]].to_numpy()
    if bad := int(np.isnan(coordinates).any(1).sum()):
        msg = f"{bad} of {table.n_obs} rows of the table annotate no instance of {np.unique(regions).tolist()}."
        raise ValueError(msg)
    return coordinates


def _detect(array: np.ndarray | None, coordinates: np.ndarray | None, libraries: np.ndarray) -> str:
    """Choose the kind of lattice from the data of every library; the first that can be told decides."""
    names = list(dict.fromkeys(libraries))
    if array is not None:
        return "hex" if all(is_checkerboard(*array[libraries == name].T) for name in names) else "square"
    kinds = [regular_grid(coordinates[libraries == name]) for name in names if coordinates is not None]
    return next((kind for kind in kinds if kind is not None and kinds.count(kind) == len(kinds)), "free")


def _free_pitch(coordinates: np.ndarray, libraries: np.ndarray) -> float:
    """One pitch for all libraries: the median of what each would take."""
    pitch = float(np.median([default_pitch(coordinates[libraries == name]) for name in np.unique(libraries)]))
    if pitch == 0:
        msg = "Most observations lie on the same coordinates, so that no pitch can be derived. Pass `pitch=`."
        raise ValueError(msg)
    return pitch


def _lay(kind: str, array: np.ndarray | None, coordinates: np.ndarray | None, pitch: float | None) -> Layout:
    """Lay one library."""
    if kind == "free":
        if coordinates is None or pitch is None:
            msg = "Expected coordinates for a free lattice, found none."
            raise ValueError(msg)
        sites = np.prod(np.ptp(coordinates, axis=0) / pitch + 1)
        if sites > MOST_SITES_AN_OBSERVATION * len(coordinates) + 10_000:
            msg = (
                f"A `pitch` of {pitch:g} would give {sites:.3g} sites for {len(coordinates)} observations. "
                "Pass a larger `pitch` (in units of the coordinates), or remove far outliers."
            )
            raise ValueError(msg)
        return lay_free(coordinates, pitch)
    if array is None:
        found = None if coordinates is None or len(coordinates) < 7 else grid_indices(coordinates, kind)
        if found is None:
            msg = (
                f"Expected `adata.obs['array_row']` and `['array_col']`, or coordinates on a regular {kind} grid; found "
                "neither. Pass `platform='free'` to bin the coordinates."
            )
            raise ValueError(msg)
        rows, cols = found
        return lay_hex(rows, cols) if kind == "hex" else lay_square(rows, cols)
    rows, cols = array.T
    if kind == "square":
        return lay_square(rows, cols)
    if len(rows) > 1 and not is_checkerboard(rows, cols):
        msg = (
            "Expected a hexagonal array, in which `array_row + array_col` is even for all spots or odd for all, found "
            "both. Pass `platform='square'` for a square array, or `library_key` for sections with different frames."
        )
        raise ValueError(msg)
    return lay_hex(rows, cols, coordinates)


def _check_sharing(layout: Layout, name: str, library_key: str | None) -> None:
    """Refuse hexagonal spots, and many of a square array, on one site; warn of a few."""
    shared = len(layout.lattice) - len(np.unique(layout.lattice, axis=0))
    if layout.kind == "free" or not shared:
        return
    what = f"{shared} of {len(layout.lattice)} observations of library {str(name)!r} share an array position with another."
    if layout.kind == "hex" or shared > MOST_SHARED * len(layout.lattice):
        advice = "Remove the duplicates" if library_key else "Name the column that tells sections apart as `library_key`"
        msg = f"{what} {advice}, or pass `platform='free'`."
        raise ValueError(msg)
    warnings.warn(f"{what} Their counts are summed for the model.", UserWarning, stacklevel=3)


def _pitch_of(affine: np.ndarray) -> float:
    """Mean length of the lattice's axes in units of the coordinates."""
    lengths = np.linalg.norm(affine[:, :2], axis=2)
    return float(lengths.mean()) if np.isfinite(lengths).all() else float("nan")


def _name_platform(kind: str, affine: np.ndarray) -> str:
    """Name what was detected: a hexagonal array with equal axes is Visium's, other sizes are only `"hex"`."""
    if kind != "hex":
        return kind
    lengths = np.linalg.norm(affine[:, :2], axis=2)
    ratio = lengths[:, 1] / lengths[:, 0]
    return "hex" if (np.abs(ratio - 1) > 0.1).any() else "visium"
