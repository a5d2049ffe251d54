"""Alignment of H&E and expression, and what it is for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import stimg
from stimg.models import AlignmentModel, ExpressionModel
from stimg.nn import AlignConfig, AlignNetwork, Config, ConvEncoder
from stimg.nn._align import contrastive_loss
from stimg.pp._spot_crops import SpotCropDataset
from stimg.tl._align_training import neighbours_of

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


def test_the_loss_is_that_of_clip():
    generator = torch.Generator().manual_seed(0)
    images, genes = torch.nn.functional.normalize(torch.randn(2, 5, 4, generator=generator), dim=2)
    scores = 10 * images @ genes.T
    rows = -torch.log_softmax(scores, 1).diagonal().mean()
    columns = -torch.log_softmax(scores, 0).diagonal().mean()
    nothing = torch.zeros(5, 5, dtype=torch.bool)
    found = contrastive_loss(images, genes, torch.tensor(10.0), nothing)
    assert torch.isclose(found, (rows + columns) / 2)
    alike = nothing.clone()
    alike[0, 1] = alike[1, 0] = True
    assert contrastive_loss(images, genes, torch.tensor(10.0), alike) < found
    everything = contrastive_loss(images, genes, torch.tensor(10.0), ~nothing)
    assert torch.isclose(everything, torch.tensor(0.0))


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
    found = embedded.layers["stimg_retrieved"]
    row = int(np.argmax(reference.obsm["X_stimg_gene"] @ embedded.obsm["X_stimg_image"][4]))
    counts = reference.X[row].toarray().ravel()
    expected = np.log1p(1e4 * counts[3] / counts.sum())
    assert found[4, embedded.var_names.get_loc("Gene3")] == pytest.approx(expected, rel=1e-4)
    assert np.isnan(found[:, embedded.var_names.get_loc("Gene5")]).all()
    everyone = stimg.tl.retrieve_expression(embedded, reference, ["Gene0"], n_neighbors=36, temperature=1e6, copy=True)
    assert np.ptp(everyone.layers["stimg_retrieved"][:, 0]) < 1e-4


def test_domains_of_both_sides(embedded):
    stimg.tl.domains(embedded, 3, use_rep=["X_stimg_image", "X_stimg_gene"])
    assert embedded.obs["stimg_domain"].nunique() == 3
    assert list(embedded.uns["stimg"]["domains"]["use_rep"]) == ["X_stimg_image", "X_stimg_gene"]
    with pytest.raises(ValueError, match="use_rep"):
        stimg.tl.domains(embedded, 3, use_rep=[])


@pytest.mark.parametrize(
    "wrong",
    [{"gene_encoder": "tree"}, {"temperature": 0.0}, {"dropout": 1.0}, {"batch_size": 1}, {"chunk_size": 0}],
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
    ],
)
def test_bad_input_to_training(patches, options, error, message):
    with pytest.raises(error, match=message):
        stimg.tl.align(patches, CONFIG, **options)


def test_bad_input_to_the_rest(slides, model, embedded):
    with pytest.raises(KeyError, match="embed_pairs"):
        stimg.tl.retrieve(embedded, stimg.datasets.synthetic(n_obs=50, n_genes=20))
    with pytest.raises(ValueError, match="one space"):
        stimg.tl.retrieve(np.zeros(3), embedded)
    with pytest.raises(ValueError, match="names"):
        stimg.tl.retrieve(embedded, [embedded], names="one")
    with pytest.raises(KeyError, match="genes"):
        stimg.tl.retrieve_expression(embedded, embedded, ["none"])
    with pytest.raises(TypeError, match="model"):
        stimg.tl.embed_pairs(embedded, 3)
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
    patches = stimg.pp.to_image_patches(slides, spatial_model=spatial_model)
    model = stimg.tl.align(patches, TUNED, max_epochs=3, crop_size=64, val_fraction=0, device="cpu")
    assert model.config.spatial == spatial_model.config
    start, tuned = spatial_model.network.state_dict(), model.network.spatial.state_dict()
    moved = {name for name, value in tuned.items() if name in start and not torch.equal(value, start[name])}
    assert "encoder.blocks.0.qkv.weight" in moved and "decoder.norm.weight" in moved
    stimg.tl.embed_pairs(slide, model, spatial_model=spatial_model)
    genes = slide.obsm["X_stimg_gene"]
    np.testing.assert_allclose(np.linalg.norm(genes, axis=1), 1, rtol=1e-5)
    still = stimg.tl.align(
        patches, replace(TUNED, spatial_rate=0.0), max_epochs=3, crop_size=64, val_fraction=0, device="cpu"
    )
    for name, value in still.network.spatial.named_parameters():
        assert not value.numel() or torch.equal(value, start[name]), name
    model.save(tmp_path / "model.safetensors")
    loaded = AlignmentModel.load(tmp_path / "model.safetensors")
    stimg.tl.embed_pairs(slide, loaded, spatial_model=spatial_model)
    np.testing.assert_array_equal(slide.obsm["X_stimg_gene"], genes)


def test_states_in_the_middle_are_those_of_the_slide(slides, spatial_model):
    patches = stimg.pp.to_image_patches(slides[0], spatial_model=spatial_model)
    seen = patches.slides[0].surroundings
    network = AlignNetwork(replace(TUNED, spatial=spatial_model.config), 12)
    network.spatial.load_state_dict(spatial_model.network.without_genes().state_dict())
    network.eval()
    size = spatial_model.card["size"]
    inside = slides[0].obsm["lattice"][patches.slides[0].obs_index]
    spot = int(np.flatnonzero((inside == 2).all(1))[0])  # its window begins at the slide's first site
    sites = seen.windows[spot]
    assert (sites >= 0).all() and sites[(size // 2) * (size + 1)] == spot
    window = [
        torch.from_numpy(part)[None] for part in (seen.tokens[sites], seen.positions[sites], np.ones(size**2, bool))
    ]
    with torch.no_grad():
        found = network.read_surroundings(*window)
        states = spatial_model.network.encode(*window)
        expected = spatial_model.network.decode(states, window[1], window[2], window[2])
    torch.testing.assert_close(found[0], expected[0, (size // 2) * (size + 1)])


def test_chunks_do_not_change_what_is_tuned(slides, spatial_model):
    patches = stimg.pp.to_image_patches(slides[0], spatial_model=spatial_model)
    spots = SpotCropDataset(patches, 64, np.arange(10), crops=False, augment=False, gene_encoder="tuned")
    batch = [torch.stack([spots[i][key] for i in range(10)]) for key in ("tokens", "positions", "present")]
    gradients = []
    for chunk_size in (3, 64):
        torch.manual_seed(0)
        network = AlignNetwork(replace(TUNED, spatial=spatial_model.config, chunk_size=chunk_size), 12).train()
        network.encode_genes(network.read_surroundings(*batch)).sum().backward()
        gradients.append(network.spatial.encoder.blocks[0].qkv.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_bad_input_to_a_tuned_network(slides, slide, patches, spatial_model):
    with pytest.raises(ValueError, match="spatial_model"):
        stimg.tl.align(patches, TUNED, max_epochs=1, crop_size=64, device="cpu")
    bare = slides[0].copy()
    del bare.obsm["lattice"]
    with pytest.raises(KeyError, match="to_lattice"):
        stimg.pp.to_image_patches(bare, spatial_model=spatial_model)
    with pytest.raises(TypeError, match="spatial_model"):
        stimg.pp.to_image_patches(slides[0], spatial_model=3)
    seen = stimg.pp.to_image_patches(slides[0], spatial_model=spatial_model)
    model = stimg.tl.align(seen, TUNED, max_steps=1, crop_size=64, device="cpu")
    before = set(slide.obsm)
    with pytest.raises(ValueError, match="that was tuned"):
        stimg.tl.embed_pairs(slide, model, spatial_model="stimg-tiny")
    assert set(slide.obsm) == before
    with pytest.raises(ValueError, match="signature"):
        model.encode_signature([slide.var_names[0]])
