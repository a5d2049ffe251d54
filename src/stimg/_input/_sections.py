"""Sections that lie over one another although no `library_key` was given: found, and refused by name."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._input._overlap import FEWEST, Overlap, overlap
from stimg._input._tables import libraries_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

logger = logging.getLogger("stimg")

# Words in the names of columns: the first tell the pieces of a slide apart, the second often differ along with them.
OF_SECTIONS = frozenset("library lib section slice slide fov field puck core tma roi capture image img bregma".split())
OF_ORIGIN = frozenset(
    "sample specimen batch donor patient subject individual mouse animal embryo organism replicate rep dataset "
    "experiment run region tissue block ident scan acquisition chip lane well time timepoint stage day condition "
    "treatment group z".split()
)
OF_OTHER = frozenset(
    "cluster type celltype class subclass annotation score n num count counts area size in is has mask".split()
)
KINDS = ("named", "along", "")
OF_DEPTH = frozenset(["z", "bregma"])
ENDING = re.compile(r"(?:ids?|names?|no|nr|nb|number|index|idx|s)?\d*$")


@dataclass(frozen=True)
class Column:
    """What may tell sections apart."""

    label: str  # where the user finds it
    codes: np.ndarray  # int64 (n_obs,)
    kind: str  # "named" after sections (or by its place in the table), goes "along" with them, or neither ("")
    key: str = "library"  # its name as a column of `.obs`
    step: str = ""  # code that makes it a column of `.obs`, if it is none yet


@dataclass(frozen=True)
class Levels:
    """Levels in depth."""

    codes: np.ndarray  # int64 (n_obs,): number of each observation's level
    far: bool  # further apart than observations; nearer ones may be planes of one section, which cut the same cells
    edges: np.ndarray  # between levels that are ranges; empty if each is one value

    def of(self, where: str) -> str:
        """Return code that makes a column of them."""
        if len(self.edges):
            return f"numpy.digitize({where}, {[float(f'{edge:.5g}') for edge in self.edges]}).astype(str)"
        return f"{where}.astype(str)"


def check_one_section(
    table: AnnData, points: np.ndarray, library_key: str | None = None, *, spatial_key: str = _keys.SPATIAL
) -> None:
    """Refuse observations of several sections that lie over one another, and name the column that tells them apart.

    `points` (n_obs, 2) are coordinates or array positions. A column counts if its name (`library_id`, `fov`, `batch`,
    ...), the table's `region_key` or `.uns["spatial"]` says that it may tell sections apart, and if observations with
    different values lie among each other. Sections side by side, or FOVs in coordinates of the whole slide, do not.
    Nor is it an error if all observations keep apart, as those of one section do, so that the column only labels them.
    If that cannot be told (points at random, or few), a column named after sections is one of sections; one with such
    another name is if its values follow each other in blocks of rows, as after a concatenation. A column with a name
    that says nothing is one only if its values do so and the points leave no doubt.

    With a `library_key` that has several values, the same holds in each of its sections, for the first kind of names
    only. If it has one value, the user says that everything is one section.
    """
    start = np.zeros(len(points), dtype=np.int64)
    if library_key is not None:
        start = pd.factorize(table.obs[library_key].astype(str))[0]
        if not start.any():
            return
    columns = list(_columns(table, points, spatial_key))
    if library_key is None:
        _check_images(table, [column for column in columns if column.kind])
    else:
        columns = [column for column in columns if column.kind]
    apart, found, share = start, [], 0.0
    for column in sorted(columns, key=lambda one: (KINDS.index(one.kind), one.codes.max())):
        result = overlap(points, column.codes, apart)
        if result is not None and _is_mistake(result, column, divided=library_key is not None):
            found.append(column)
            share = max(share, result.share)
            apart = _joined(apart, column.codes)
    for column in list(found):
        rest = [one.codes for one in found if one is not column]
        if rest and _joined(start, *rest).max() == apart.max():  # the others imply it
            found.remove(column)
    if len(found) > 1:  # one may say the same as several
        sizes = [(_joined(start, one.codes).max(), _joined(apart, one.codes).max()) for one in columns]
        found = [one for one, size in zip(columns, sizes, strict=True) if set(size) == {apart.max()}][:1] or found
    if found:
        raise ValueError(_message(table, found, share, library_key, spatial_key))


def section_columns(table: AnnData) -> list[str]:
    """Return the columns of `.obs` whose names say that they tell sections apart, and that have several values."""
    return [name for name in _names(table) if _kind(table, name) and _codes(table.obs[name]) is not None]


def _names(table: AnnData) -> list[str]:
    """Return the names of the columns of `.obs` that can be found by name."""
    columns = table.obs.columns
    return [name for name in columns[~columns.duplicated(keep=False)] if isinstance(name, str)]


def _is_mistake(found: Overlap, column: Column, *, divided: bool) -> bool:
    named = column.kind == "named"
    if found.collide or found.one_section or not column.kind:
        return found.several or (named and found.collide)
    blocks = not divided and np.count_nonzero(np.diff(column.codes)) < 2 * (column.codes.max() + 1)
    if not named and not blocks:
        logger.info("%s labels observations that lie among each other, and is not taken for sections.", column.label)
    return bool(named or blocks)


def _columns(table: AnnData, points: np.ndarray, spatial_key: str) -> Iterator[Column]:
    """Yield all that may tell sections apart."""
    for name in _names(table):
        where = f"adata.obs[{name!r}]"
        kind = _kind(table, name)
        if kind and _words(name) & OF_DEPTH and pd.api.types.is_float_dtype(table.obs[name]):
            if levels := _levels(table.obs[name].to_numpy(dtype=np.float64, na_value=np.nan), points):
                step = f"adata.obs['level'] = {levels.of(where)}" if len(levels.edges) else ""
                kind = "named" if levels.far else kind
                yield Column(f"`{where}`", levels.codes, kind, "level" if step else name, step)
        elif (codes := _codes(table.obs[name])) is not None and (kind or _in_blocks(codes)):
            yield Column(f"`{where}`", codes, kind, name)
    stored: Any = table.obsm.get(spatial_key)
    if stored is not None and getattr(stored, "ndim", 0) == 2 and stored.shape[1] == 3:
        third = np.asarray(stored)[:, 2]
        depth = third.astype(np.float64) if third.dtype.kind in "iuf" else np.zeros(len(third))
        where = f"adata.obsm[{spatial_key!r}][:, 2]"
        if levels := _levels(depth, points):
            kind = "named" if levels.far else "along"
            yield Column(f"`{where}`", levels.codes, kind, "z", f"adata.obs['z'] = {levels.of(where)}")
        elif np.ptp(depth) > 0:
            logger.info("The third coordinate, `%s`, varies by %.4g and is not used.", where, np.ptp(depth))
    if not table.obs_names.is_unique:
        codes = pd.Series(0, index=table.obs_names).groupby(level=0, sort=False).cumcount().to_numpy()
        step = "adata = anndata.concat(slides, label='section', keys=[...], index_unique='-')"
        yield Column("The repetition of `adata.obs_names`", codes, "along", "section", step)


def _words(name: str) -> set[str]:
    parts = [part.lower() for part in re.findall(r"[A-Z]?[a-z]+\d*|[A-Z]+(?![a-z])\d*", name)]
    return {*parts, *(ENDING.sub("", part) for part in parts)}


def _kind(table: AnnData, name: str) -> str:
    """Tell whether a column is `"named"` after sections, may go `"along"` with them, or neither (`""`)."""
    if name == table.uns.get("spatialdata_attrs", {}).get("region_key"):
        return "named"
    libraries = list(libraries_of(table))
    if len(libraries) > 1 and _are_entries(table.obs[name], libraries):
        return "named"
    words = _words(name)
    if words & OF_OTHER:
        return ""
    return "named" if words & OF_SECTIONS else "along" if words & OF_ORIGIN else ""


def _are_entries(column: pd.Series, names: list[Any]) -> bool:
    """Tell whether all values of a column are among these names."""
    if pd.api.types.is_float_dtype(column):
        return False
    return set(column.astype(str).unique()) <= set(map(str, names))


def _codes(column: pd.Series) -> np.ndarray | None:
    """Return the number of each observation's value, or `None` if it has one value, or about one per observation."""
    values = column.cat.codes if isinstance(column.dtype, pd.CategoricalDtype) else column
    try:
        codes = pd.factorize(values, use_na_sentinel=False)[0]
    except (TypeError, ValueError):  # lists and the like, or numbers in another byte order
        codes = pd.factorize(column.astype(str))[0]
    return codes.astype(np.int64) if 0 < codes.max(initial=0) < len(codes) / FEWEST else None


def _in_blocks(codes: np.ndarray) -> bool:
    """Tell whether all observations with the same value follow each other, as after a concatenation."""
    return bool(np.count_nonzero(np.diff(codes)) == codes.max())


def _levels(depth: np.ndarray, points: np.ndarray) -> Levels | None:
    """Return the levels of observations in depth, or `None` if they are all on one, or at any depth."""
    values = np.unique(depth[np.isfinite(depth)])
    apart = float(np.sqrt(np.prod(np.ptp(points, axis=0)) / len(points)))  # between neighbours
    gaps = np.diff(values)
    if len(values) <= len(points) / FEWEST:
        return Levels(np.searchsorted(values, depth), bool(gaps.min() > apart), values[:0]) if len(values) > 1 else None
    edges = (values[1:] - gaps / 2)[gaps > apart]
    return Levels(np.digitize(depth, edges), True, edges) if len(edges) else None


def _joined(*codes: np.ndarray) -> np.ndarray:
    """Return the number of each observation's combination of codes."""
    return np.unique(np.column_stack(codes), axis=0, return_inverse=True)[1].ravel().astype(np.int64)


def _check_images(table: AnnData, columns: list[Column]) -> None:
    """Refuse a table with the images of several sections, and no column that may tell these apart."""
    names = [name for name, entry in libraries_of(table).items() if entry.get("images")]
    # A column with the name of one of them is left where the other sections were removed.
    if len(names) < 2 or columns or any(_are_entries(table.obs[name], names) for name in _names(table)):
        return
    msg = (
        f"`adata.uns['spatial']` has images of {len(names)} sections ({names[:5]}), but no column of `adata.obs` tells "
        "which observation belongs to which. Add one and pass it as `library_key`, or remove the images of other "
        "sections from `adata.uns['spatial']`."
    )
    raise ValueError(msg)


def _message(table: AnnData, found: list[Column], share: float, library_key: str | None, spatial_key: str) -> str:
    """Say which column tells the sections apart, and what to do."""
    keys = ([library_key] if library_key else []) + [one.key for one in found]
    steps = [one.step for one in found if one.step]
    if len(keys) > 1:
        steps.append("adata.obs['library'] = " + " + '_' + ".join(f"adata.obs[{key!r}].astype(str)" for key in keys))
    key = keys[0] if len(keys) == 1 else "library"
    cure = f"Run `{'; '.join(steps)}`, and pass `library_key={key!r}`" if steps else f"Pass `library_key={key!r}`"
    whole = [other for other in table.obsm if other != spatial_key and _side_by_side(table.obsm[other], other, found)]
    if whole and library_key is None:
        cure += f"; or pass `spatial_key={whole[0]!r}`, in which they lie side by side"
    tell = "tell" if len(found) > 1 else "tells"
    msg = (
        f"{' and '.join(one.label for one in found)} {tell} sections apart that lie over one another: {share:.0%} of "
        f"the observations have their nearest neighbour in another section. {cure}."
    )
    if library_key:
        return f"{msg} If they are not, give the column another name."
    return f"{msg} If they are one section after all, pass a column with a single value as `library_key`."


def _side_by_side(values: Any, key: str, columns: list[Column]) -> bool:
    """Tell whether other coordinates of the table have the sections side by side."""
    if key.startswith("X_") or getattr(values, "ndim", 0) != 2 or values.shape[1] not in (2, 3):
        return False
    try:
        points = np.asarray(values)[:, :2].astype(np.float64)
    except (TypeError, ValueError):
        return False
    if not np.isfinite(points).all() or not np.ptp(points, axis=0).all():
        return False
    return all(overlap(points, one.codes, np.zeros(len(points), dtype=np.int64)) is None for one in columns)
