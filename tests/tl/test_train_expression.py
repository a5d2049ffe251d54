"""From H&E to expression, end to end."""

from dataclasses import replace

import numpy as np
import pytest
import shapely
import torch
import zarr
from PIL import Image
from scipy.spatial import cKDTree
from sklearn.linear_model import RidgeCV
from torch import nn

import stimg
from stimg._apply._dense import dense_blocks
from stimg._image._slide_image import open_image
from stimg._train._expression import ExpressionModule
from stimg.models import ExpressionModel, Model
from stimg.nn import ConvEncoder, DenseConfig, DenseNetwork

CONFIG = DenseConfig(dim=16, n_programs=4, batch_size=4)
KEY = "stimg_image"


@pytest.fixture(scope="module")
def clean():
    slide = stimg.datasets.synthetic_histology(n_rows=4, n_cols=4, n_genes=9)
    stimg.pp.to_lattice(slide, platform="st")
    return slide


@pytest.fixture
def slide(clean):
    return clean.copy()


@pytest.fixture(scope="module")
def patches(clean):
    return stimg.pp.to_image_patches(clean, size=160, names=["tumour"])


def train(patches, **options):
    return stimg.tl.train_expression(patches, CONFIG, **({"max_epochs": 1, "device": "cpu"} | options))


def predict(slide, model, *args, **options):
    return stimg.tl.predict_expression(slide, model, *args, **({"symmetric": False} | options))


@pytest.fixture(scope="module")
def model(patches):
    with stimg.settings.override(progress=False):
        return train(patches, max_epochs=2)


def test_the_same_seed_gives_the_same_weights(patches):
    first, second, other = train(patches), train(patches), train(patches, rng=1)
    assert torch.equal(first.network.head.weight, second.network.head.weight)
    assert not torch.equal(first.network.head.weight, other.network.head.weight)


def test_card_and_history(model):
    assert model.card["slides"] == ["tumour"]
    assert model.card["n_spots"] == 16
    assert model.card["diameter_um"] == pytest.approx(100)
    assert list(model.history["epoch"]) == [0, 1]
    assert np.isfinite(model.history["val_loss"]).all()
    assert "tumour" in repr(model)


def test_the_validation_loss_is_that_of_the_held_out_spots(clean, monkeypatch):
    loss = ExpressionModule.loss

    def constant(module, batch, seed):
        return loss(module, batch, seed) if module.training else torch.tensor(float(len(module.kept(batch)) > 0))

    monkeypatch.setattr(ExpressionModule, "loss", constant)
    patches = stimg.pp.to_image_patches(clean, size=96)
    model = stimg.tl.train_expression(patches, replace(CONFIG, batch_size=1), max_epochs=1, device="cpu")
    assert len(patches) > 4
    assert model.history["val_loss"].tolist() == [1.0]


def test_without_held_out_spots_there_is_no_validation(patches):
    model = train(patches, val_fraction=0.01, max_epochs=2)
    assert model.history["val_loss"].isna().all()
    with pytest.raises(ValueError, match="early_stopping"):
        train(patches, val_fraction=0.01, early_stopping=1)


def test_the_network_learns_without_the_regression(clean, monkeypatch):
    n_statistics = DenseNetwork(CONFIG, 1).stain.channels
    nothing = torch.zeros(9, n_statistics), torch.zeros(9)
    monkeypatch.setattr("stimg._train._expression.stain_regression", lambda *_: nothing)
    patches = stimg.pp.to_image_patches(clean, size=160)
    found = train(patches, max_epochs=18, val_fraction=0).history["train_loss"]
    assert found.iloc[-4:].mean() < 0.9 * found.iloc[:4].mean()


def test_counts_as_likelihood(clean, slide):
    patches = stimg.pp.to_image_patches(clean, size=160)
    config = replace(CONFIG, likelihood="negative_binomial", pearson_loss=0.0)
    model = stimg.tl.train_expression(patches, config, max_epochs=4, device="cpu")
    assert model.config.likelihood == "negative_binomial"
    assert np.isfinite(model.history["train_loss"]).all()
    predict(slide, model)
    truth = patches.slides[0].targets
    found = slide.obsm[KEY].iloc[patches.slides[0].obs_index][list(patches.genes)].to_numpy()
    assert stimg.metrics.expression_scores(truth, found)["pcc_m"] > 0.5


def test_genes_that_a_slide_lacks(clean):
    part = clean[:, clean.var_names[:6]].copy()
    patches = stimg.pp.to_image_patches([clean, part], genes=list(clean.var_names), size=160)
    for likelihood in ("gaussian", "negative_binomial"):
        model = stimg.tl.train_expression(patches, replace(CONFIG, likelihood=likelihood), max_steps=2, device="cpu")
        assert np.isfinite(model.history["train_loss"]).all()


def test_the_regression_counts_a_spot_once(clean, monkeypatch):
    seen = []

    class Ridge(RidgeCV):
        def fit(self, X, y):
            seen.append(X)
            return super().fit(X, y)

    monkeypatch.setattr("sklearn.linear_model.RidgeCV", Ridge)
    patches = stimg.pp.to_image_patches(clean, size=160, stride=40)
    assert sum(len(patches[i]["spots"]) for i in range(len(patches))) > 16
    train(patches, val_fraction=0)
    assert len(seen[0]) == 16


def test_a_saved_model_predicts_the_same(model, slide, tmp_path):
    model.save(tmp_path / "x.safetensors")
    predict(slide, model)
    other = slide.copy()
    predict(other, tmp_path / "x.safetensors")
    assert np.allclose(slide.obsm[KEY], other.obsm[KEY], atol=1e-6)
    with pytest.raises(ValueError, match="train_expression"):
        Model.load(tmp_path / "x.safetensors")
    assert other.uns["stimg"]["predict_expression"]["sha256"] == model.sha256


def test_a_spot_is_the_mean_of_the_dense_map(model, slide):
    predict(slide, model, dense=["Gene2", "Gene5"])
    found = slide.uns["stimg"]["expression_map"]
    height, width = found["map"].shape[1:]
    assert found["tissue"].shape == (height, width)
    column, row, _ = np.linalg.inv(found["transform"]) @ [*slide.obsm["spatial"][0], 1]
    assert found["tissue"][int(row), int(column)]
    rows, cols = np.mgrid[:height, :width] + 0.5
    x, y, _ = found["transform"] @ np.stack([cols.ravel(), rows.ravel(), np.ones(rows.size)])
    for spot in (0, 7, 15):
        inside = (x - slide.obsm["spatial"][spot, 0]) ** 2 + (y - slide.obsm["spatial"][spot, 1]) ** 2 < 25**2
        for gene, values in zip(found["genes"], found["map"], strict=True):
            expected = values.ravel()[inside].mean()
            assert slide.obsm[KEY][gene].iloc[spot] == pytest.approx(expected, abs=0.1)


def test_blocks_fit_together(model, slide, monkeypatch):
    whole, parts = slide, slide.copy()
    predict(whole, model, dense=["Gene2"])
    monkeypatch.setattr("stimg._apply._dense.CORE", 48)
    monkeypatch.setattr("stimg._apply._dense_map.CORE", 48)
    predict(parts, model, dense=["Gene2"])
    assert np.abs(whole.obsm[KEY] - parts.obsm[KEY]).to_numpy().max() < 0.1
    maps = [one.uns["stimg"]["expression_map"]["map"][0, :96, :96] for one in (whole, parts)]
    assert np.abs(maps[0] - maps[1]).max() < 0.25
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.99


def test_the_rim_of_a_map_is_that_of_the_tissue_beyond(model, patches, monkeypatch):
    monkeypatch.setattr("stimg._apply._dense.CORE", 32)
    whole = patches.slides[0].image.levels[0]
    images = [open_image(pixels, 2.0, "x") for pixels in (whole, whole[128:384, 128:384].copy())]
    images[1].__dict__["stain"] = images[0].stain
    options = {"statistics": patches.stain_statistics(0), "symmetric": False, "device": "cpu"}
    expected, found = (
        next(dense_blocks(model, image, np.array([corner]), np.arange(9), **options))
        for image, corner in zip(images, ([1, 1], [0, 0]), strict=True)
    )
    error = np.sqrt(((found - expected) ** 2).mean(0)) / expected.std((1, 2)).mean()
    assert error[:4, 4:].mean() < 0.5
    assert error[24:, 24:].max() < 1e-3


def test_there_is_no_tissue_outside_the_image(model, slide):
    predict(slide, model, dense=["Gene2"])
    found = slide.uns["stimg"]["expression_map"]
    height, width = (side / 4 for side in slide.uns["spatial"]["histology"]["images"]["hires"].shape[:2])
    row, col = (np.arange(n) + 0.5 for n in found["tissue"].shape)
    assert not found["tissue"][row > height].any() and not found["tissue"][:, col > width].any()
    assert found["tissue"][row < height][:, col < width].all()


def test_a_spatialdata_gets_an_image_of_genes(model, slide):
    import geopandas
    from spatialdata import SpatialData, get_extent
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Scale, get_transformation

    pixels = slide.uns["spatial"]["histology"]["images"]["hires"]
    points = [shapely.Point(*xy) for xy in slide.obsm["spatial"] * 2.0]
    frame = geopandas.GeoDataFrame({"geometry": points, "radius": 50.0}, index=range(slide.n_obs))
    image = Image2DModel.parse(
        np.moveaxis(pixels, 2, 0), dims=("c", "y", "x"), transformations={"global": Scale([2.0, 2.0], axes=("x", "y"))}
    )
    table = slide.copy()
    table.obs["region"], table.obs["instance"] = "spots", range(slide.n_obs)
    table.obs["region"] = table.obs["region"].astype("category")
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    sdata = SpatialData(images={"he": image}, shapes={"spots": ShapesModel.parse(frame)}, tables={"table": table})
    predict(slide, model, dense=["Gene2"])
    for _ in range(2):  # the map of the first call is not taken for the slide's image in the second
        predict(sdata, model, dense=["Gene2"])
    assert np.allclose(sdata["table"].obsm[KEY], slide.obsm[KEY], atol=1e-2)
    found = sdata.images[KEY]
    assert list(found.coords["c"].values) == ["Gene2"]
    assert np.allclose(found.data.compute(), slide.uns["stimg"]["expression_map"]["map"], atol=1e-2)
    matrix = get_transformation(found).to_affine_matrix(input_axes=("x", "y"), output_axes=("x", "y"))
    assert np.allclose(matrix, np.diag([2, 2, 1]) @ slide.uns["stimg"]["expression_map"]["transform"])
    assert get_extent(found)["x"][1] >= slide.obsm["spatial"][:, 0].max() * 2


def test_a_map_on_disk_is_the_map_in_memory(model, slide, tmp_path):
    other = slide.copy()
    predict(slide, model, dense=["Gene2", "Gene5"])
    predict(other, model, dense=["Gene2", "Gene5"], map_path=tmp_path / "map.zarr")
    found = other.uns["stimg"]["expression_map"]
    assert "map" not in found
    values = zarr.open_array(found["map_path"], mode="r")
    assert values.chunks[0] == 1
    assert np.isnan(values.fill_value)
    assert [path.name for path in tmp_path.iterdir()] == ["map.zarr"]
    assert np.array_equal(values[:], slide.uns["stimg"]["expression_map"]["map"])
    other.write_h5ad(tmp_path / "slide.h5ad")
    assert stimg.pl.expression_map(other, "Gene2").shape == (1, 4)
    before = slide.obsm[KEY].copy()
    with pytest.raises(FileExistsError, match="map_path"):
        predict(slide, model, dense=["Gene2"], map_path=tmp_path / "map.zarr", key_added="other")
    with pytest.raises(ValueError, match="`dense`"):
        predict(slide, model, map_path=tmp_path / "new.zarr", key_added="other")
    assert "other" not in slide.obsm
    assert slide.obsm[KEY].equals(before)


def test_a_second_run_without_a_map_removes_that_of_the_first_and_no_other(model, slide):
    first = {"map": np.zeros((1, 4, 4), np.float32), "genes": np.array(["Gene2"]), "written_by": "first_map"}
    slide.uns["stimg"]["first_map"] = first  # as an earlier run, perhaps of another model, leaves it
    slide.uns["stimg"]["expression_map"] = first | {"written_by": "expression_map"}
    predict(slide, model, key_added="first")
    assert "first_map" not in slide.uns["stimg"]
    assert "expression_map" in slide.uns["stimg"]
    titles = [ax.get_title() for ax in stimg.pl.expression_map(slide, "Gene2", key="first")[0]]
    assert titles == ["H&E", "Gene2, measured", "Gene2, predicted"]


def test_an_unfinished_map_is_not_left_on_disk(model, slide, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        yield np.ones((1, 128, 128), np.float32)
        raise KeyboardInterrupt

    monkeypatch.setattr("stimg._apply._dense_map.dense_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(slide, model, dense=["Gene2"], map_path=tmp_path / "new" / "map.zarr")
    assert not list((tmp_path / "new").iterdir())
    assert KEY not in slide.obsm


def test_a_grid_over_an_image_that_was_never_sequenced(model, slide, tmp_path):
    pixels = slide.uns["spatial"]["histology"]["images"]["hires"]
    Image.fromarray(pixels).save(tmp_path / "biopsy.png")
    grid = stimg.pp.image_grid(tmp_path / "biopsy.png", model.genes, pitch_um=100, image_mpp=2.0)
    predict(grid, model, dense=["Gene2"])
    assert np.isfinite(grid.obsm[KEY].to_numpy()).all()
    predict(slide, model)
    nearest = cKDTree(grid.obsm["spatial"]).query(slide.obsm["spatial"])[1]
    for gene in model.genes[:4]:
        pair = slide.obsm[KEY][gene], grid.obsm[KEY][gene].iloc[nearest]
        assert np.corrcoef(*pair)[0, 1] > 0.5


def test_cells_of_any_shape(model, slide):
    circles = [shapely.Point(*xy).buffer(25, quad_segs=64) for xy in slide.obsm["spatial"]]
    predict(slide, model, shapes=circles, key_added="polygons")
    predict(slide, model)
    predict(slide, model, diameter_um=20, key_added="small")
    assert np.allclose(slide.obsm["polygons"], slide.obsm[KEY], atol=1e-3)
    assert not np.allclose(slide.obsm["small"], slide.obsm[KEY], atol=1e-2)


def test_a_turned_slide_gets_the_same_prediction(model, slide):
    size = slide.uns["spatial"]["histology"]["images"]["hires"].shape[0]
    turned = slide.copy()
    entry = turned.uns["spatial"]["histology"]["images"]
    entry["hires"] = entry["hires"][::-1].copy()
    turned.obsm["spatial"][:, 1] = size - turned.obsm["spatial"][:, 1]
    for one in (slide, turned):
        predict(one, model, symmetric=True)
    assert np.corrcoef(np.ravel(slide.obsm[KEY]), np.ravel(turned.obsm[KEY]))[0, 1] > 0.99


def test_only_known_genes_have_a_column_and_places_outside_are_nan(model, slide):
    wider = slide.copy()
    wider.var_names = [f"Other{i}" if i < 2 else name for i, name in enumerate(wider.var_names)]
    wider.obsm["spatial"][0] = -500
    with pytest.warns(UserWarning, match="1 of 16"):
        predict(wider, model)
    found = wider.obsm[KEY]
    assert list(found.columns) == [gene for gene in model.genes if gene in wider.var_names]
    assert (found.dtypes == np.float32).all()
    assert found.iloc[0].isna().all()
    assert np.isfinite(found.iloc[1:].to_numpy()).all()


def test_a_copy_leaves_the_slide_alone(model, slide):
    changed = predict(slide, model, copy=True, symmetric=False)
    assert KEY in changed.obsm and KEY not in slide.obsm


def test_an_encoder_of_others(patches, slide, tmp_path):
    torch.manual_seed(0)
    encoder = nn.Conv2d(3, 8, 16, 16)
    found = train(patches, encoder=encoder)
    assert found.card["encoder"] == "Conv2d"
    found.save(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="`encoder`"):
        ExpressionModel.load(tmp_path / "x.safetensors")
    again = ExpressionModel.load(tmp_path / "x.safetensors", encoder=encoder)
    other = slide.copy()
    predict(slide, found)
    predict(other, again)
    assert np.allclose(slide.obsm[KEY], other.obsm[KEY], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"early_stopping": 3, "val_fraction": 0}, "early_stopping"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"device": "abacus"}, "device"),
        ({"max_time": "00:00:00:00"}, "max_time"),
        ({"tune_encoder": True}, "always trained"),
        ({"tune_encoder": True, "encoder": ConvEncoder()}, "always trained"),
    ],
)
def test_bad_arguments_of_training(patches, options, message):
    with pytest.raises(ValueError, match=message):
        train(patches, **options)


def test_encoders_for_another_resolution_are_refused(patches):
    encoder = nn.Conv2d(3, 8, 16, 16)
    encoder.mpp = 0.5
    with pytest.raises(ValueError, match="0.5 micrometres per pixel"):
        train(patches, encoder=encoder)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dense": ["Unheard"]}, KeyError, "Unheard"),
        ({"dense": "Gene1"}, KeyError, "list of genes"),
        ({"diameter_um": -1}, ValueError, "diameter_um"),
        ({"shapes": [shapely.Point(0, 0)]}, ValueError, "shapes"),
        ({"image": "absent.png"}, FileNotFoundError, "absent"),
        ({"image_mpp": 40.0}, ValueError, "preview"),
    ],
)
def test_bad_arguments_of_prediction(model, slide, options, error, message):
    before = set(slide.obsm), dict(slide.uns["stimg"])
    with pytest.raises(error, match=message):
        predict(slide, model, **options)
    assert (set(slide.obsm), dict(slide.uns["stimg"])) == before


def test_no_gene_in_common(model, slide):
    slide.var_names = [f"Other{i}" for i in range(slide.n_vars)]
    with pytest.raises(ValueError, match="Expected at least 1 of the model's 9 genes.*found none"):
        predict(slide, model)
    with pytest.raises(TypeError, match="ExpressionModel"):
        predict(slide, 3)
