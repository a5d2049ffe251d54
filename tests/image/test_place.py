"""Where spots lie on their image: what the file, the table and transformations say about scale."""

import warnings

import numpy as np
import pandas as pd
import pytest
import tifffile

import stimg
from stimg._image._place import ImageSource, place_on_image


@pytest.fixture
def slide():
    found = stimg.datasets.synthetic_histology(n_rows=6, n_cols=8, n_genes=4)
    stimg.pp.to_lattice(found, um_per_unit=2.0)
    return found


def pixels(slide):
    return slide.uns["spatial"]["histology"]["images"]["hires"]


def place(slide, image=None, *, image_mpp=None, diameter_um=None):
    return place_on_image(slide, ImageSource(image, image_mpp, diameter_um, None, None, None, None), mpp=2.0)


@pytest.mark.parametrize(("factor", "told"), [(1.0, False), (1.03, False), (1.08, True), (2.0, True), (0.5, True)])
def test_a_file_that_contradicts_the_pitch_is_a_warning(slide, tmp_path, factor, told):
    path, per_cm = tmp_path / "x.tif", 1e4 / (2.0 * factor)
    tifffile.imwrite(
        path, pixels(slide), photometric="rgb", resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", tile=(64, 64)
    )
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        assert place(slide, path).image.mpp == pytest.approx(2.0)
    assert ["from the pitch" in str(one.message) and "'x.tif' states" in str(one.message) for one in found] == [
        True
    ] * told


@pytest.mark.parametrize("key", ["tissue_hires_scalef", "spot_diameter_fullres"])
@pytest.mark.parametrize("value", [0.0, -1.0, "one"])
def test_absurd_scale_factors_are_named(slide, key, value):
    slide.uns["spatial"]["histology"]["scalefactors"][key] = value
    with pytest.raises(ValueError, match=f"`{key}`.*positive number"):
        place(slide)
    if key == "spot_diameter_fullres":
        assert place(slide, diameter_um=80.0).diameter_um == 80


def on_spatialdata(slide, image, shapes_xy, matrix):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import spatialdata
        from spatialdata.models import Image2DModel, ShapesModel, TableModel
        from spatialdata.transformations import Affine, Identity

    table = slide.copy()
    del table.obsm["spatial"], table.obsm["lattice"], table.uns
    table.obs["region"], table.obs["spot"] = pd.Categorical(["spots"] * table.n_obs), np.arange(table.n_obs)
    to_common = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
    return spatialdata.SpatialData(
        images={"he": Image2DModel.parse(np.moveaxis(image, 2, 0), transformations={"global": to_common})},
        shapes={"spots": ShapesModel.parse(shapes_xy, geometry=0, radius=25.0, transformations={"global": Identity()})},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="spot")},
    )


SWAP = [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_swapped_axes_that_a_transformation_states(slide):
    xy = np.asarray(slide.obsm["spatial"], dtype=float)
    sdata = on_spatialdata(slide, pixels(slide).transpose(1, 0, 2).copy(), xy, SWAP)
    assert np.allclose(place(sdata, image_mpp=2.0).centres, 2 * xy)  # rows of that image are x


@pytest.mark.parametrize(
    "matrix",
    [
        [[2, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 1, 0], [1.2, 0, 0], [0, 0, 1]],
        [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
    ],
    ids=["stretched", "swapped and stretched", "sheared", "flat"],
)
def test_pixels_that_a_transformation_makes_not_square_are_refused(slide, matrix):
    sdata = on_spatialdata(slide, pixels(slide), np.asarray(slide.obsm["spatial"], dtype=float), matrix)
    with pytest.raises(ValueError, match="transformation of the image of 'adata' to 'global' stretches it"):
        place(sdata, image_mpp=2.0)
