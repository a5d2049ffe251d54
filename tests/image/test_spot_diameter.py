"""How wide spots are: given, stated, known from the array, or stored, in this order."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import stimg
from stimg._image._place import ImageSource, place_on_image
from stimg._platforms import spot_um
from stimg._slide._geometry import spacing

PIXELS = np.full((500, 500, 3), (200, 120, 170), np.uint8)


def diameter(slide, *, mpp=None, given=None, **more):
    options = {"spatial_key": None, "library_id": None, "image_key": None, "table_key": None} | more
    pixels = options.pop("pixels", PIXELS)
    return place_on_image(slide, ImageSource(pixels, mpp, given, **options), mpp=20.0).diameter_um


def spots(kind="visium", *, share=0.7, **factors):
    """Return a slide with a pitch of 20 pixels whose stored diameter is this share of it."""
    slide = stimg.datasets.synthetic(kind, n_obs=200, n_genes=10)
    entry = slide.uns["spatial"]["synthetic"]
    entry["scalefactors"] = factors if share is None else {"spot_diameter_fullres": share * 20.0} | factors
    return slide


@pytest.mark.parametrize("share", [0.55, 0.65, 0.7037, None])
def test_visium_spots_are_55_um_whatever_space_ranger_stores(share):
    slide = spots(share=share)
    stimg.pp.to_lattice(slide)
    assert diameter(slide) == 55
    assert diameter(slide, given=30.0) == 30


@pytest.mark.parametrize("share", [0.65, 0.7037])
def test_space_ranger_is_recognised_without_a_lattice(share):
    assert diameter(spots(share=share), mpp=5.0) == 55
    assert diameter(spots(share=share, microns_per_pixel=5.0)) == 55
    # an array with another pitch, and a square one
    assert diameter(spots(share=share), mpp=2.0) == pytest.approx(share * 40)
    assert diameter(spots("square", share=share), mpp=5.0) == pytest.approx(share * 100)
    assert diameter(spots(share=0.3), mpp=5.0) == pytest.approx(30)


@pytest.mark.parametrize(
    ("kind", "platform", "um", "expected"),
    [
        ("square", "st", None, 100.0),
        ("square", "square", 5.0, 30.0),
        ("hex", "hex", 5.0, 30.0),
        ("free", "free", 5.0, 30.0),
        ("free", "cosmx", 5.0, 30.0),
    ],
)
def test_other_arrays(kind, platform, um, expected):
    slide = spots(kind, share=0.3)
    stimg.pp.to_lattice(slide, platform, um_per_unit=um)
    assert diameter(slide) == pytest.approx(expected)


def test_spots_at_one_place_are_as_wide_as_stored():
    slide = spots()
    slide.obsm["spatial"] = np.full((slide.n_obs, 2), 100.0)
    assert diameter(slide, mpp=5.0) == pytest.approx(70)


def test_a_diameter_stated_in_micrometres_counts_before_the_platform():
    slide = spots("square", share=0.5, spot_diameter_um=50.0)
    stimg.pp.to_lattice(slide, "st")
    assert diameter(slide) == 50
    assert diameter(slide, given=30.0) == 30


def test_bins_are_as_wide_as_their_pitch():
    slide = spots("square", share=None)
    slide.uns["spatial"] = {"square_016um": slide.uns["spatial"]["synthetic"]}
    stimg.pp.to_lattice(slide, "visium_hd")
    assert diameter(slide) == 16


@pytest.mark.parametrize(
    ("platform", "pitch_um", "expected"),
    [
        ("visium", 100, 55),
        ("visium", 97, 55),
        ("visium", 150, None),
        ("visium", np.nan, None),
        ("st", 200, 100),
        ("st", 110, None),
        ("visium_hd", 2, 2),
        ("visium_hd", np.nan, None),
        ("hex", 100, None),
        ("unknown", 100, None),
    ],
)
def test_table_of_platforms(platform, pitch_um, expected):
    assert spot_um(platform, pitch_um) == expected


def test_the_radius_in_a_spatialdata_is_space_rangers_too():
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel

    slide = spots()
    table = AnnData(slide.X, obs=slide.obs.copy(), obsm={"spatial": slide.obsm["spatial"]})
    table.obs["region"], table.obs["instance"] = pd.Categorical(["spots"] * table.n_obs), np.arange(table.n_obs)
    parsed = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    shapes = ShapesModel.parse(slide.obsm["spatial"], geometry=0, radius=0.35 * 20, index=np.arange(table.n_obs))
    image = Image2DModel.parse(PIXELS.transpose(2, 0, 1), dims=("c", "y", "x"))
    sdata = SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": parsed})
    assert diameter(sdata, pixels=None, mpp=5.0) == 55
    stimg.pp.to_lattice(sdata)
    assert diameter(sdata, pixels=None) == 55


@pytest.mark.real
@pytest.mark.parametrize(
    ("file", "stored_um"), [("dlpfc/151673", 69.8), ("visium_perik/perik", 69.8), ("mouse_colon_visium/colon_d0", 54.9)]
)
def test_real_visium(real_data_dir, file, stored_um):
    path = real_data_dir / f"{file}.h5ad"
    if not path.is_file():
        pytest.skip(f"{path} not found")
    slide = anndata.read_h5ad(path)
    (entry,) = slide.uns["spatial"].values()
    stimg.pp.to_lattice(slide)
    um = slide.uns["stimg"]["lattice"]["um_per_unit"][0]
    assert entry["scalefactors"]["spot_diameter_fullres"] * um == pytest.approx(stored_um, abs=0.1)
    source = ImageSource(None, None, None, None, None, None, None)
    assert place_on_image(slide, source, mpp=40.0).diameter_um == pytest.approx(55)


@pytest.mark.real
def test_real_space_ranger_output(real_cases_dir):
    folder = real_cases_dir / "seurat_visium" / "visium" / "spatial"
    stored = json.loads((folder / "scalefactors_json.json").read_text())["spot_diameter_fullres"]
    positions = pd.read_csv(folder / "tissue_positions_list.csv", header=None).iloc[:, [5, 4]].to_numpy(float)
    assert stored / spacing(positions) == pytest.approx(0.653, abs=0.001)
    xy = (positions - positions.min(0) + 500) / 20
    slide = AnnData(np.ones((len(xy), 1), np.float32), obsm={"spatial": xy})
    slide.uns["spatial"] = {"one": {"scalefactors": {"spot_diameter_fullres": stored / 20}}}
    side = int(np.ceil(xy.max())) + 25
    pixels = np.full((side, side, 3), (200, 120, 170), np.uint8)
    assert diameter(slide, pixels=pixels, mpp=20 * 100 / 137.0) == 55
