"""Crops of H&E with the spots inside them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.utils.data import DataLoader

import stimg
from stimg._slide._values import log_normalise


@pytest.fixture(scope="module")
def clean():
    slide = stimg.datasets.synthetic_histology(n_rows=6, n_cols=7, n_genes=12)
    stimg.pp.to_lattice(slide, platform="st")
    return slide


@pytest.fixture
def slide(clean):
    return clean.copy()


def pixels(slide):
    return slide.uns["spatial"]["histology"]["images"]["hires"]


def test_every_spot_is_whole_in_some_crop(slide):
    patches = stimg.pp.to_image_patches(slide, size=160, augment=False)
    seen = np.unique(np.concatenate([patches[i]["spots"] for i in range(len(patches))]))
    assert np.array_equal(seen, np.arange(slide.n_obs))
    for item in (patches[i] for i in range(len(patches))):
        assert item["image"].shape == (3, 160, 160)
        assert (item["centres"] >= item["radius"]).all() and (item["centres"] <= 160 - item["radius"]).all()
        assert len(item["spots"])
    assert patches.slides[0].diameter_um == pytest.approx(100)


def test_targets_are_log_normalised_counts(slide):
    patches = stimg.pp.to_image_patches(slide, n_genes=5)
    expected = log_normalise(sparse.csr_array(slide.X), 1e4)
    mean = np.asarray(expected.mean(0)).ravel()
    assert list(patches.genes) == list(slide.var_names[np.argsort(-mean)[:5]])
    columns = slide.var_names.get_indexer(patches.genes)
    found = patches.slides[0]
    assert np.allclose(found.targets, expected[:, columns].toarray())
    assert np.array_equal(found.counts.toarray(), slide.X[:, columns].toarray())
    assert np.array_equal(found.totals, np.asarray(slide.X.sum(1)).ravel())


def test_variable_genes_of_all_slides_or_of_each(slide):
    other = stimg.datasets.synthetic_histology(n_rows=5, n_cols=5, n_genes=slide.n_vars, seed=3)
    stimg.pp.to_lattice(other, platform="st")
    rng = np.random.default_rng(0)
    other.X = sparse.csr_matrix(np.asarray(other.X.todense())[:, rng.permutation(other.n_vars)])
    ranks = []
    for one in (slide, other):
        deviation = log_normalise(sparse.csr_array(one.X), 1e4).toarray().std(0)
        ranks.append(np.argsort(np.argsort(-deviation)))
    shared = stimg.pp.to_image_patches([slide, other], n_genes=4, gene_rule="variable")
    assert set(shared.genes) == set(slide.var_names[np.argsort(np.median(ranks, 0), kind="stable")[:4]])
    each = stimg.pp.to_image_patches([slide, other], n_genes=4, gene_rule="variable_in_each")
    for found, rank in zip(each.slides, ranks, strict=True):
        mine = set(slide.var_names[rank < 4])
        seen = np.isfinite(found.targets).all(0)
        assert set(each.genes[seen]) == mine
        assert np.isnan(found.targets[:, ~seen]).all()
    with pytest.raises(ValueError, match="gene_rule"):
        stimg.pp.to_image_patches(slide, gene_rule="best")


def test_spots_move_with_the_image(slide):
    image = np.full_like(pixels(slide), 180)
    image[..., 0] = 220
    for x, y in slide.obsm["spatial"].astype(int):
        image[y - 2 : y + 2, x - 2 : x + 2] = 0
    patches = stimg.pp.to_image_patches(slide, image, size=160, stain_normalise=False)
    for visit in range(4):
        for index in range(0, len(patches), 5):
            item = patches[visit, index]
            for row, col in item["centres"].numpy().astype(int):
                assert item["image"][:, row - 1 : row + 1, col - 1 : col + 1].max() < 60
    first, again = patches[3, 0], patches[3, 0]
    assert (first["image"] == again["image"]).all()
    assert any(not bool((patches[visit, 0]["image"] == first["image"]).all()) for visit in range(3))


def test_batches_tell_whose_crop_a_spot_is_in(slide):
    patches = stimg.pp.to_image_patches(slide, size=160)
    items = [patches[i] for i in range(3)]
    batch = patches.collate(items)
    assert batch["image"].shape == (3, 3, 160, 160)
    assert [int((batch["batch"] == i).sum()) for i in range(3)] == [len(item["spots"]) for item in items]


def test_what_a_reading_process_measured_of_the_stain_all_know(slide, monkeypatch):
    patches = stimg.pp.to_image_patches(slide, size=160)
    expected = stimg.pp.to_image_patches(slide, size=160)[0]["stain"]
    for _ in DataLoader(patches, 4, num_workers=1, collate_fn=patches.collate, multiprocessing_context="fork"):
        pass
    monkeypatch.setattr("stimg._data._image_patches.slide_statistics", None)
    assert torch.equal(patches.with_augment(False)[1]["stain"], expected)


def test_a_gene_that_a_slide_lacks_is_missing_there(slide):
    other = slide[:, slide.var_names != "Gene1"].copy()
    patches = stimg.pp.to_image_patches([slide, other], genes=["Gene0", "Gene1"])
    assert np.isfinite(patches.slides[0].targets).all()
    assert np.isnan(patches.slides[1].targets[:, 1]).all()
    assert not np.isnan(patches.slides[1].targets[:, 0]).any()


def test_a_file_is_as_good_as_the_array(slide, tmp_path):
    from PIL import Image

    Image.fromarray(pixels(slide)).save(tmp_path / "x.png")
    first, second = (stimg.pp.to_image_patches(slide, image, augment=False) for image in (None, tmp_path / "x.png"))
    assert (first[0]["image"] == second[0]["image"]).all()


def test_spatialdata_gives_the_same_crops(slide):
    import geopandas
    from shapely import Point
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Scale

    options = {"augment": False, "stain_normalise": False}
    expected = stimg.pp.to_image_patches(slide, **options)
    frame = geopandas.GeoDataFrame(
        {"geometry": [Point(*xy) for xy in slide.obsm["spatial"] * 3.0], "radius": 25.0 * 3.0}, index=range(slide.n_obs)
    )
    shapes = ShapesModel.parse(frame, transformations={"global": Scale([1 / 3, 1 / 3], axes=("x", "y"))})
    image = Image2DModel.parse(np.moveaxis(pixels(slide), 2, 0), dims=("c", "y", "x"), scale_factors=[2])
    table = slide.copy()
    table.obs["region"] = "spots"
    table.obs["region"] = table.obs["region"].astype("category")
    table.obs["instance"] = range(slide.n_obs)
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    sdata = SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": table})
    found = stimg.pp.to_image_patches(sdata, **options)
    assert np.allclose(found.slides[0].centres, expected.slides[0].centres)
    assert found.slides[0].diameter_um == pytest.approx(100)
    difference = found[0]["image"].int() - expected[0]["image"].int()
    assert difference.abs().max() <= 1
    with pytest.raises(KeyError, match="image_key"):
        stimg.pp.to_image_patches(sdata, image_key="absent")


def no_scale_factor(slide):
    del slide.uns["spatial"]["histology"]["scalefactors"]["tissue_hires_scalef"]


def no_diameter(slide):
    stimg.pp.to_lattice(slide, "square", um_per_unit=2.0)
    del slide.uns["spatial"]["histology"]["scalefactors"]["spot_diameter_fullres"]


def no_image(slide):
    slide.uns["spatial"]["histology"]["images"] = {}


def no_pitch(slide):
    del slide.uns["stimg"]


def shifted(slide):
    slide.obsm["spatial"] = slide.obsm["spatial"] + 5000


def on_glass(slide):
    pixels(slide)[:] = 245
    pixels(slide)[:20, :20] = (200, 100, 150)


def preview(slide):
    entry = slide.uns["spatial"]["histology"]
    entry["images"] = {"lowres": pixels(slide)[::8, ::8].copy()}
    entry["scalefactors"]["tissue_lowres_scalef"] = 1 / 8


def logs(slide):
    slide.X = sparse.csr_matrix(np.log1p(slide.X.toarray()))


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (no_scale_factor, {}, KeyError, "tissue_hires_scalef"),
        (no_diameter, {}, ValueError, "diameter_um"),
        (no_image, {}, KeyError, "No image"),
        (no_pitch, {}, ValueError, "image_mpp"),
        (shifted, {}, ValueError, "inside its image.*coordinate system"),
        (on_glass, {}, ValueError, "tissue"),
        (preview, {}, ValueError, "low-resolution preview"),
        (logs, {}, ValueError, "raw counts"),
        (None, {"genes": ["Gene0", "Unheard"]}, KeyError, "Unheard"),
        (None, {"genes": ["Gene0", "Gene0"]}, ValueError, "duplicates"),
        (None, {"size": 32}, ValueError, "size"),
        (None, {"mpp": 0}, ValueError, "mpp"),
        (None, {"library_id": "absent"}, KeyError, "library_id"),
        (None, {"images": ["a", "b"]}, ValueError, "images"),
        (None, {"images": "absent.png"}, FileNotFoundError, "absent.png"),
    ],
)
def test_bad_input_is_named_and_nothing_changes(slide, spoil, options, error, message):
    if spoil is not None:
        spoil(slide)
    before = slide.copy()
    given = [slide] if isinstance(options.get("images"), list) else slide
    with pytest.raises(error, match=message):
        stimg.pp.to_image_patches(given, **options)
    assert np.array_equal(slide.obsm["spatial"], before.obsm["spatial"])
    assert (slide.X != before.X).nnz == 0
    assert list(slide.obs) == list(before.obs)


def test_exchanged_coordinates_are_refused():
    slide = stimg.datasets.synthetic_histology(n_rows=9, n_cols=9, n_genes=4)
    pixels(slide)[:, 350:] = (238, 225, 235)  # glass on the right
    slide = slide[slide.obsm["spatial"][:, 0] < 350].copy()
    stimg.pp.to_lattice(slide, platform="st")
    assert len(stimg.pp.to_image_patches(slide))
    slide.obsm["spatial"] = slide.obsm["spatial"][:, ::-1].copy()
    with pytest.raises(ValueError, match="fit better with x and y exchanged: 100% lie on tissue"):
        stimg.pp.to_image_patches(slide)


def test_a_resolution_that_contradicts_the_pitch_is_refused(slide):
    with pytest.raises(ValueError, match=r"`image_mpp` near 2, .* pitch \(200 micrometres or 100 units.*found 0.5"):
        stimg.pp.to_image_patches(slide, image_mpp=0.5)
    with pytest.raises(ValueError, match=r"found 2\.2"):
        stimg.pp.to_image_patches(slide, image_mpp=2.2)
    assert len(stimg.pp.to_image_patches(slide, image_mpp=2.05))
    del slide.uns["stimg"]
    entry = slide.uns["spatial"]["histology"]
    entry["scalefactors"]["microns_per_pixel"] = 2.0
    with pytest.raises(ValueError, match=r"`microns_per_pixel` .*found 0.5"):
        stimg.pp.to_image_patches(slide, image_mpp=0.5)
    del entry["scalefactors"]["microns_per_pixel"]
    assert len(stimg.pp.to_image_patches(slide, image_mpp=1.0))  # nothing else is known


def test_the_resolution_of_a_preview_is_that_of_its_own_pixels(slide):
    entry = slide.uns["spatial"]["histology"]
    entry["images"] = {"hires": pixels(slide)[::2, ::2].copy()}
    entry["scalefactors"]["tissue_hires_scalef"] = 0.5
    assert len(stimg.pp.to_image_patches(slide, mpp=4.0, image_mpp=4.0))
    with pytest.raises(ValueError, match="near 4, .*found 2"):
        stimg.pp.to_image_patches(slide, mpp=4.0, image_mpp=2.0)


def test_a_resolution_other_than_the_files_is_a_warning(slide, tmp_path):
    import tifffile

    path = tmp_path / "x.tif"
    tifffile.imwrite(path, pixels(slide), resolution=(20000, 20000), resolutionunit="CENTIMETER", photometric="rgb")
    with pytest.warns(
        UserWarning, match=r"2 micrometres per pixel, from `image_mpp`, are used, but 'x.tif' states 0.5"
    ):
        stimg.pp.to_image_patches(slide, path, image_mpp=2.0)


def test_several_sections_and_one_image_are_refused(slide):
    import anndata

    other = slide.copy()
    slide.obs["sample"], other.obs["sample"] = "A", "B"
    both = anndata.concat([slide, other], index_unique="-")
    both.uns["spatial"] = slide.uns["spatial"]
    stimg.pp.to_lattice(both, platform="st", library_key="sample")
    before = both.copy()
    with pytest.raises(ValueError, match=r"one image, but 2 sections in `.obs\['sample'\]`: A, B"):
        stimg.pp.to_image_patches(both)
    assert list(both.obs) == list(before.obs)
    one = both[both.obs["sample"] == "A"].copy()
    assert len(stimg.pp.to_image_patches(one))


def test_the_library_of_one_section_is_not_read_for_both(slide):
    import anndata

    slides = {"A": slide, "B": slide.copy()}
    for name, one in slides.items():
        one.obs["library"] = name
    both = anndata.concat(slides.values(), index_unique="-")
    both.uns["spatial"] = dict.fromkeys(slides, slide.uns["spatial"]["histology"])
    with pytest.raises(ValueError, match=r"2 sections in `.obs\['library'\]`"):
        stimg.pp.to_image_patches(both, library_id="A", image_mpp=2.0)
    one = both[both.obs["library"] == "A"].copy()
    assert len(stimg.pp.to_image_patches(one, library_id="A", image_mpp=2.0))


def test_scale_factors_of_another_image_are_refused(slide):
    entry = slide.uns["spatial"]["histology"]
    entry["images"]["lowres"] = pixels(slide)[::4, ::4].copy()
    entry["scalefactors"]["tissue_lowres_scalef"] = 0.25
    assert len(stimg.pp.to_image_patches(slide))
    entry["scalefactors"]["tissue_lowres_scalef"] = 0.5
    with pytest.raises(ValueError, match="belongs to another image"):
        stimg.pp.to_image_patches(slide)


def test_no_slide_is_refused():
    with pytest.raises(ValueError, match="slides"):
        stimg.pp.to_image_patches([])
    with pytest.raises(TypeError, match="SimpleNamespace"):
        stimg.pp.to_image_patches(SimpleNamespace())
