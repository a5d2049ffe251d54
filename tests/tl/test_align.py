"""Alignment of H&E and expression, and what it is for."""

from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch

import stimg
from stimg._apply._surroundings import read_surroundings
from stimg._data._spot_crops import SpotCropDataset, window_inputs
from stimg._train._align import neighbours_of
from stimg.models import AlignmentModel, ExpressionModel
from stimg.nn import AlignConfig, AlignNetwork, Config, ConvEncoder
from stimg.nn._losses import contrastive_loss

CONFIG = AlignConfig(dim=8, hidden=16, batch_size=12, chunk_size=4)


@pytest.fixture(scope="module")
def slides():
    made = [stimg.datasets.synthetic_histology(n_rows=6, n_cols=6, n_genes=12, seed=seed) for seed in range(2)]
    for slide in made:
        stimg.pp.to_lattice(slide, platform="st")
    return made


@pytest.fixture
def slide(slides):
    return slides[1].copy()


@pytest.fixture(scope="module")
def patches(slides):
    return stimg.pp.to_image_patches(slides[0], names=["one"])


@pytest.fixture(scope="module")
def model(patches):
    with stimg.settings.override(progress=False):
        return stimg.tl.align(patches, CONFIG, max_epochs=3, crop_size=64, device="cpu")


@pytest.fixture
def embedded(slide, model):
    stimg.tl.embed_pairs(slide, model)
    return slide


def test_neighbours_of_one_slide():
    centre = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 3.0], [0.0, 1.0]])
    found = neighbours_of(torch.tensor([0, 0, 0, 1]), centre, torch.tensor([1.5, 9.0]))
    assert found.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_chunks_do_not_change_the_gradients():
    torch.manual_seed(0)
    configs = [AlignConfig(dim=8, hidden=16, dropout=0.0, chunk_size=size) for size in (3, 64)]
    networks = [AlignNetwork(config, 5, ConvEncoder()) for config in configs]
    networks[1].load_state_dict(networks[0].state_dict())
    images, values, looks = torch.rand(8, 3, 64, 64), torch.randn(8, 10), torch.randn(8, 72)
    for network in networks:
        network.train()
        nothing = torch.zeros(8, 8, dtype=torch.bool)
        found = network.encode_images(looks, images)
        contrastive_loss(found, network.encode_genes(values), network.scale, nothing).backward()
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-5)


@pytest.mark.parametrize("encoder", ["stimg-conv", None])
def test_encoders(patches, slide, tmp_path, encoder):
    config = AlignConfig(dim=8, hidden=16, batch_size=18, chunk_size=8)
    model = stimg.tl.align(patches, config, encoder=encoder, max_steps=2, crop_size=64, device="cpu")
    assert (model.network.encoder is None) == (encoder is None)
    stimg.tl.embed_pairs(slide, model)
    first = slide.obsm["X_stimg_image"].copy()
    model.save(tmp_path / "x.safetensors")
    stimg.tl.embed_pairs(slide, tmp_path / "x.safetensors", batch_size=10)
    assert np.allclose(first, slide.obsm["X_stimg_image"], atol=1e-5)


def test_seeds_and_card(patches, model):
    same = stimg.tl.align(patches, CONFIG, max_epochs=3, crop_size=64, device="cpu")
    assert torch.equal(model.network.gene_head[1].weight, same.network.gene_head[1].weight)
    assert model.card["slides"] == ["one"]
    assert np.isfinite(model.history["val_loss"]).all()
    assert "AlignmentModel" in repr(model)
    assert model.network.scale <= 100


def test_training_brings_pairs_together(patches, slides):
    config = AlignConfig(dim=16, hidden=64, batch_size=36)
    model = stimg.tl.align(patches, config, max_epochs=60, crop_size=64, val_fraction=0, device="cpu")
    found = slides[0].copy()
    stimg.tl.embed_pairs(found, model)
    recall = stimg.metrics.retrieval_recall(found.obsm["X_stimg_image"], found.obsm["X_stimg_gene"], ks=(5,))
    assert min(recall["image_to_gene@5"], recall["gene_to_image@5"]) > 2 * recall["chance@5"]


def test_a_linear_gene_encoder(patches, slide):
    model = stimg.tl.align(patches, AlignConfig(gene_encoder="linear", batch_size=18), max_steps=1, device="cpu")
    stimg.tl.embed_pairs(slide, model)
    assert slide.obsm["X_stimg_gene"].shape == (36, 64)


def test_a_saved_model_embeds_the_same(model, embedded, slides, tmp_path):
    model.save(tmp_path / "x.safetensors")
    other = slides[1].copy()
    stimg.tl.embed_pairs(other, tmp_path / "x.safetensors", batch_size=7)
    for key in ("X_stimg_image", "X_stimg_gene"):
        assert np.allclose(embedded.obsm[key], other.obsm[key], atol=1e-5)
        assert np.allclose(np.linalg.norm(other.obsm[key], axis=1), 1, atol=1e-5)
    assert other.uns["stimg"]["embed_pairs"]["sha256"] == model.sha256
    assert AlignmentModel.load(tmp_path / "x.safetensors").config == model.config
    with pytest.raises(ValueError, match="AlignmentModel"):
        ExpressionModel.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("encoder", ["stimg-conv", None])
def test_spots_outside_the_image_have_no_image_embedding(patches, slides, slide, encoder):
    config = AlignConfig(dim=8, hidden=16, batch_size=18, chunk_size=8)
    model = stimg.tl.align(patches, config, encoder=encoder, max_steps=1, crop_size=64, device="cpu")
    slide.obsm["spatial"][[3, 20]] = [[-900, 100], [100, 1e5]]
    with pytest.warns(UserWarning, match="2 of 36 observations lie outside the image") as warnings:
        stimg.tl.embed_pairs(slide, model)
    assert len(warnings) == 1
    outside = np.isnan(slide.obsm["X_stimg_image"])
    assert np.flatnonzero(outside.all(1)).tolist() == np.flatnonzero(outside.any(1)).tolist() == [3, 20]
    assert np.isfinite(slide.obsm["X_stimg_gene"]).all()
    inside = np.delete(np.arange(36), [3, 20])
    part = slide[inside].copy()
    stimg.tl.embed_pairs(part, model)
    assert np.allclose(part.obsm["X_stimg_image"], slide.obsm["X_stimg_image"][inside], atol=1e-6)
    found = stimg.tl.retrieve(slide, slide, n_results=36)
    assert set(found["index"]) == set(inside)
    found = stimg.tl.retrieve(slide, slide, n_results=2, query_rep="X_stimg_image", use_rep="X_stimg_gene")
    assert set(found["query"]) == set(slide.obs_names[inside])
    stimg.tl.retrieve_expression(slide, slide, ["Gene0"])
    missing = slide.obsm["stimg_retrieved"]["Gene0"].isna()
    assert np.flatnonzero(missing).tolist() == [3, 20]
    slide.obsm["X_stimg_image"][:] = np.nan
    with pytest.raises(ValueError, match="only NaN"):
        stimg.tl.retrieve(slide, slide)


def test_the_stain_around_a_spot_is_measured_once(slides, monkeypatch):
    patches = stimg.pp.to_image_patches(slides[0])
    first = SpotCropDataset(patches, 64, np.arange(4), crops=False, augment=True)
    monkeypatch.setattr("stimg._data._spot_crops.stain_inputs", None)
    again = SpotCropDataset(patches, 64, np.arange(4), crops=False, augment=False)
    assert torch.equal(first[2]["look"], again[2]["look"])


def test_retrieval_over_slides(embedded, model, slides):
    other = slides[0].copy()
    stimg.tl.embed_pairs(other, model)
    found = stimg.tl.retrieve(embedded, [other, embedded], n_results=3, names=["a", "b"])
    assert len(found) == 36 * 3
    assert found["rank"].tolist()[:4] == [1, 2, 3, 1]
    images = np.concatenate([other.obsm["X_stimg_image"], embedded.obsm["X_stimg_image"]])
    best = int(np.argmax(images @ embedded.obsm["X_stimg_gene"][0]))
    assert found.loc[0, "index"] == best % 36
    assert found.loc[0, "slide"] == "ab"[best // 36]
    assert (np.diff(found["similarity"].to_numpy().reshape(-1, 3)) <= 1e-6).all()
    signature = model.encode_signature({"Gene1": 2.0, "Gene2": -1.0, "unknown": 1.0})
    assert np.allclose(signature, model.encode_signature({"Gene2": -1.0, "Gene1": 2.0}))
    assert len(stimg.tl.retrieve(signature, embedded, n_results=5)) == 5
    assert not np.allclose(signature, model.encode_signature(["Gene1"]))
    with pytest.raises(KeyError, match="unknown"):
        model.encode_signature(["unknown"])


def test_expression_by_retrieval(embedded, model, slides):
    reference = slides[0].copy()
    stimg.tl.embed_pairs(reference, model)
    stimg.tl.retrieve_expression(embedded, reference, ["Gene0", "Gene3"], n_neighbors=1)
    found = embedded.obsm["stimg_retrieved"]
    row = int(np.argmax(reference.obsm["X_stimg_gene"] @ embedded.obsm["X_stimg_image"][4]))
    counts = reference.X[row].toarray().ravel()
    expected = np.log1p(1e4 * counts[3] / counts.sum())
    assert found["Gene3"].iloc[4] == pytest.approx(expected, rel=1e-4)
    assert list(found.columns) == ["Gene0", "Gene3"]
    everyone = stimg.tl.retrieve_expression(embedded, reference, ["Gene0"], n_neighbors=36, temperature=1e6, copy=True)
    assert np.ptp(everyone.obsm["stimg_retrieved"]["Gene0"]) < 1e-4


def test_domains_of_both_sides(embedded):
    stimg.tl.domains(embedded, 3, use_rep=["X_stimg_image", "X_stimg_gene"])
    assert embedded.obs["stimg_domain"].nunique() == 3
    assert list(embedded.uns["stimg"]["domains"]["use_rep"]) == ["X_stimg_image", "X_stimg_gene"]
    with pytest.raises(ValueError, match="use_rep"):
        stimg.tl.domains(embedded, 3, use_rep=[])


@pytest.mark.parametrize(
    "wrong",
    [
        {"gene_encoder": "tree"},
        {"temperature": 0.0},
        {"dropout": 1.0},
        {"batch_size": 1},
        {"chunk_size": 0},
        {"spatial_rate": -1.0},
        {"spatial_rate": np.nan},
    ],
)
def test_bad_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AlignConfig(**wrong)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"crop_size": 70}, ValueError, "crop_size"),
        ({"crop_size": 32}, ValueError, "crop_size"),
        ({"val_fraction": 1.0}, ValueError, "val_fraction"),
        ({"resume": "nowhere.ckpt"}, FileNotFoundError, "resume"),
        ({"max_epochs": 0}, ValueError, "max_epochs"),
        ({"early_stopping": 2, "val_fraction": 0}, ValueError, "early_stopping"),
        ({"max_time": "00:00:00:00"}, ValueError, "max_time"),
        ({"device": "cuda:99"}, ValueError, "device"),
        ({"tune_encoder": True}, ValueError, "tune_encoder"),
        ({"tune_encoder": True, "encoder": "stimg-conv"}, ValueError, "always trained"),
    ],
)
def test_bad_input_to_training(patches, options, error, message):
    with pytest.raises(error, match=message):
        stimg.tl.align(patches, CONFIG, **options)


def test_bad_input_to_the_rest(slides, model, embedded):
    with pytest.raises(KeyError, match="embed_pairs"):
        stimg.tl.retrieve(embedded, stimg.datasets.synthetic(n_obs=50, n_genes=20))
    with pytest.raises(ValueError, match="same embedding space"):
        stimg.tl.retrieve(np.zeros(3), embedded)
    with pytest.raises(ValueError, match="names"):
        stimg.tl.retrieve(embedded, [embedded], names="one")
    with pytest.raises(KeyError, match="genes"):
        stimg.tl.retrieve_expression(embedded, embedded, ["none"])
    with pytest.raises(ValueError, match="at least one slide in `reference`"):
        stimg.tl.retrieve_expression(embedded, [], ["Gene0"])
    with pytest.raises(TypeError, match="model"):
        stimg.tl.embed_pairs(embedded, 3)
    with pytest.raises(ValueError, match="gene_key_added"):
        stimg.tl.embed_pairs(embedded, model, image_key_added="X", gene_key_added="X")
    renamed = slides[1].copy()
    renamed.var_names = [f"x{i}" for i in range(renamed.n_vars)]
    with pytest.raises(ValueError, match="var_names"):
        stimg.tl.embed_pairs(renamed, model)
    assert "X_stimg_image" not in renamed.obsm


def test_a_spatial_embedding_in_place_of_genes(slides, slide, tmp_path):
    rng = np.random.default_rng(0)
    for one in (*slides, slide):
        one.obsm["X_stimg"] = np.asarray(one.X @ rng.normal(size=(one.n_vars, 5)), dtype=np.float32)
    patches = stimg.pp.to_image_patches(slides[0], use_rep="X_stimg")
    config = AlignConfig(dim=8, hidden=16, batch_size=12, gene_encoder="embedding", embedding_dim=5)
    model = stimg.tl.align(patches, config, max_epochs=2, crop_size=64, device="cpu")
    model.save(tmp_path / "model.safetensors")
    loaded = AlignmentModel.load(tmp_path / "model.safetensors")
    stimg.tl.embed_pairs(slide, loaded)
    before = slide.obsm["X_stimg_gene"].copy()
    slide.X = slide.X * 2
    stimg.tl.embed_pairs(slide, loaded)
    np.testing.assert_array_equal(slide.obsm["X_stimg_gene"], before)
    slide.obsm["X_stimg"][0] += 1
    stimg.tl.embed_pairs(slide, loaded)
    assert not np.array_equal(slide.obsm["X_stimg_gene"], before)
    with pytest.raises(ValueError, match="embedding"):
        loaded.encode_signature([slide.var_names[0]])
    with pytest.raises(KeyError, match="X_none"):
        stimg.tl.embed_pairs(slide, loaded, use_rep="X_none")
    slide.obsm["X_wide"] = np.ones((slide.n_obs, 7))
    with pytest.raises(ValueError, match="5 columns"):
        stimg.tl.embed_pairs(slide, loaded, use_rep="X_wide")
    with pytest.raises(ValueError, match="use_rep"):
        stimg.tl.align(stimg.pp.to_image_patches(slides[0]), config, max_epochs=1, crop_size=64, device="cpu")
    del slides[0].obsm["X_stimg"]


@pytest.fixture(scope="module")
def spatial_model(slides):
    made = [slide.copy() for slide in slides]
    for slide in made:
        stimg.pp.select_genes(slide, n_genes=12)
    config = Config(dim=16, encoder_layers=1, heads=2, n_programs=4, batch_size=4)
    patches = stimg.pp.to_patches(made, size=4)
    return stimg.tl.pretrain(patches, config, max_epochs=1, max_steps=2, val_fraction=0, device="cpu")


TUNED = AlignConfig(dim=8, hidden=16, batch_size=12, chunk_size=4, gene_encoder="tuned", dropout=0.0)


def test_a_spatial_network_is_tuned(slides, slide, spatial_model, tmp_path):
    patches = stimg.pp.to_image_patches(slides, n_genes=2, spatial_model=spatial_model)
    options = {"max_epochs": 3, "crop_size": 64, "val_fraction": 0, "device": "cpu"}
    model = stimg.tl.align(patches, TUNED, **options)
    start, tuned = spatial_model.network.state_dict(), model.network.spatial.state_dict()
    moved = {name for name, value in tuned.items() if not torch.equal(value, start[name])}
    assert {"encoder.blocks.0.qkv.weight", "decoder.norm.weight"} <= moved
    assert not moved & {"gene_in", "gene_out", "gene_bias"}
    assert not model.network.log_scale.equal(AlignNetwork(AlignConfig(), 3).log_scale)
    still = stimg.tl.align(patches, replace(TUNED, spatial_rate=0.0), **options)
    for name, value in still.network.spatial.named_parameters():
        assert torch.equal(value, start[name]), name
    model.save(tmp_path / "model.safetensors")
    loaded = AlignmentModel.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert loaded.spatial.genes.tolist() == spatial_model.genes.tolist()
    unread = slide[:, ~slide.var_names.isin(patches.genes)].copy()
    stimg.tl.embed_pairs(unread, model)
    genes = unread.obsm["X_stimg_gene"].copy()
    np.testing.assert_allclose(np.linalg.norm(genes, axis=1), 1, rtol=1e-5)
    stimg.tl.embed_pairs(unread, loaded, batch_size=5)
    np.testing.assert_allclose(unread.obsm["X_stimg_gene"], genes, atol=1e-5)
    assert unread.uns["stimg"]["embed_pairs"]["gene_encoder"] == "tuned"
    unread.X = unread.X[::-1]
    stimg.tl.embed_pairs(unread, model)
    assert np.abs(unread.obsm["X_stimg_gene"] - genes).max() > 0.01


def test_the_vocabulary_is_that_of_the_spatial_model_whatever_its_card_says(slides, slide, spatial_model):
    said = replace(spatial_model, card=spatial_model.card | {"genes": "the most variable of twelve"})
    patches = stimg.pp.to_image_patches(slides, n_genes=2, spatial_model=said)
    model = stimg.tl.align(patches, TUNED, max_steps=1, crop_size=64, device="cpu")
    assert model.card["spatial"]["genes"] == spatial_model.genes.tolist()
    stimg.tl.embed_pairs(slide, model)
    assert np.isfinite(slide.obsm["X_stimg_gene"]).all()


@pytest.mark.parametrize("platform", ["st", "visium"])
def test_windows_around_spots(make_slide, platform):
    slide = make_slide(platform) if platform == "visium" else stimg.datasets.synthetic_histology(n_rows=5, n_cols=7)
    second = slide.copy()
    second.obs_names = [f"{name}b" for name in second.obs_names]
    both = anndata.concat({"a": slide, "b": second}, label="section")
    both = both[np.random.default_rng(0).permutation(both.n_obs)].copy()
    stimg.pp.to_lattice(both, platform, library_key="section")
    stimg.pp.select_genes(both, n_genes=10)
    config = Config(dim=16, encoder_layers=1, heads=2, n_programs=4, batch_size=4)
    patches = stimg.pp.to_patches(both, size=4)
    model = stimg.tl.pretrain(patches, config, max_epochs=1, max_steps=2, val_fraction=0, device="cpu")
    rows = np.arange(0, both.n_obs, 2)
    seen = read_surroundings(both, model, rows, layer=None, lattice_key="lattice")
    assert seen.windows.shape == (len(rows), 16)
    tables = [both[both.obs["section"] == name] for name in ("a", "b")]
    firsts = {"a": 0, "b": tables[0].n_obs} if both.obs["section"].iloc[0] == "a" else {"b": 0, "a": tables[0].n_obs}
    lattice = both.obsm["lattice"]
    for row, window in zip(rows, seen.windows, strict=True):
        section = both.obs["section"].iloc[row]
        members = np.flatnonzero(both.obs["section"] == section)
        sites, inverse = np.unique(lattice[members], axis=0, return_inverse=True)
        expected = {
            (i + firsts[section]): tuple(offset)
            for i, offset in enumerate(sites - lattice[row] + 2)
            if (offset >= 0).all() and (offset < 4).all()
        }
        found = {int(site): divmod(place, 4) for place, site in enumerate(window) if site >= 0}
        assert found == expected
        assert window[10] == inverse.ravel()[np.flatnonzero(members == row)[0]] + firsts[section]


def test_states_are_those_of_the_middle(slides, spatial_model):
    patches = stimg.pp.to_image_patches(slides[0], spatial_model=spatial_model)
    seen = patches.slides[0].surroundings
    network = AlignNetwork(replace(TUNED, spatial=spatial_model.config, n_spatial_genes=12), 12).eval()
    network.spatial.start_from(spatial_model.network, torch.arange(12))
    size = spatial_model.card["size"]
    inside = slides[0].obsm["lattice"][patches.slides[0].obs_index]
    spot = int(np.flatnonzero((inside == 2).all(1))[0])
    window = window_inputs(seen, slice(spot, spot + 1))
    assert window["present"].all()
    with torch.no_grad():
        found = network.encode_surroundings(**window)
        states = spatial_model.network.encode(*window.values())
        expected = spatial_model.network.decode(states, window["positions"], window["present"], window["present"])
    torch.testing.assert_close(found[0], expected[0, (size // 2) * (size + 1)])


def test_chunks_do_not_change_what_is_tuned(slides, spatial_model):
    patches = stimg.pp.to_image_patches(slides[0], spatial_model=spatial_model)
    batch = window_inputs(patches.slides[0].surroundings, slice(0, 10))
    gradients = []
    for chunk_size in (3, 64):
        torch.manual_seed(0)
        config = replace(TUNED, spatial=spatial_model.config, n_spatial_genes=12, chunk_size=chunk_size)
        network = AlignNetwork(config, 12).train()
        network.encode_genes(network.encode_surroundings(**batch)).sum().backward()
        gradients.append(network.spatial.encoder.blocks[0].qkv.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_surroundings_are_flipped_in_training(slides, spatial_model):
    patches = stimg.pp.to_image_patches(slides[0], spatial_model=spatial_model)
    spots = SpotCropDataset(patches, 64, np.arange(4), crops=False, augment=True, gene_encoder="tuned")
    seen = {tuple((spots[visit, 0]["positions"][-1] / spots[0, 0]["positions"][-1]).tolist()) for visit in range(20)}
    assert len(seen) == 4
    plain = window_inputs(patches.slides[0].surroundings, 0)["positions"]
    torch.testing.assert_close(spots[3, 0]["positions"].abs(), plain.abs())


def test_bad_input_to_a_tuned_network(slides, slide, patches, spatial_model, tmp_path):
    with pytest.raises(ValueError, match="spatial_model"):
        stimg.tl.align(patches, TUNED, max_epochs=1, crop_size=64, device="cpu")
    with pytest.raises(ValueError, match="spatial"):
        AlignNetwork(TUNED, 12)
    bare = slides[0].copy()
    del bare.obsm["lattice"]
    with pytest.raises(KeyError, match="to_lattice"):
        stimg.pp.to_image_patches(bare, spatial_model=spatial_model)
    with pytest.raises(TypeError, match="spatial_model"):
        stimg.pp.to_image_patches(slides[0], spatial_model=3)
    whole = replace(spatial_model, card=spatial_model.card | {"unit": "slide"})
    with pytest.raises(ValueError, match="whole slides"):
        stimg.pp.to_image_patches(slides[0], spatial_model=whole)
    seen = stimg.pp.to_image_patches(slides[0], spatial_model=spatial_model)
    model = stimg.tl.align(seen, TUNED, max_steps=1, crop_size=64, device="cpu")
    del slide.obsm["lattice"]
    before = set(slide.obsm)
    with pytest.raises(KeyError, match="to_lattice"):
        stimg.tl.embed_pairs(slide, model)
    assert set(slide.obsm) == before
    with pytest.raises(ValueError, match="signature"):
        model.encode_signature([slide.var_names[0]])
    for damage in ({"spatial": 3}, {"spatial": {**model.card["spatial"], "genes": ["one"]}}, {"spatial": {}}):
        broken = replace(model, card=model.card | damage)
        broken.save(tmp_path / "broken.safetensors", overwrite=True)
        with pytest.raises(ValueError, match="damaged"):
            AlignmentModel.load(tmp_path / "broken.safetensors")


def test_the_temperature_is_learned(patches):
    options = {"max_epochs": 2, "crop_size": 64, "val_fraction": 0, "device": "cpu"}
    models = [stimg.tl.align(patches, replace(CONFIG, learning_rate=rate), **options) for rate in (0.0, 0.01)]
    scales = [model.network.scale.item() for model in models]
    assert scales[0] == pytest.approx(1 / CONFIG.temperature)
    assert abs(scales[1] - scales[0]) > 0.01
