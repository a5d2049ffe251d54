"""The lattice that `stimg.pp.to_lattice` recorded, read only if it belongs to the table."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._input._checks import check_obsm
from stimg._input._coordinates import check_coordinates
from stimg._input._records import read_record
from stimg._slide._geometry import n_distinct, site_positions

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stimg")

FIELDS = ("kind", "library_key", "libraries", "parity")
CHECKED = ("n_obs", "n_shared", "deviation", "affine", "um_per_unit")
SINGLE = "slide"  # the section of a table without a `library_key`
AGAIN = (
    "Run `stimg.pp.to_lattice(adata)` again; if there are several sections, name the column of `adata.obs` that tells "
    "them apart as `library_key`."
)


@dataclass(frozen=True)
class Lattice:
    """The sites of all observations, and what is known about each section."""

    sites: np.ndarray  # int32 (n_obs, 2): row and column
    section: np.ndarray  # int64 (n_obs,): number of each observation's section in `libraries`
    libraries: list[str]  # names of the sections
    kind: str  # "hex", "square" or "free"
    parity: np.ndarray  # int (n_libraries,): see `stimg.pp.to_lattice`
    pitch: np.ndarray  # float64 (n_libraries,): between neighbouring sites, in units of the coordinates; NaN if unknown
    um_per_unit: np.ndarray  # float64 (n_libraries,): micrometres per unit of the coordinates; NaN if unknown
    spatial_key: str  # key of these coordinates in `.obsm`


def read_lattice(table: AnnData, key: str = _keys.LATTICE) -> Lattice:
    """Return the lattice in `.obsm[key]`, or say what happened to the table since the lattice was made.

    Raises
    ------
    KeyError
        There is no lattice, no record of it in `.uns["stimg"]`, or no column with its sections.
    ValueError
        The lattice is not that of this table: slides were joined, sections renamed, or sites changed.
    """
    check_obsm(table, key, advice="Run `stimg.pp.to_lattice(adata)` first.")
    record = read_record(table, _keys.STEP_LATTICE, key)
    # Records of the first releases contain neither their key nor the number of observations.
    wanted = FIELDS + CHECKED if "key_added" in record else FIELDS
    if lost := [name for name in wanted if name not in record]:
        msg = (
            f"`adata.obsm[{key!r}]` has a lattice, but its record in `adata.uns['stimg']` is "
            f"{'incomplete (' + ', '.join(lost) + ')' if record else 'lost'}, as after `anndata.concat`. {AGAIN}"
        )
        raise KeyError(msg)
    sites = np.asarray(table.obsm[key])
    if sites.shape != (table.n_obs, 2) or not np.issubdtype(sites.dtype, np.integer) or sites.min() < 0:
        below = ", some below 0" if sites.size and sites.dtype.kind in "if" and sites.min() < 0 else ""
        msg = (
            f"Expected rows and columns of at least 0 in `adata.obsm[{key!r}]`, integers of shape ({table.n_obs}, 2), "
            f"found {sites.dtype} of shape {sites.shape}{below}. {AGAIN}"
        )
        raise ValueError(msg)
    libraries = [str(name) for name in record["libraries"]] if record["library_key"] else [SINGLE]
    section = _sections(table, record["library_key"], libraries)
    spatial_key = str(record.get("spatial_key", _keys.SPATIAL))
    coordinates = check_coordinates(table, spatial_key) if spatial_key in table.obsm else None
    for number, library in enumerate(libraries):
        rows = section == number
        _check_section(record, number, library, sites[rows], None if coordinates is None else coordinates[rows])
    affine = np.asarray(record.get("affine", np.full((len(libraries), 3, 2), np.nan)))
    pitch = axis_lengths(affine).mean(1)
    # Records of the first releases contain one pitch in micrometres for all sections.
    um_per_unit = np.asarray(record.get("um_per_unit", record.get("pitch_um", np.nan) / pitch))
    parity = np.asarray(record["parity"])
    return Lattice(sites, section, libraries, str(record["kind"]), parity, pitch, um_per_unit, spatial_key)


def axis_lengths(affine: np.ndarray) -> np.ndarray:
    """Return the lengths of the lattice's axes, float64 (n, 2) in units of the coordinates, from maps (n, 3, 2)."""
    return np.linalg.norm(affine[:, :2], axis=2)


def _sections(table: AnnData, library_key: str, libraries: list[str]) -> np.ndarray:
    """Return the number of each observation's section in `libraries`, int64 (n_obs,)."""
    if not library_key:
        return np.zeros(table.n_obs, dtype=np.int64)
    if library_key not in table.obs:
        msg = (
            f"The lattice was made for the sections in `adata.obs[{library_key!r}]`, a column that is not there. "
            f"Available: {list(table.obs.columns)}. {AGAIN}"
        )
        raise KeyError(msg)
    column = table.obs[library_key]
    section = pd.Index(libraries).get_indexer(pd.Index(column.astype(str)))
    section[column.isna().to_numpy()] = -1
    if (section < 0).any():
        unknown = list(dict.fromkeys(column[section < 0].astype(str).tolist()))
        msg = (
            f"The lattice was made for the sections {libraries[:5]} of `adata.obs[{library_key!r}]`, which now has "
            f"{unknown[:5]} as well: sections were renamed or slides joined. {AGAIN}"
        )
        raise ValueError(msg)
    return section.astype(np.int64)


def _check_section(
    record: dict[str, Any], number: int, library: str, sites: np.ndarray, coordinates: np.ndarray | None
) -> None:
    """Refuse a section with more observations than `to_lattice` laid out, or with coordinates that left their sites.

    Fewer observations are fine: each keeps its site, whichever others are there.
    """
    if "key_added" not in record or not len(sites):
        return
    laid, shared, away = (record[name][number] for name in ("n_obs", "n_shared", "deviation"))
    found = len(sites) - n_distinct(sites)
    what = ""
    if len(sites) > laid:
        what = f"has {len(sites):,} observations, not {laid:,} as when `to_lattice` ran: slides were joined since then"
    elif found > shared:
        what = f"has {found:,} observations on the site of another, not {shared:,} as when `to_lattice` ran"
    elif coordinates is not None and np.isfinite(away):
        here = np.column_stack([site_positions(sites, record["kind"], record["parity"][number]), np.ones(len(sites))])
        off = np.abs(here @ record["affine"][number] - coordinates).max()
        if not off <= 1.01 * away + 1e-6 * np.abs(coordinates).max():
            what = f"has coordinates up to {off:.4g} away from their sites, not {away:.4g}: they have changed since"
    if what:
        msg = f"Section {library!r} {what}. {AGAIN}"
        raise ValueError(msg)
    if len(sites) < laid:
        logger.info("Section %r: %d of the %d observations on its lattice are still here.", library, len(sites), laid)
