"""Where a slide's observations lie on its image, in micrometres."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from stimg import _keys
from stimg._image._files import file_mpp
from stimg._image._fit import check_fit
from stimg._image._slide_image import SlideImage, open_image
from stimg._input._checks import warn
from stimg._input._coordinates import centroids, check_coordinates
from stimg._input._records import read_record, said
from stimg._input._tables import libraries_of, resolve_table, scale_factor
from stimg._platforms import spot_um
from stimg._slide._geometry import spacing
from stimg._slide._grid import find_grid

if TYPE_CHECKING:
    from spatialdata import SpatialData

MOST_COARSER = 2.5
MOST_OFF = 0.05  # of two statements of one scale


@dataclass(frozen=True)
class ImageSource:
    """What the user said about the image of a slide; `None` stands for the default.

    The default `image` is the largest one in `.uns["spatial"][library_id]`, or `image_key` of a `SpatialData` with all
    its transformations. The default `image_mpp` comes from the pitch that :func:`stimg.pp.to_lattice` recorded, from
    `microns_per_pixel` among the scale factors, or from the file; the default `diameter_um` of a spot from
    `spot_diameter_um` among the scale factors, the array of the platform, or `spot_diameter_fullres`; the default
    `spatial_key` is the one given to :func:`stimg.pp.to_lattice`.
    """

    image: Any  # path or array whose pixels are the units of `.obsm[spatial_key]`
    image_mpp: float | None
    diameter_um: float | None
    spatial_key: str | None
    library_id: str | None
    image_key: str | None
    table_key: str | None
    name: str = "adata"  # of the slide, for messages


@dataclass(frozen=True)
class ImagePlace:
    """Where a slide's observations lie on its image; all coordinates start at the image's upper-left corner."""

    image: SlideImage
    centres: np.ndarray  # float64 (n_obs, 2): row and column of each observation in micrometres
    diameter_um: float  # of a spot
    um_per_unit: float  # micrometres per unit of the coordinates; in a `SpatialData`, per pixel of the image


def place_on_image(adata: AnnData | SpatialData, source: ImageSource, *, mpp: float) -> ImagePlace:
    """Locate the observations of a slide on its image, which will be read at `mpp` micrometres per pixel.

    Missing coordinates, images or scale factors are a `KeyError`. It is a `ValueError` if micrometres or the diameter
    are not known, the image is too coarse, or the spots do not fit its tissue (see `check_fit`, which may also warn).
    """
    table, name = resolve_table(adata, source.table_key), source.name
    library = get_library(table, source.library_id)
    _check_one_section(table, source)
    diameter = scale_factor(library, "spot_diameter_fullres") if source.diameter_um is None else None
    pixels_per_unit, image = 1.0, source.image
    if isinstance(adata, AnnData) or image is not None:
        coordinates = check_coordinates(table, str(said(table, "spatial_key", source.spatial_key, _keys.SPATIAL)))
        if image is None:
            pixels_per_unit, image = _own_image(table, library, source)
    else:
        coordinates, diameter, image = _from_spatialdata(adata, table, source)
    um_per_unit = _um_per_unit(table, library, coordinates, image, pixels_per_unit, source)
    opened = open_image(image, um_per_unit / pixels_per_unit, name)
    if opened.mpp > MOST_COARSER * mpp:
        msg = (
            f"The image of {name!r} has {opened.mpp:.2f} micrometres per pixel, too coarse to read at {mpp:g}. It may "
            f"be a low-resolution preview: give the full-resolution image, or raise `mpp` to {opened.mpp:.1f}."
        )
        raise ValueError(msg)
    diameter_um = _diameter_um(table, library, coordinates, diameter, um_per_unit, source)
    centres = coordinates[:, ::-1] * um_per_unit
    check_fit(opened, _on_tissue(table, centres), name)
    return ImagePlace(opened, centres, diameter_um, um_per_unit)


def rows_on_image(image: SlideImage, centres: np.ndarray) -> np.ndarray:
    """Return the rows, int64, of the observations whose centres (n, 2) lie on the image; warn about the others."""
    inside = np.flatnonzero(image.contains(centres))
    if outside := len(centres) - len(inside):
        warn(f"{outside:,} of {len(centres):,} observations lie outside the image; their values are NaN.")
    return inside


def warn_of_file(image: Any, mpp: float, words: str = "`image_mpp`") -> None:
    """Warn if the file of the image states micrometres per pixel that differ from those used, which come from `words`.

    Then the coordinates may be in pixels of another copy of the image.
    """
    stated = file_mpp(image)
    if stated is not None and abs(mpp / stated - 1) > MOST_OFF:
        warn(
            f"{mpp:.4g} micrometres per pixel, from {words}, are used, but {Path(image).name!r} states {stated:.4g}. "
            "Check which is right, and that the coordinates are in pixels of this file."
        )


def get_library(table: AnnData, library_id: str | None) -> dict[str, Any]:
    """Return the entry `library_id` of `.uns["spatial"]`; by default its only one, or an empty one."""
    libraries = libraries_of(table)
    if library_id is None:
        return next(iter(libraries.values())) if len(libraries) == 1 else {}
    if library_id not in libraries:
        msg = f"No library {library_id!r} (`library_id`) in `adata.uns['spatial']`. Available: {list(libraries)}."
        raise KeyError(msg)
    return libraries[library_id]


def image_file(library: dict[str, Any]) -> str | None:
    """Return the path of the image file that an entry of `.uns["spatial"]` names, or `None` if it does not exist."""
    path = library.get("metadata", {}).get("source_image_path")
    return str(path) if path is not None and Path(str(path)).is_file() else None


def _um_per_unit(
    table: AnnData,
    library: dict[str, Any],
    coordinates: np.ndarray,
    image: Any,
    pixels_per_unit: float,
    source: ImageSource,
) -> float:
    """Find the micrometres per unit of the coordinates in the first of the places that `ImageSource` lists.

    An `image_mpp` that contradicts what the table knows is refused; a file that contradicts either is a warning.
    """
    known, words = _known_um_per_unit(table, library, coordinates)
    given = source.image_mpp
    if given is not None:
        if known is not None and abs(given * pixels_per_unit / known - 1) > MOST_OFF:
            msg = (
                f"Expected `image_mpp` near {known / pixels_per_unit:.4g}, which follows from {words} of "
                f"{source.name!r}, found {given:.4g}. Leave it out if the coordinates are in pixels of this image; if "
                "it is a preview, scale them; or correct the platform or `um_per_unit` of `stimg.pp.to_lattice`."
            )
            raise ValueError(msg)
        warn_of_file(image, given)
        return given * pixels_per_unit
    if known is not None:
        warn_of_file(image, known / pixels_per_unit, words)
        return known
    if (found := file_mpp(image)) is not None:
        return found * pixels_per_unit
    msg = (
        f"The micrometres per pixel of the image of {source.name!r} are not known. Pass `image_mpp`, or first run "
        "`stimg.pp.to_lattice(adata, platform=...)` with the platform's name, which records the pitch."
    )
    raise ValueError(msg)


def _diameter_um(
    table: AnnData,
    library: dict[str, Any],
    coordinates: np.ndarray,
    stored: float | None,
    um_per_unit: float,
    source: ImageSource,
) -> float:
    """Find the micrometres of a spot in the first of the places that `ImageSource` lists; `stored` is in units.

    Without a lattice, 0.6 to 0.75 pitches on a hexagonal array with the pitch of Visium are Space Ranger's diameter.
    """
    lattice, pitch = read_record(table, _keys.STEP_LATTICE), spacing(coordinates)
    of_array = spot_um(lattice.get("platform", ""), lattice.get("pitch_um", np.nan))
    alike = not lattice and stored is not None and 0.6 * pitch < stored < 0.75 * pitch
    if alike and (grid := find_grid(coordinates)) is not None and grid.kind == "hex":
        of_array = spot_um("visium", pitch * um_per_unit)
    in_units = None if stored is None else stored * um_per_unit
    places = source.diameter_um, scale_factor(library, "spot_diameter_um"), of_array, in_units
    if (found := next((place for place in places if place is not None), None)) is None:
        msg = (
            f"Spot diameter of {source.name!r} not found as `spot_diameter_fullres` in the scale factors of "
            "`adata.uns['spatial']`. Pass `diameter_um`."
        )
        raise ValueError(msg)
    return float(found)


def _known_um_per_unit(table: AnnData, library: dict[str, Any], coordinates: np.ndarray) -> tuple[float | None, str]:
    """Return the micrometres per unit of the coordinates that the table knows, if any, and what they follow from."""
    lattice = read_record(table, _keys.STEP_LATTICE)
    if np.isfinite(lattice.get("pitch_um", np.nan)) and len(coordinates) > 1:
        own = check_coordinates(table, lattice["spatial_key"])  # the pitch was measured in these
        pitch = float(lattice["pitch"]) * spacing(coordinates) / spacing(own)
        pitch_um = float(lattice["pitch_um"])
        return pitch_um / pitch, f"the pitch ({pitch_um:.4g} micrometres or {pitch:.4g} units of the coordinates)"
    return scale_factor(library, "microns_per_pixel"), "`microns_per_pixel` in the scale factors"


def _own_image(table: AnnData, library: dict[str, Any], source: ImageSource) -> tuple[float, Any]:
    """Return the largest image that the table has, as array or path, after its pixels per unit of the coordinates."""
    if (path := image_file(library)) is not None:
        return 1.0, path
    images = library.get("images", {})
    factors = {size: scale_factor(library, f"tissue_{size}_scalef") for size in ("hires", "lowres") if size in images}
    _check_scale_factors(images, factors, source.name)
    for size, factor in factors.items():
        if factor is None:
            msg = (
                f"Scale factor `tissue_{size}_scalef` of the image of {source.name!r} not found in "
                f"`adata.uns['spatial'][...]['scalefactors']`: {list(library['scalefactors'])}. Add it, or give the "
                "image."
            )
            raise KeyError(msg)
        return factor, np.asarray(images[size])
    libraries = list(libraries_of(table))
    several = len(libraries) > 1 and source.library_id is None
    advice = "Choose one with `library_id`." if several else "Pass the image."
    msg = f"No image of {source.name!r} in `adata.uns['spatial']` (libraries {libraries}). {advice}"
    raise KeyError(msg)


def _from_spatialdata(
    sdata: SpatialData, table: AnnData, source: ImageSource
) -> tuple[np.ndarray, float | None, list[Any]]:
    """Return centres (n_obs, 2), x and y in pixels of the image, the spots' diameter in pixels, the image's levels."""
    from spatialdata.transformations import get_transformation
    from xarray import DataTree

    keys, image_key, name = list(sdata.images), source.image_key, source.name
    if image_key not in keys and (image_key is not None or len(keys) != 1):
        msg = f"Expected one image in the SpatialData {name!r}, or its `image_key`; found {image_key!r} of {keys}."
        raise KeyError(msg)
    image: Any = sdata.images[keys[0] if image_key is None else image_key]
    regions = table.uns.get("spatialdata_attrs", {}).get("region")
    regions = [regions] if isinstance(regions, str) else list(regions if regions is not None else [])
    if len(regions) != 1:
        msg = f"Expected a table of {name!r} that annotates one region, found {regions}. Make one table per section."
        raise ValueError(msg)
    shapes: Any = sdata[regions[0]]
    of_image, of_shapes = (dict[str, Any](get_transformation(element, get_all=True)) for element in (image, shapes))
    if not (common := [system for system in of_image if system in of_shapes]):
        msg = (
            f"The image and the shapes {regions[0]!r} of {name!r} share no coordinate system: {list(of_image)} and "
            f"{list(of_shapes)}. Add the transformation that aligns them."
        )
        raise ValueError(msg)
    axes = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
    image_matrix, shape_matrix = (found[common[0]].to_affine_matrix(**axes) for found in (of_image, of_shapes))
    stretch = np.linalg.svd(np.nan_to_num(image_matrix[:2, :2]), compute_uv=False)  # most and least, in any direction
    if not 0 < stretch[0] <= (1 + MOST_OFF) * stretch[1]:
        msg = (
            f"The transformation of the image of {name!r} to {common[0]!r} stretches it by {stretch[0]:.4g} "
            f"in one direction and {stretch[1]:.4g} in another. Resample the image, or correct the transformation."
        )
        raise ValueError(msg)
    to_pixels = np.linalg.inv(image_matrix)
    centres = centroids(sdata, table, common[0])
    scale = float(np.sqrt(abs(np.linalg.det((to_pixels @ shape_matrix)[:2, :2]))))
    diameter = 2 * float(np.median(shapes["radius"])) * scale if "radius" in shapes else None
    nodes: list[Any] = list(image.children.values()) if isinstance(image, DataTree) else []
    levels = [node.ds["image"].data for node in nodes] or [image.data]
    return centres @ to_pixels[:2, :2].T + to_pixels[:2, 2], diameter, levels


def _check_one_section(table: AnnData, source: ImageSource) -> None:
    """Refuse a table of several sections: they have one image each.

    The column that tells them apart is the `library_key` of the lattice, the region of a `SpatialData`, or one that
    holds the names of several libraries of `.uns["spatial"]`.
    """
    libraries = set(libraries_of(table))
    named = table.obs.select_dtypes(exclude="number")
    columns = [
        read_record(table, _keys.STEP_LATTICE).get("library_key"),
        table.uns.get("spatialdata_attrs", {}).get("region_key"),
        *(key for key in named if len(libraries) > 1 and set(table.obs[key].astype(str)) <= libraries),
    ]
    for key in columns:
        if key and key in table.obs and len(names := table.obs[key].astype(str).unique()) > 1:
            msg = (
                f"{source.name!r} has one image, but {len(names)} sections in `.obs[{key!r}]`: {', '.join(names[:3])}. "
                f"Take each with its own image: `adata[adata.obs[{key!r}] == {names[0]!r}].copy()`."
            )
            raise ValueError(msg)


def _check_scale_factors(images: dict[str, Any], factors: dict[str, float | None], name: str) -> None:
    """Refuse two images whose sizes do not have the ratio of their scale factors."""
    hires, lowres = factors.get("hires"), factors.get("lowres")
    if hires is None or lowres is None:
        return
    sizes = [np.asarray(images[size]).shape[0] for size in ("hires", "lowres")]
    if abs(sizes[0] / sizes[1] / (hires / lowres) - 1) > MOST_OFF:
        msg = (
            f"The hires and lowres images of {name!r} have {sizes[0]} and {sizes[1]} rows, but their scale factors are "
            f"{hires:.4g} and {lowres:.4g}. One of them belongs to another image: correct the scale factors."
        )
        raise ValueError(msg)


def _on_tissue(table: AnnData, centres: np.ndarray) -> np.ndarray:
    """Return the centres of the spots that the table says lie on tissue, or all if it does not tell them apart."""
    if _keys.IN_TISSUE not in table.obs:
        return centres
    said_so = table.obs[_keys.IN_TISSUE].astype(str).isin(["1", "1.0", "True"]).to_numpy()
    return centres[said_so] if said_so.any() else centres
