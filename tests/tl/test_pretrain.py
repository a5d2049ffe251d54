from __future__ import annotations

import os
import signal

import lightning
import numpy as np
import pytest
import torch

import stimg

CONFIG = stimg.nn.Config(dim=32, encoder_layers=1, heads=2, n_programs=8)


@pytest.fixture
def patches(make_slide):
    return stimg.pp.to_patches(make_slide(), size=8, n_channels=24)


def weights(model):
    return model.network.state_dict()


def same(a, b):
    return all(torch.equal(weights(a)[key], weights(b)[key]) for key in weights(a))


def test_the_loss_falls_and_the_history_says_so(patches):
    model = stimg.tl.pretrain(patches, CONFIG, max_epochs=6, rng=0)
    assert list(model.history.columns) == ["epoch", "train_loss", "val_loss", "lr", "seconds"]
    assert len(model.history) == 6
    assert model.history["val_loss"].iloc[-1] < model.history["val_loss"].iloc[0]
    assert model.card["slides"] == ["slide0"]
    assert not model.network.training


def test_same_seed_same_weights_and_the_session_is_left_alone(patches):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = stimg.tl.pretrain(patches, CONFIG, max_epochs=1, rng=3)
    assert torch.equal(torch.rand(1), expected)
    assert same(first, stimg.tl.pretrain(patches, CONFIG, max_epochs=1, rng=3))
    assert not same(first, stimg.tl.pretrain(patches, CONFIG, max_epochs=1, rng=4))


def test_a_resumed_run_equals_an_uninterrupted_one(patches, tmp_path):
    class Stop(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    whole = stimg.tl.pretrain(patches, CONFIG, max_epochs=4, rng=0)
    stimg.tl.pretrain(patches, CONFIG, max_epochs=4, rng=0, checkpoint_dir=tmp_path, callbacks=[Stop()])
    resumed = stimg.tl.pretrain(patches, CONFIG, max_epochs=4, rng=0, resume=tmp_path / "last.ckpt")
    assert same(whole, resumed)
    np.testing.assert_allclose(whole.history["train_loss"], resumed.history["train_loss"])


def test_a_run_that_is_told_to_end_gives_no_half_trained_model(patches):
    class Terminate(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit, match="143"):
        stimg.tl.pretrain(patches, CONFIG, max_epochs=3, rng=0, callbacks=[Terminate()])


def test_an_interrupt_returns_the_best_model(patches, caplog):
    class Stop(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    model = stimg.tl.pretrain(patches, CONFIG, max_epochs=50, rng=0, callbacks=[Stop()])
    assert len(model.history) == 2
    assert "Interrupted" in caplog.text


def test_early_stopping_and_limits(patches):
    model = stimg.tl.pretrain(patches, CONFIG, max_steps=3, max_epochs=50, val_fraction=0)
    assert len(model.history) == 1
    assert np.isnan(model.history["val_loss"]).all()
    frozen = stimg.nn.Config(dim=32, encoder_layers=1, heads=2, n_programs=8, learning_rate=1e-12)
    model = stimg.tl.pretrain(patches, frozen, max_epochs=50, early_stopping=2)
    assert len(model.history) < 50


@pytest.mark.parametrize("unit", ["spot", "slide"])
def test_other_units_train_by_the_same_code(make_slide, patches, unit):
    slide = make_slide()
    model = stimg.tl.pretrain(patches, CONFIG, unit=unit, max_steps=3)
    assert model.card["unit"] == unit
    stimg.tl.embed(slide, model)
    assert np.isfinite(slide.obsm["X_stimg"]).all()


@pytest.mark.parametrize("config", ["tiny", "paper"])
def test_named_configurations_train(patches, config):
    model = stimg.tl.pretrain(patches, config, max_steps=1)
    assert np.isfinite(model.history["train_loss"]).all()


def test_slides_with_different_panels_share_one_vocabulary(make_slide):
    small = make_slide(n_genes=20)
    stimg.pp.select_genes(small, n_genes=12)
    small.var_names = [*small.var_names[:10], *[f"OTHER{i}" for i in range(10)]]
    patches = stimg.pp.to_patches([make_slide(), small], size=8, n_channels=24)
    model = stimg.tl.pretrain(patches, CONFIG, max_steps=2)
    assert {"OTHER0"} <= set(model.genes) | {"OTHER0"}
    assert len(model.genes) == len(patches.genes)


def test_bad_arguments_are_refused(patches, tmp_path):
    for changes, message in (
        ({"config": "huge"}, "`config`"),
        ({"unit": "cell"}, "`unit`"),
        ({"device": "tpu"}, "`device`"),
        ({"max_epochs": 0}, "`max_epochs`"),
        ({"val_fraction": 1}, "`val_fraction`"),
        ({"val_fraction": 0, "early_stopping": 2}, "`early_stopping`"),
    ):
        with pytest.raises(ValueError, match=message):
            stimg.tl.pretrain(patches, **changes)
    with pytest.raises(FileNotFoundError, match="`resume`"):
        stimg.tl.pretrain(patches, resume=tmp_path / "none.ckpt")


def test_a_loss_that_is_not_finite_stops_with_advice(patches):
    wild = stimg.nn.Config(dim=32, encoder_layers=1, heads=2, n_programs=8, learning_rate=1e30, warmup=0)
    with pytest.raises(ValueError, match="Lower `learning_rate`"):
        stimg.tl.pretrain(patches, wild, max_epochs=3)


def test_training_goes_on_from_given_weights(make_slide, patches, tmp_path):
    first = stimg.tl.pretrain(patches, CONFIG, max_epochs=4, rng=0)
    first.save(tmp_path / "first.safetensors")
    still = stimg.tl.pretrain(patches, init=first, max_steps=1, val_fraction=0, rng=1)
    assert still.config == first.config
    slide = make_slide()
    for key, model in (("first", first), ("still", still)):
        stimg.tl.embed(slide, model, key_added=key)
    assert np.corrcoef(slide.obsm["first"].ravel(), slide.obsm["still"].ravel())[0, 1] > 0.99
    further = stimg.tl.pretrain(patches, init=tmp_path / "first.safetensors", max_epochs=3, rng=0)
    assert further.card["init"] == {"name": "stimg", "sha256": first.sha256}
    assert further.history["val_loss"].iloc[0] < first.history["val_loss"].iloc[0]


def test_the_vocabulary_grows_when_training_goes_on(make_slide, patches):
    first = stimg.tl.pretrain(patches, CONFIG, max_epochs=1, rng=0)
    other = make_slide(seed=5)
    other.var_names = [*other.var_names[:50], *(f"NEW{i}" for i in range(10))]
    stimg.pp.select_genes(other, n_genes=other.n_vars)
    model = stimg.tl.pretrain(stimg.pp.to_patches(other, size=8, n_channels=24), init=first, max_epochs=1, rng=0)
    assert set(first.genes) <= set(model.genes)
    assert {f"NEW{i}" for i in range(10)} <= set(model.genes)
    assert stimg.tl.embed(other, model, copy=True).obsm["X_stimg"].shape == (other.n_obs, 32)


def test_other_sizes_than_those_of_the_weights_are_refused(patches, trained):
    with pytest.raises(ValueError, match="`init`"):
        stimg.tl.pretrain(patches, "tiny", init=trained)
    with pytest.raises(TypeError, match="`init`"):
        stimg.tl.pretrain(patches, init=3)


def test_expert_labels_are_learned_and_saved(make_slide, tmp_path):
    slides = [make_slide(seed=0), make_slide(seed=1)]
    slides[1].obs["domain"] = slides[1].obs["domain"].astype(object).where(np.arange(300) % 3 > 0)
    patches = stimg.pp.to_patches(slides, size=8, n_channels=24, label_key="domain", groups=["a", "b"])
    assert patches.labels == [f"{g}/layer{i}" for g in "ab" for i in range(1, 6)]
    item = patches[0]
    assert item["choice"].tolist() == [True] * 5 + [False] * 5
    assert (item["labels"][~item["present"]] == -1).all()
    model = stimg.tl.pretrain(patches, CONFIG, max_epochs=1, rng=0)
    model.save(tmp_path / "m.safetensors")
    assert stimg.models.load(tmp_path / "m.safetensors").card["labels"] == patches.labels
    assert model.network.label_head.weight.shape == (10, 32)
    with pytest.raises(KeyError, match="`label_key`"):
        stimg.pp.to_patches(slides, size=8, label_key="layer")


def test_labels_of_sites_are_those_of_their_observations(make_slide):
    slide = make_slide()
    slide.obs["domain"] = slide.obs["domain"].astype(object).where(np.arange(300) > 20)
    patches = stimg.pp.to_patches(slide, size=8, n_channels=24, label_key="domain")
    array = patches.slides[0]
    expected = slide.obs["domain"].fillna("").to_numpy()
    np.testing.assert_array_equal(array.labels[array.obs_site], expected)


NAMES = {"label_weight", "label_bias", "label_profile"}


def test_groups_with_two_labels_have_names(make_slide):
    slides = [make_slide(seed=seed) for seed in range(4)]
    slides[1].obs["domain"] = "layer1"  # one label
    slides[2].obs["domain"] = ["unknown", "Unknown", "", np.nan] * 75  # none
    patches = stimg.pp.to_patches(slides, size=8, n_channels=24, label_key="domain", groups=["b", "one", "none", "b"])
    assert patches.label_groups == ["b"]
    assert patches.labels == [*(f"b/layer{i}" for i in range(1, 6)), "one/layer1"]
    assert patches.labelled("none") == []
    assert [slide.name for slide, _ in patches.labelled("b")] == ["slide0", "slide3"]
    ((slide, index),) = patches.labelled("one")
    assert slide is patches.slides[1]
    np.testing.assert_array_equal(index, patches.labels.index("one/layer1"))
    array, index = patches.labelled("b")[1]
    expected = slides[3].obs["domain"].astype(str).to_numpy()[array.obs_index]
    np.testing.assert_array_equal(
        np.array(patches.labels)[index][array.obs_site], np.char.add("b/", expected.astype(str))
    )
    plain = stimg.pp.to_patches(slides[0], size=8, n_channels=24, label_key="domain")
    assert plain.label_groups == [""]
    assert len(plain.labelled("")) == 1
    assert stimg.pp.to_patches(slides[0], size=8, n_channels=24).label_groups == []
    model = stimg.tl.pretrain(patches, CONFIG, max_steps=1)
    assert model.card["label_groups"] == ["b"]
    state = weights(model)
    assert state["label_profile"].shape == (2, 1, len(model.genes))
    assert state["label_weight"].shape == (2, 6, 64)
    assert (state["label_bias"][:, -1] == -1000).all()  # never given
    assert (state["label_bias"][:, :-1] > -100).all()
    known = np.isin(model.genes, np.union1d(patches.slides[0].genes, patches.slides[3].genes))
    for profile in state["label_profile"].numpy():
        np.testing.assert_array_equal(profile[0] >= 0, known)


def test_groups_that_cannot_be_told_apart_are_refused_with_labels(make_slide):
    slides, groups = [make_slide(seed=0), make_slide(seed=1)], ["human", "human/cortex"]
    with pytest.raises(ValueError, match=r"`groups` .*\['human/cortex'\]"):
        stimg.pp.to_patches(slides, size=8, label_key="domain", groups=groups)
    stimg.pp.to_patches(slides, size=8, n_channels=24, groups=groups)


@pytest.mark.parametrize(("weight", "why"), [(0.0, "`label_loss` of the configuration is 0"), (1.0, "one label only")])
def test_labels_that_are_not_learned_are_told(make_slide, weight, why):
    slide = make_slide()
    if weight:
        slide.obs["domain"] = "cortex"
    patches = stimg.pp.to_patches(slide, size=8, n_channels=24, label_key="domain")
    config = stimg.nn.Config(dim=32, encoder_layers=1, heads=2, n_programs=8, label_loss=weight)
    with pytest.warns(UserWarning, match=f"labels of `patches` are not learned.*{why}.*`reference`"):
        model = stimg.tl.pretrain(patches, config, max_steps=1)
    assert model.card["label_groups"] == []
    assert not NAMES & set(weights(model))
    with pytest.raises(ValueError, match="Expected a model that knows names of regions"):
        stimg.tl.annotate(slide, model)


def test_names_are_those_of_the_last_training(make_slide, patches):
    slide, other = make_slide(), make_slide(seed=1)
    slide.obs["half"] = np.where(slide.obs["domain"].isin(["layer1", "layer2"]), "upper", "lower")
    options = {"size": 8, "n_channels": 24}
    first = stimg.tl.pretrain(stimg.pp.to_patches(slide, label_key="domain", **options), CONFIG, max_steps=2)
    second = stimg.tl.pretrain(stimg.pp.to_patches(slide, label_key="half", **options), init=first, max_steps=2)
    assert second.card["labels"] == ["lower", "upper"]
    stimg.tl.annotate(other, second, min_confidence=0)
    assert set(other.obs["stimg_label"]) == {"lower", "upper"}
    third = stimg.tl.pretrain(patches, init=first, max_steps=1)
    assert not NAMES & set(weights(third))
    with pytest.raises(ValueError, match="was trained without labels"):
        stimg.tl.annotate(other, third)


def test_names_are_the_same_after_a_break(make_slide, tmp_path):
    class Stop(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    patches = stimg.pp.to_patches(make_slide(), size=8, n_channels=24, label_key="domain")
    whole = stimg.tl.pretrain(patches, CONFIG, max_epochs=2, rng=0)
    broken = stimg.tl.pretrain(patches, CONFIG, max_epochs=2, rng=0, checkpoint_dir=tmp_path, callbacks=[Stop()])
    assert NAMES < set(weights(broken))
    assert (weights(broken)["label_weight"] != 0).any()
    assert same(whole, stimg.tl.pretrain(patches, CONFIG, max_epochs=2, rng=0, resume=tmp_path / "last.ckpt"))
