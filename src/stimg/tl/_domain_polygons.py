"""Turn domains into polygons of a SpatialData."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stimg import _keys
from stimg._cluster._labels import read_labels
from stimg._input._checks import checked
from stimg._input._coordinates import stored_centroids
from stimg._input._records import read_record, write_record
from stimg._input._tables import prepare, resolve_table
from stimg._slide._cells import Cells, nearest_cells, site_cells
from stimg._slide._lattice import Lattice, read_lattice

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stimg")


@checked
def domain_polygons(
    sdata: SpatialData,
    key: str = _keys.DOMAIN,
    *,
    key_added: str | None = None,
    table_key: str | None = None,
    copy: bool = False,
) -> SpatialData | None:
    """Turn domains into polygons: the outlines of their tissue, as shapes of a `SpatialData`.

    Each observation stands for the cell of its site on the lattice, a hexagon or a square; where coordinates are free,
    for the tissue that is nearer to it than to any other (its Voronoi cell). Cells of one domain are merged. Domains do
    not overlap, and leave no gaps between neighbours; holes in the tissue stay holes.

    Parameters
    ----------
    sdata
        A `SpatialData` whose table annotates an element, after :func:`stimg.pp.to_lattice` and
        :func:`stimg.tl.domains`.
    key
        Column of `.obs` with the domains. Observations without a label, or labelled `"unknown"`, belong to no polygon.
    key_added
        Name of the shapes; by default `key + "_polygons"`.
    table_key, copy
        Table of the `SpatialData`; whether to return a changed copy and leave `sdata` as it is.

    Returns
    -------
    `None` (or the copy), with
    `.shapes[key_added]` : GeoDataFrame of polygons and multipolygons, one row per domain, and per section if there are
    several: `domain` (categorical), `section` (only if there are several), `n_obs`. They are in the coordinates of the
    element that the table annotates and have its transformations; if it annotates elements whose transformations
    differ, they are in a coordinate system that all of them have (`"global"` if possible).
    `.uns["stimg"]["domain_polygons"]` of the table : parameters.

    Raises
    ------
    TypeError
        `sdata` is an `AnnData`, which has no place for shapes.
    KeyError
        No column `key`, no lattice, no such table, or no element that the table annotates.
    ValueError
        The table annotates no element, elements have no coordinate system in common, the lattice is that of other
        coordinates, or something else is stored under `key_added`; a section of an array with fewer than three
        observations, or with all of them in a line.

    Notes
    -----
    If several observations share a place, the first one counts. Where coordinates are free, tissue is what lies within
    half a pitch of an observation, and gaps that are at most three pitches wide; wider ones are holes. The pitch is one
    over the root of the median density. To store the result of a `SpatialData` on disk, call
    `sdata.write_element(key_added)`; to draw it, use `spatialdata-plot`:
    `sdata.pl.render_shapes(key_added, color="domain").pl.show()`.

    Examples
    --------
    >>> from spatialdata import SpatialData
    >>> from spatialdata.models import ShapesModel, TableModel
    >>> slide = stimg.datasets.synthetic("visium", n_obs=300, n_genes=20)
    >>> spots = ShapesModel.parse(slide.obsm["spatial"], geometry=0, radius=5, index=slide.obs_names)
    >>> slide.obs = slide.obs.assign(region="spots", spot=slide.obs_names).astype({"region": "category"})
    >>> table = TableModel.parse(slide, region="spots", region_key="region", instance_key="spot")
    >>> sdata = SpatialData(shapes={"spots": spots}, tables={"table": table})
    >>> stimg.pp.to_lattice(sdata)
    >>> stimg.tl.domain_polygons(sdata, "domain")
    >>> sdata["domain_polygons"]["domain"].tolist()
    ['layer1', 'layer2', 'layer3', 'layer4', 'layer5']
    """
    from geopandas import GeoDataFrame
    from spatialdata.models import ShapesModel

    if isinstance(sdata, AnnData):
        msg = (
            "Expected a SpatialData, found an AnnData, which has no place for polygons. Read the slide with "
            "`spatialdata_io`, or convert it: `from spatialdata_io.experimental import from_legacy_anndata; sdata = "
            "from_legacy_anndata(adata)`."
        )
        raise TypeError(msg)
    table = resolve_table(sdata, table_key, copy=copy)
    key_added = f"{key}{_keys.POLYGONS_SUFFIX}" if key_added is None else key_added
    labels = read_labels(table, key)
    _check_place(sdata, table, key_added)
    lattice_key = str(read_record(table, _keys.STEP_LATTICE).get("key_added", _keys.LATTICE))
    lattice = read_lattice(table, lattice_key)
    points, transformations = stored_centroids(sdata, table)
    sections, names = _sections(table, lattice)
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        members = np.flatnonzero(sections == number)
        cells = _cells(lattice, members, points[members])
        codes = labels.codes[members]
        for code in np.unique(codes[codes >= 0]):
            area = cells.merge(codes[cells.first] == code)
            row = {"section": name, "domain": code, "n_obs": int((codes == code).sum()), "geometry": area}
            if area.is_empty:
                logger.info("Domain %s has no place of its own in %r.", labels.categories[code], name)
            else:
                rows.append(row)
    frame = GeoDataFrame(rows, geometry="geometry")
    frame["domain"] = pd.Categorical.from_codes(frame["domain"], labels.categories)
    frame.index = frame["domain"].astype(str)
    if len(names) > 1:
        frame["section"] = pd.Categorical(frame["section"], categories=names)
        frame.index = frame["section"].astype(str) + "/" + frame["domain"].astype(str)
    else:
        frame = frame.drop(columns="section")
    frame.index.name = None
    shapes = ShapesModel.parse(frame, transformations=transformations)
    table, result = prepare(sdata, table_key, copy)
    changed: Any = result if copy else sdata
    if key_added in changed.shapes:
        del changed.shapes[key_added]
    changed.shapes[key_added] = shapes
    write_record(table, _keys.STEP_POLYGONS, key_added, {"key": key, "lattice": lattice_key, "kind": lattice.kind})
    left_out = int((labels.codes < 0).sum())
    text = "Added .shapes[%r]: %d outlines of domains in .obs[%r] (%d observations without a label left out)."
    logger.info(text, key_added, len(shapes), key, left_out)
    return result  # type: ignore[return-value]


def _check_place(sdata: SpatialData, table: AnnData, key: str) -> None:
    """Refuse a table that annotates nothing, a name that an element cannot have, and one that is taken."""
    if not re.fullmatch(r"[\w.-]+", key):
        msg = f"Expected a name of letters, digits, `_`, `.` and `-` in `key_added`, found {key!r}. Pass another."
        raise ValueError(msg)
    if "region_key" not in table.uns.get("spatialdata_attrs", {}):
        msg = (
            "The table annotates no element of the SpatialData, so that the place of its observations is unknown. Name "
            "it: `sdata.set_table_annotates_spatialelement(table_name, region, region_key, instance_key)`."
        )
        raise ValueError(msg)
    ours = key in sdata.shapes and read_record(table, _keys.STEP_POLYGONS, key) and "domain" in sdata.shapes[key]
    if key in sdata and not ours:
        msg = f"The SpatialData already has an element {key!r}, which would be lost. Pass another `key_added`."
        raise ValueError(msg)


def _sections(table: AnnData, lattice: Lattice) -> tuple[np.ndarray, list[str]]:
    """Return the number of each observation's section, int64 (n_obs,), and their names.

    Sections are those of the lattice, and the elements that the table annotates.
    """
    regions = table.obs[table.uns["spatialdata_attrs"]["region_key"]].astype(str).to_numpy()
    libraries = np.array(lattice.libraries, dtype=object)[lattice.section]
    both = pd.MultiIndex.from_arrays([libraries, regions])
    codes, pairs = pd.factorize(both)
    own, annotated = (len(set(pairs.get_level_values(level))) for level in (0, 1))
    if own == len(pairs):
        names = list(map(str, pairs.get_level_values(0)))
    elif annotated == len(pairs):
        names = list(map(str, pairs.get_level_values(1)))
    else:
        names = [f"{library}/{region}" for library, region in pairs]
    return codes.astype(np.int64), names


def _cells(lattice: Lattice, rows: np.ndarray, points: np.ndarray) -> Cells:
    """Return the cells of one section."""
    if lattice.kind == "free":
        return nearest_cells(points)
    return site_cells(lattice.sites[rows], lattice.kind, int(lattice.parity[lattice.section[rows[0]]]), points)
