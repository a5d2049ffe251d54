from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely
import spatialdata
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale, Translation, get_transformation

import stimg

HALF = Scale([0.5, 0.5], axes=("x", "y"))


def shapes_of(slide, transformations=None):
    transformations = transformations or {"global": Identity()}
    return ShapesModel.parse(
        slide.obsm["spatial"], geometry=0, radius=4, index=slide.obs_names, transformations=transformations
    )


def annotated(slide, regions="spots"):
    slide.obs = slide.obs.assign(region=regions, spot=slide.obs_names).astype({"region": "category"})
    names = list(slide.obs["region"].cat.categories)
    return TableModel.parse(slide, region=names, region_key="region", instance_key="spot")


def whole(slide, transformations=None):
    return SpatialData(shapes={"spots": shapes_of(slide, transformations)}, tables={"table": annotated(slide)})


@pytest.fixture(params=["visium", "square", "free"])
def sdata(request):
    sdata = whole(stimg.datasets.synthetic(request.param, n_obs=300, n_genes=20, n_domains=4))
    stimg.pp.to_lattice(sdata, request.param)
    return sdata


def test_every_observation_lies_in_its_domain(sdata):
    stimg.tl.domain_polygons(sdata, "domain")
    found = sdata.shapes["domain_polygons"]
    obs = sdata["table"].obs
    assert list(found.columns) == ["domain", "n_obs", "geometry"]
    assert found["domain"].tolist() == list(obs["domain"].cat.categories)
    assert found["n_obs"].tolist() == obs["domain"].value_counts(sort=False).tolist()
    places = geopandas.GeoSeries(shapely.points(sdata["table"].obsm["spatial"]))
    for row in found.itertuples():
        assert (places.within(row.geometry).to_numpy() == (obs["domain"] == row.domain)).all()
    assert found.is_valid.all()
    areas = found.geometry
    assert max(areas.iloc[i].intersection(areas.iloc[j]).area for i in range(4) for j in range(i)) < 1e-6
    union = shapely.union_all(areas)
    assert union.area == pytest.approx(areas.area.sum())
    assert sdata["table"].uns["stimg"]["domain_polygons"]["key"] == "domain"


def test_unlabelled_observations_leave_a_hole(sdata):
    obs, points = sdata["table"].obs, np.asarray(sdata["table"].obsm["spatial"])
    near = np.linalg.norm(points - points.mean(0), axis=1).argsort()[:12]
    obs["mine"] = obs["domain"].astype(object)
    obs.loc[obs.index[near], "mine"] = np.where(np.arange(12) % 2, None, "unknown")
    stimg.tl.domain_polygons(sdata, "mine")
    stimg.tl.domain_polygons(sdata, "domain")
    less, full = (shapely.union_all(sdata.shapes[key].geometry) for key in ("mine_polygons", "domain_polygons"))
    assert not less.contains(shapely.Point(points.mean(0)))
    assert full.contains(shapely.Point(points.mean(0)))
    assert 0 < full.area - less.area < 0.08 * full.area


def test_coordinates_and_transformations_are_those_of_the_element():
    slide = stimg.datasets.synthetic("visium", n_obs=200, n_genes=20)
    plain = whole(slide.copy())
    sdata = whole(slide.copy(), {"um": HALF, "pixels": Translation([7, 3], axes=("x", "y"))})
    del sdata["table"].obsm["spatial"], sdata["table"].obs["array_row"]
    for one in (plain, sdata):
        stimg.pp.to_lattice(one)  # of centroids in a coordinate system, half as far apart
        stimg.tl.domain_polygons(one, "domain")
    found = sdata.shapes["domain_polygons"]
    known = get_transformation(found, get_all=True)
    assert known == get_transformation(sdata.shapes["spots"], get_all=True)
    assert set(known) == {"um", "pixels"}
    assert sdata["table"].uns["stimg"]["lattice"]["pitch"] == pytest.approx(
        plain["table"].uns["stimg"]["lattice"]["pitch"] / 2, rel=1e-3
    )
    for ours, right in zip(found.geometry, plain.shapes["domain_polygons"].geometry, strict=True):
        assert ours.symmetric_difference(right).area < 1e-6 * right.area
    moved = spatialdata.transform(found, to_coordinate_system="um")
    np.testing.assert_allclose(moved.area, found.area / 4)


def two_regions(first=None, second=None):
    slide = stimg.datasets.synthetic("visium", n_obs=200, n_genes=20)
    half = np.where(slide.obsm["spatial"][:, 0] < np.median(slide.obsm["spatial"][:, 0]), "left", "right")
    shapes = {
        name: shapes_of(slide[half == name], transformations)
        for name, transformations in (("left", first), ("right", second))
    }
    sdata = SpatialData(shapes=shapes, tables={"table": annotated(slide, half)})
    stimg.pp.to_lattice(sdata, library_key="region")
    return sdata


def test_several_regions_have_a_row_each():
    sdata = two_regions()
    stimg.tl.domain_polygons(sdata, "domain")
    found = sdata.shapes["domain_polygons"]
    assert found.index[0].endswith("/layer1")
    counts = sdata["table"].obs.groupby(["region", "domain"], observed=True).size()
    ours = found.set_index(["section", "domain"])["n_obs"]
    assert ours.to_dict() == counts.to_dict()


def test_regions_with_different_transformations_meet_in_a_common_system():
    sdata = two_regions({"other": Identity(), "global": HALF}, {"global": Identity()})
    stimg.tl.domain_polygons(sdata, "domain")
    found = sdata.shapes["domain_polygons"]
    assert list(get_transformation(found, get_all=True)) == ["global"]
    areas = found.dissolve("section").area / found.groupby("section", observed=True)["n_obs"].sum()
    assert areas["right"] / areas["left"] == pytest.approx(4, rel=1e-3)
    with pytest.raises(ValueError, match="no coordinate system in common"):
        stimg.tl.domain_polygons(two_regions({"a": Identity()}, {"b": Identity()}), "domain")


def test_only_its_own_result_is_overwritten(sdata):
    stimg.tl.domain_polygons(sdata, "domain", key_added="areas")
    table = sdata["table"]
    table.obs["domain"] = table.obs["domain"].cat.rename_categories(str.upper)
    stimg.tl.domain_polygons(sdata, "domain", key_added="areas")
    assert sdata.shapes["areas"]["domain"].iloc[0] == "LAYER1"
    sdata.shapes["mine"] = sdata.shapes["spots"]
    for name in ("spots", "mine", "table"):
        with pytest.raises(ValueError, match=f"already has an element '{name}'"):
            stimg.tl.domain_polygons(sdata, "domain", key_added=name)
    assert "radius" in sdata.shapes["spots"]


@pytest.mark.filterwarnings("ignore")  # of ome-zarr
def test_copy_and_disk(sdata, tmp_path):
    copy = stimg.tl.domain_polygons(sdata, "domain", copy=True)
    assert "domain_polygons" not in sdata.shapes
    assert "domain_polygons" not in sdata["table"].uns["stimg"]
    copy.write(tmp_path / "slide.zarr")
    again = spatialdata.read_zarr(tmp_path / "slide.zarr")
    assert again.shapes["domain_polygons"]["domain"].tolist() == copy.shapes["domain_polygons"]["domain"].tolist()
    assert again.shapes["domain_polygons"].geom_equals(copy.shapes["domain_polygons"].geometry).all()
    stimg.tl.domain_polygons(again, "domain")


def test_bad_input_is_refused(sdata):
    with pytest.raises(TypeError, match="from_legacy_anndata"):
        stimg.tl.domain_polygons(sdata["table"], "domain")
    with pytest.raises(KeyError, match=r"stimg\.tl\.domains"):
        stimg.tl.domain_polygons(sdata)
    with pytest.raises(ValueError, match="`key_added`, found 'my areas'"):
        stimg.tl.domain_polygons(sdata, "domain", key_added="my areas")
    with pytest.raises(KeyError, match="table_key"):
        stimg.tl.domain_polygons(sdata, "domain", table_key="none")
    with pytest.raises(ValueError, match="annotates no element"):
        stimg.tl.domain_polygons(SpatialData(tables={"table": TableModel.parse(bare(sdata["table"]))}), "domain")
    spots = sdata.shapes["spots"]
    del sdata.shapes["spots"]
    with pytest.raises(KeyError, match="'spots'"):
        stimg.tl.domain_polygons(sdata, "domain")
    sdata.shapes["spots"] = spots
    del sdata["table"].obsm["lattice"]
    with pytest.raises(KeyError, match="to_lattice"):
        stimg.tl.domain_polygons(sdata, "domain")
    assert list(sdata.shapes) == ["spots"]


def bare(table):
    table = table.copy()
    del table.uns["spatialdata_attrs"]
    return table


@pytest.mark.filterwarnings("ignore")  # of the converter
def test_an_anndata_is_converted_as_the_message_says():
    io = pytest.importorskip("spatialdata_io.experimental")
    slide = stimg.datasets.synthetic("visium", n_obs=100, n_genes=20)
    sdata = io.from_legacy_anndata(slide)
    stimg.pp.to_lattice(sdata)
    stimg.tl.domain_polygons(sdata, "domain")
    assert len(sdata.shapes["domain_polygons"]) == 5
