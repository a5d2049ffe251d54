from __future__ import annotations

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
