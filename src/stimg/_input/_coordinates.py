"""Array indices, coordinates and their unit, from a table or a SpatialData."""

from __future__ import annotations

import re
import warnings
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree

from stimg import _keys
from stimg._input._checks import check_obsm, warn
from stimg._input._tables import libraries_of, scale_factor
from stimg._platforms import BIN_PATTERN, MOST_OFF, PLATFORMS, STEREO_SEQ_UM

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

MOST_ROUNDED = 0.2  # of the distance between neighbours
SURELY_EXACT = 0.01


def array_indices(table: AnnData) -> np.ndarray | None:
    """Return array row and column, int64 (n_obs, 2), or `None` if the table has none."""
    keys = (_keys.ARRAY_ROW, _keys.ARRAY_COL)
    if any(key not in table.obs for key in keys):
        return None
    columns = [pd.to_numeric(table.obs[key].astype(object), errors="coerce") for key in keys]
    values = np.column_stack([column.to_numpy(dtype=np.float64) for column in columns])
    if lost := int(table.obs[list(keys)].isna().to_numpy().any(1).sum()):
        msg = (
            f"{lost:,} of {table.n_obs:,} observations have no position (NaN) in `adata.obs['array_row']` and "
            "`['array_col']`, as where the file of positions lacks their barcodes, or where slides were joined of "
            "which some have no array. Check that both belong together, and remove these observations: `adata = "
            "adata[adata.obs['array_row'].notna()].copy()`; or pass `platform='free'` to use the coordinates of all."
        )
        raise ValueError(msg)
    if bad := int((~np.isfinite(values) | (values != np.rint(values))).any(1).sum()):
        msg = (
            f"Expected integers in `adata.obs['array_row']` and `['array_col']`, found {bad} observations "
            "with text, fractions or infinity. Correct them, or pass `platform='free'` to use the coordinates."
        )
        raise ValueError(msg)
    return values.astype(np.int64)


def check_coordinates(table: AnnData, key: str) -> np.ndarray:
    """Return the coordinates (x, y) in `.obsm[key]`, float64 (n_obs, 2), whatever real numbers they are stored as.

    Columns of a data frame that are named x and y are found by name. A missing key is a `KeyError`; text, complex or
    missing numbers, another shape, and numbers that were rounded when they were stored are a `ValueError`.
    """
    check_obsm(table, key, advice="Give the coordinates' key as `spatial_key`, or read the positions first.")
    found: Any = table.obsm[key]
    if isinstance(found, pd.DataFrame):
        names = [str(name).lower() for name in found.columns]
        if {"x", "y"} <= set(names):
            found = found.iloc[:, [names.index("x"), names.index("y")]]
        found = found.to_numpy()
    if np.ma.isMaskedArray(found):
        found = np.where(np.ma.getmaskarray(found), np.nan, found.data)
    stored = np.asarray(found.toarray() if sparse.issparse(found) else found)
    if stored.ndim != 2 or stored.shape[1] < 2:
        msg = f"Expected `adata.obsm[{key!r}]` of shape (n_obs, 2), found {stored.shape}."
        raise ValueError(msg)
    values = _real_numbers(stored[:, :2], key)
    _check_precision(stored[:, :2], values, key)
    if bad := int((~np.isfinite(values)).any(1).sum()):
        advice = "Remove these observations first."
        if bad == len(values):
            advice = f"Give another `spatial_key`, or `del adata.obsm[{key!r}]` if array positions are known."
        msg = f"`adata.obsm[{key!r}]` has NaN or infinite coordinates in {bad} of {len(values)} observations. {advice}"
        raise ValueError(msg)
    return values


def _real_numbers(stored: np.ndarray, key: str) -> np.ndarray:
    """Return numbers as float64; refuse text and anything else that is not a number."""
    if stored.dtype.kind in "iuf":
        return stored.astype(np.float64)
    wrong = {type(value).__name__ for value in stored.ravel() if not isinstance(value, Real) and not pd.isna(value)}
    if not wrong:
        return pd.DataFrame(stored).apply(pd.to_numeric).to_numpy(dtype=np.float64, na_value=np.nan)
    what = "text" if any("str" in name for name in wrong) else " and ".join(sorted(wrong))
    msg = (
        f"Expected numbers in `adata.obsm[{key!r}]`, found {what} (such as {stored[0, 0]!r}). If these are numbers, "
        f"run `adata.obsm[{key!r}] = adata.obsm[{key!r}].astype(float)` first."
    )
    raise ValueError(msg)


def _check_precision(stored: np.ndarray, values: np.ndarray, key: str) -> None:
    """Refuse coordinates that were rounded, since their type does not have the digits for numbers of this size."""
    if stored.dtype.kind != "f" or stored.dtype.itemsize > 4 or len(values) < 2:
        return
    finite = values[np.isfinite(values).all(1)]
    largest, limit = np.abs(finite).max(initial=0), float(np.finfo(stored.dtype).max)
    step = float(np.spacing(stored.dtype.type(largest)))
    if stored.dtype.itemsize > 2 and step * np.sqrt(len(values)) < SURELY_EXACT * np.ptp(finite, axis=0).max(initial=0):
        return
    places = np.unique(finite, axis=0)
    apart = float(np.median(cKDTree(places).query(places, k=2)[0][:, 1])) if len(places) > 1 else np.inf
    if np.isinf(values).any() and stored.dtype.itemsize == 2:
        what = f"numbers above {limit:g} are infinite"
    elif step > MOST_ROUNDED * apart:
        what = f"numbers around {largest:g} are rounded to multiples of {step:g}, with neighbours {apart:g} apart"
    else:
        return
    msg = (
        f"`adata.obsm[{key!r}]` is stored as {stored.dtype.name}, in which {what}. Read the coordinates again and "
        "store them as float64; what was lost does not come back by `astype`."
    )
    raise ValueError(msg)


def coordinates_of(
    adata: AnnData | SpatialData, table: AnnData, key: str, *, optional: bool, apart: bool = False
) -> tuple[np.ndarray | None, bool]:
    """Return coordinates float64 (n_obs, 2), and whether they were derived from elements of a SpatialData.

    They are derived if the table has none, or only NaN. Elements without a common coordinate system are refused, unless
    the sections are kept `apart`.
    """
    if table is not adata and "spatialdata_attrs" in table.uns:
        stored = table.obsm.get(key)
        if stored is None or pd.isna(np.asarray(stored)).all():
            return centroids(adata, table, apart=apart), True
    return None if key not in table.obsm and optional else check_coordinates(table, key), False


def centroids(sdata: Any, table: AnnData, system: str | None = None, *, apart: bool = False) -> np.ndarray:
    """Return the centroids of the shapes, points or labels that the table annotates, in the order of its rows.

    They are in this coordinate system; by default in the global one, or the first that all elements have. If there is
    none, it is a `ValueError`, unless sections are kept `apart`: then each element has its own first one.
    """
    from spatialdata import get_centroids
    from spatialdata.transformations import get_transformation

    attributes = table.uns["spatialdata_attrs"]
    region_key = attributes["region_key"]
    names = annotated_regions(sdata, table)
    regions = table.obs[region_key].astype(str).to_numpy()
    instances = table.obs[attributes["instance_key"]].to_numpy()
    systems = {region: list(get_transformation(sdata[region], get_all=True)) for region in names}
    common = [name for name in systems[names[0]] if all(name in own for own in systems.values())]
    if not common and not apart and system is None:
        msg = (
            f"The regions {names[:5]} (`region_key` {region_key!r} of the table) have no coordinate system in common. "
            f"Pass `library_key={region_key!r}`, so that each is taken for itself, or give them a common system."
        )
        raise ValueError(msg)
    coordinates = np.full((table.n_obs, 2), np.nan)
    for region in names:
        rows = regions == region
        chosen = system or ("global" if "global" in common else (common or systems[region])[0])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The index of the dataframe is not monotonic")
            points = get_centroids(sdata[region], coordinate_system=chosen).compute()
        coordinates[rows] = points.reindex(instances[rows])[["x", "y"]].to_numpy()
    if bad := int(np.isnan(coordinates).any(1).sum()):
        msg = (
            f"{bad} of {table.n_obs} rows of the table do not annotate an instance of {names}. Correct the instance "
            "key, or remove these rows."
        )
        raise ValueError(msg)
    return coordinates


def annotated_regions(sdata: Any, table: AnnData) -> list[str]:
    """Return the names of the elements that the table annotates; one that is not there is a `KeyError`."""
    regions = table.obs[table.uns["spatialdata_attrs"]["region_key"]].astype(str)
    names = [str(name) for name in dict.fromkeys(regions)]
    for region in names:
        if region not in sdata:
            available = [name for _, name, _ in sdata.gen_elements()]
            msg = f"The table annotates {region!r}, which is not in the SpatialData. Available elements: {available}."
            raise KeyError(msg)
    return names


def stored_centroids(sdata: Any, table: AnnData) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the centroids of the elements that the table annotates as these are stored, and their transformations.

    Elements with different transformations are brought to a coordinate system that all of them have.
    """
    from spatialdata.transformations import Identity, get_transformation

    names = annotated_regions(sdata, table)
    known = [get_transformation(sdata[name], get_all=True) for name in names]
    if all(one == known[0] for one in known):
        system, transformation = next(iter(known[0].items()))
        matrix = np.linalg.inv(transformation.to_affine_matrix(("x", "y"), ("x", "y")))
        return centroids(sdata, table, system) @ matrix[:2, :2].T + matrix[:2, 2], dict(known[0])
    common = [system for system in known[0] if all(system in one for one in known)]
    if not common:
        msg = (
            f"The regions {names[:5]} that the table annotates have no coordinate system in common, in which their "
            "domains could be drawn together. Give them one (`spatialdata.transformations.set_transformation`)."
        )
        raise ValueError(msg)
    system = "global" if "global" in common else common[0]
    return centroids(sdata, table, system), {system: Identity()}


def units_of(
    table: AnnData, platform: str, libraries: list[str], pitch: np.ndarray, given: float | None, table_key: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return micrometres per unit of each section's coordinates, and per pitch, float64 (n_libraries,); NaN if unknown.

    The first that is known counts: the value `given` by the user (a `ValueError` if it is far from that of the
    platform's array); the platform's pitch, or the side of its bins, divided by the measured `pitch`, unless
    `microns_per_pixel` in `.uns["spatial"]` contradicts it, which is a warning; that `microns_per_pixel`; the unit that
    all files of the platform have.
    """
    known = PLATFORMS[platform]
    pitch_um = _bin_um(platform, table, [table_key or "", *libraries]) if known.binned else known.pitch_um
    of_array = pitch_um / pitch
    if given is not None:
        if (np.abs(of_array / given - 1) > MOST_OFF).any():
            msg = (
                f"Expected `um_per_unit` near {np.nanmean(of_array):.4g}, which the pitch of {platform!r} gives, found "
                f"{given:.4g}. Leave it out, or correct `platform`."
            )
            raise ValueError(msg)
        return np.full(len(libraries), float(given)), pitch * given
    entries = libraries_of(table)
    only = len(libraries) == 1 and len(entries) == 1
    stated = list(entries.values()) if only else [entries.get(name, {}) for name in libraries]
    of_image = np.array([scale_factor(one, "microns_per_pixel") or np.nan for one in stated])
    if (other := np.abs(of_image / of_array - 1) > MOST_OFF).any():
        warn(
            f"The pitch of {platform!r} is {pitch_um:g} um, but `microns_per_pixel` in `adata.uns['spatial']` makes it "
            f"{(of_image * pitch)[other][0]:.4g} um, which is used. Check `platform`, or pass `um_per_unit`."
        )
    units = np.where(np.isfinite(of_array) & ~other, of_array, of_image)
    units = np.where(np.isfinite(units), units, known.um_per_unit)
    return units, np.where(np.isfinite(pitch_um) & ~other, pitch_um, pitch * units)


def _bin_um(platform: str, table: AnnData, names: list[str]) -> float:
    """Return the side of a bin in micrometres, from names (Visium HD) or `.uns["bin_size"]` (Stereo-seq), or NaN."""
    if platform == "stereo_seq":
        size = table.uns.get("bin_size")
        return float(size) * STEREO_SEQ_UM if isinstance(size, Real) else np.nan
    attributes = table.uns.get("spatialdata_attrs", {})
    if "region_key" in attributes:
        names = [*names, *table.obs[attributes["region_key"]].astype(str).unique()]
    names = [*names, *libraries_of(table)]
    sizes = {float(found[1]) for name in names if (found := re.search(BIN_PATTERN, name))}
    return sizes.pop() if len(sizes) == 1 else np.nan
