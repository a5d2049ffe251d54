"""From a table and an image to spots in micrometres on the image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from stimg import _keys
from stimg._image._files import file_mpp
from stimg._image._slide_image import SlideImage, open_image
from stimg._input._checks import check_coordinates
from stimg._input._tables import resolve_table

if TYPE_CHECKING:
    from spatialdata import SpatialData

MOST_COARSER = 2.5
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class ImagePlace:
    """Where a slide's observations lie on its image.

    Attributes
    ----------
    image
        The image.
    centres
        float64 (n_obs, 2): row and column of each observation in micrometres from the image's upper-left corner.
    diameter_um
        Diameter of a spot in micrometres.
    um_per_unit
        Micrometres per unit of the coordinates (of a `SpatialData`: pixel of the image), whose origin is the image's
        upper-left corner.
    """

    image: SlideImage
    centres: np.ndarray
    diameter_um: float
    um_per_unit: float


def read_image_slide(
    adata: AnnData | SpatialData,
    image: Any = None,
    *,
    mpp: float,
    spatial_key: str,
    library_id: str | None,
    image_key: str | None,
    table_key: str | None,
    image_mpp: float | None,
    diameter_um: float | None,
    name: str,
) -> ImagePlace:
    """Put a table's observations on its image.

    Parameters
    ----------
    adata
        The slide.
    image
        Path or array whose pixels are the units of `.obsm[spatial_key]`; by default the largest of
        `.uns["spatial"][library_id]["images"]`, or of a `SpatialData` the image `image_key`, with all transformations.
    mpp
        Micrometres per pixel that will be read.
    spatial_key, library_id, image_key, table_key
        Where coordinates, images and the table are.
    image_mpp
        Micrometres per pixel of the image; by default from the pitch that :func:`stimg.pp.to_lattice` recorded, from
        `microns_per_pixel` among the scale factors, or those of the file.
    diameter_um
        Diameter of a spot; by default `spot_diameter_fullres`.
    name
        For messages.

    Raises
    ------
    KeyError
        There are no coordinates, no image or no scale factor.
    ValueError
        Micrometres or diameter are not known, the image is too coarse, or the spots do not lie on its tissue.
    """
    table = resolve_table(adata, table_key)
    library = _library(table, library_id)
    diameter = library.get("scalefactors", {}).get("spot_diameter_fullres")
    if isinstance(adata, AnnData) or image is not None:
        coordinates = check_coordinates(table, spatial_key)
        pixels_per_unit, source = (1.0, image) if image is not None else _own_image(table, library, library_id, name)
    else:
        coordinates, diameter, source = _from_spatialdata(adata, table, image_key, name)
        pixels_per_unit = 1.0
    recorded = table.uns.get(_keys.UNS, {}).get(_keys.STEP_LATTICE, {})
    if image_mpp is not None:
        um_per_unit = image_mpp * pixels_per_unit
    elif np.isfinite(recorded.get("pitch_um", np.nan)) and len(coordinates) > 1:
        own = check_coordinates(table, recorded["spatial_key"])  # the pitch was measured in these
        pitch = float(recorded["pitch"]) * _nearest(coordinates) / _nearest(own)
        um_per_unit = float(recorded["pitch_um"]) / pitch
    elif (given := library.get("scalefactors", {}).get("microns_per_pixel")) is not None:
        um_per_unit = float(given)
    elif (found := file_mpp(source)) is not None:
        um_per_unit = found * pixels_per_unit
    else:
        msg = (
            f"Micrometres per pixel of the image of {name!r} are not known. Pass `image_mpp`, or run "
            "`stimg.pp.to_lattice(adata, platform=...)` with the platform's name first, which records the pitch."
        )
        raise ValueError(msg)
    opened = open_image(source, um_per_unit / pixels_per_unit, name)
    if opened.mpp > MOST_COARSER * mpp:
        msg = (
            f"The image of {name!r} has {opened.mpp:.2f} micrometres per pixel, but {mpp:g} are to be read. It may be "
            f"a low-resolution preview: give the full-resolution image in `images`, or raise `mpp` to {opened.mpp:.1f}."
        )
        raise ValueError(msg)
    if diameter_um is None:
        if diameter is None:
            msg = (
                f"Spot diameter of {name!r} not found as `spot_diameter_fullres` in the scale factors of "
                "`adata.uns['spatial']`. Pass `diameter_um`."
            )
            raise ValueError(msg)
        diameter_um = float(diameter) * um_per_unit
    centres = coordinates[:, ::-1] * um_per_unit
    _check_on_tissue(opened, centres, name)
    return ImagePlace(opened, centres, float(diameter_um), um_per_unit)


def _library(table: AnnData, library_id: str | None) -> dict[str, Any]:
    """Return the entry of `.uns["spatial"]`: the one named, or the only one; empty where there is none."""
    libraries = table.uns.get(_keys.SPATIAL, {})
    if library_id is None:
        return next(iter(libraries.values())) if len(libraries) == 1 else {}
    if library_id not in libraries:
        msg = f"No library {library_id!r} (`library_id`) in `adata.uns['spatial']`. Available: {list(libraries)}."
        raise KeyError(msg)
    return libraries[library_id]


def _own_image(table: AnnData, library: dict[str, Any], library_id: str | None, name: str) -> tuple[float, Any]:
    """Pixels per unit of the coordinates, and the array or path, of the largest image that the table brings along."""
    full = library.get("metadata", {}).get("source_image_path")
    if full is not None and Path(str(full)).is_file():
        return 1.0, str(full)
    images, factors = library.get("images", {}), library.get("scalefactors", {})
    for size in ("hires", "lowres"):
        if size in images:
            if f"tissue_{size}_scalef" not in factors:
                msg = (
                    f"Scale factor `tissue_{size}_scalef` of the image of {name!r} not found in "
                    f"`adata.uns['spatial'][...]['scalefactors']`: {list(factors)}. Add it, or give `images`."
                )
                raise KeyError(msg)
            return float(factors[f"tissue_{size}_scalef"]), np.asarray(images[size])
    libraries = list(table.uns.get(_keys.SPATIAL, {}))
    advice = "Choose one by `library_id`." if len(libraries) > 1 and library_id is None else "Give it in `images`."
    msg = f"No image of {name!r} in `adata.uns['spatial']` (libraries {libraries}). {advice}"
    raise KeyError(msg)


def _nearest(points: np.ndarray) -> float:
    """Median distance to the nearest other point."""
    from scipy.spatial import cKDTree

    return float(np.median(cKDTree(points).query(points, k=2)[0][:, 1]))


def _from_spatialdata(
    sdata: SpatialData, table: AnnData, image_key: str | None, name: str
) -> tuple[np.ndarray, float | None, list[Any]]:
    """Centres (n_obs, 2) as x and y in pixels of an image, the spots' diameter in pixels, and the image's levels."""
    from spatialdata import get_centroids
    from spatialdata.transformations import get_transformation
    from xarray import DataTree

    keys = list(sdata.images)
    if image_key not in keys and (image_key is not None or len(keys) != 1):
        msg = (
            f"Expected one image in the SpatialData {name!r} or an `image_key`, found {image_key!r} and images {keys}."
        )
        raise KeyError(msg)
    image: Any = sdata.images[keys[0] if image_key is None else image_key]
    attributes = table.uns.get("spatialdata_attrs", {})
    regions = attributes.get("region")
    regions = [regions] if isinstance(regions, str) else list(regions if regions is not None else [])
    if len(regions) != 1:
        msg = f"Expected a table of {name!r} that annotates one region, found {regions}. Give one table a section."
        raise ValueError(msg)
    shapes: Any = sdata[regions[0]]
    of_image, of_shapes = (dict[str, Any](get_transformation(element, get_all=True)) for element in (image, shapes))
    if not (common := [system for system in of_image if system in of_shapes]):
        msg = (
            f"The image and the shapes {regions[0]!r} of {name!r} share no coordinate system: {list(of_image)} and "
            f"{list(of_shapes)}. Add the transformation that brings them together."
        )
        raise ValueError(msg)
    axes = ("x", "y")
    to_common: list[Any] = [found[common[0]] for found in (of_image, of_shapes)]
    image_matrix, shape_matrix = (one.to_affine_matrix(input_axes=axes, output_axes=axes) for one in to_common)
    to_pixels = np.linalg.inv(image_matrix)
    centroids: Any = get_centroids(shapes, coordinate_system=common[0])
    places: Any = centroids.compute()
    centres = places.loc[table.obs[attributes["instance_key"]], ["x", "y"]].to_numpy()
    scale = float(np.sqrt(abs(np.linalg.det((to_pixels @ shape_matrix)[:2, :2]))))
    diameter = 2 * float(np.median(shapes["radius"])) * scale if "radius" in shapes else None
    nodes: list[Any] = list(image.children.values()) if isinstance(image, DataTree) else []
    levels = [node.ds["image"].data for node in nodes] or [image.data]
    return centres @ to_pixels[:2, :2].T + to_pixels[:2, 2], diameter, levels


def _check_on_tissue(image: SlideImage, centres: np.ndarray, name: str) -> None:
    """Refuse spots that do not lie on the image, or not on its tissue."""
    size = np.array(image.shape) * image.mpp
    inside = ((centres >= 0) & (centres < size)).all(1)
    advice = (
        "Image and coordinates are probably not in the same coordinate system: check that the image is the one whose "
        "pixels `.obsm` counts, or that its scale factor is right."
    )
    if inside.mean() < LEAST_SHARE:
        low, high = centres.min(0) / image.mpp, centres.max(0) / image.mpp
        msg = (
            f"Only {inside.sum():,} of {len(centres):,} spots of {name!r} lie inside of its image: the image has "
            f"{image.shape[0]} x {image.shape[1]} pixels (rows x columns), the spots span rows {low[0]:.0f} to "
            f"{high[0]:.0f} and columns {low[1]:.0f} to {high[1]:.0f}. {advice}"
        )
        raise ValueError(msg)
    mask, mask_mpp = image.tissue
    place = np.clip((centres[inside] / mask_mpp).astype(int), 0, np.array(mask.shape) - 1)
    on_tissue = mask[place[:, 0], place[:, 1]].sum()
    if on_tissue < LEAST_SHARE * len(centres):
        msg = f"Only {on_tissue:,} of {len(centres):,} spots of {name!r} lie on tissue in its image. {advice}"
        raise ValueError(msg)
