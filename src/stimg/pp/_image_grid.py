"""Spots on a grid over the tissue of an H&E image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stimg import _keys
from stimg._image._files import file_mpp
from stimg._image._place import warn_of_file
from stimg._image._slide_image import SlideImage, open_image
from stimg._input._checks import check_positive, checked
from stimg.pp._to_lattice import to_lattice

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_SITES = 1e8
LONGEST_PREVIEW = 2000  # pixels


@checked
def image_grid(
    image: Any,
    genes: Sequence[str],
    *,
    pitch_um: float = 100.0,
    diameter_um: float | None = None,
    image_mpp: float | None = None,
    name: str = "image",
) -> AnnData:
    """Lay a grid of spots over the tissue of an H&E image that was never sequenced.

    The result is a slide without counts, for :func:`stimg.tl.predict_expression`.

    Parameters
    ----------
    image
        Path of a PNG, JPEG, TIFF, OME-TIFF or scanner's file (Aperio SVS and others), or an array.
    genes
        Names of the genes, such as `model.genes`.
    pitch_um, diameter_um
        Distance between neighbouring spots, and their diameter (by default the pitch), in micrometres.
    image_mpp
        Micrometres per pixel; by default as stated in the file.
    name
        Name of the library in `.uns["spatial"]`.

    Returns
    -------
    AnnData
        One observation for each site of the grid that lies on tissue, without counts (`.X` is an empty CSR), with
        `.obsm["spatial"]` in pixels of the image, `.obs["array_row"]`, `.obs["array_col"]`, the lattice of
        :func:`stimg.pp.to_lattice`, and in `.uns["spatial"][name]` a preview of the image, its scale, the spots'
        diameter and the path of the file. If `image` is an array, pass it to `predict_expression` as well.

    Raises
    ------
    FileNotFoundError, OSError
        There is no such file, or it is damaged or of an unknown format.
    ValueError
        A bad argument, an array that is not an image, an unknown resolution, or no tissue.

    Warns
    -----
    UserWarning
        The file states a resolution other than `image_mpp`.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic_histology(n_rows=6, n_cols=6)
    >>> image = slide.uns["spatial"]["histology"]["images"]["hires"]  # or the path of a file
    >>> stimg.pp.image_grid(image, slide.var_names, pitch_um=50, image_mpp=2).n_obs
    676
    """
    check_positive("pitch_um", pitch_um)
    diameter_um = pitch_um if diameter_um is None else diameter_um
    check_positive("diameter_um", diameter_um)
    if image_mpp is not None:
        check_positive("image_mpp", image_mpp)
        warn_of_file(image, image_mpp)
    names = pd.Index(np.asarray(list(genes), dtype=str))
    if isinstance(genes, str) or not len(names) or names.has_duplicates:
        msg = (
            f"Expected `genes` to be a list of distinct names, found {len(names)}, {names.nunique()} of them distinct."
        )
        raise ValueError(msg)
    image_mpp = file_mpp(image) if image_mpp is None else image_mpp
    if image_mpp is None:
        msg = "The micrometres per pixel of `image` are not known. Pass `image_mpp`."
        raise ValueError(msg)
    opened = open_image(image, image_mpp, name)
    sites = _sites_on_tissue(opened, pitch_um)
    rows, cols = sites.T.astype(np.int32)
    obs = pd.DataFrame(
        {_keys.ARRAY_ROW: rows, _keys.ARRAY_COL: cols}, index=[f"{r}x{c}" for r, c in zip(rows, cols, strict=True)]
    )
    grid = AnnData(sparse.csr_matrix((len(sites), len(names)), dtype=np.float32), obs, pd.DataFrame(index=names))
    grid.obsm[_keys.SPATIAL] = ((sites + 0.5) * pitch_um)[:, ::-1] / image_mpp
    preview_mpp = max(image_mpp, float(max(opened.shape) * image_mpp) / LONGEST_PREVIEW)
    grid.uns[_keys.SPATIAL] = {
        name: {
            "images": {"hires": opened.overview(preview_mpp)},
            "scalefactors": {
                "tissue_hires_scalef": image_mpp / preview_mpp,
                "spot_diameter_fullres": diameter_um / image_mpp,
            },
            "metadata": {"source_image_path": str(Path(image).resolve())} if isinstance(image, str | Path) else {},
        }
    }
    to_lattice(grid, "square", um_per_unit=image_mpp)
    return grid


def _sites_on_tissue(image: SlideImage, pitch_um: float) -> np.ndarray:
    """Return row and column of the grid's sites whose centres lie on tissue, int64 (n, 2)."""
    mask, mask_mpp = image.tissue
    extent = np.array(image.shape) * image.mpp
    if (count := np.prod(extent / pitch_um)) > MOST_SITES:
        msg = f"The grid would have {count:.2g} sites. Pass a larger `pitch_um`, or correct `image_mpp`={image.mpp:g}."
        raise ValueError(msg)
    axes = [np.arange(len(np.arange(pitch_um / 2, end, pitch_um))) for end in extent]
    sites = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    pixels = np.minimum(((sites + 0.5) * pitch_um / mask_mpp).astype(int), np.array(mask.shape) - 1)
    kept = sites[mask[tuple(pixels.T)]]
    if not len(kept):
        msg = f"No site of a grid of {pitch_um:g} micrometres lies on the tissue of {image.name!r}. Check `image_mpp`."
        raise ValueError(msg)
    return kept
