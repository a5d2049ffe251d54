"""What all trainings share: limits, devices, random state and interrupts."""

from datetime import timedelta

import lightning
import numpy as np
import pytest
import torch

import stimg
from stimg._train._run import Run

CONFIG = stimg.nn.Config(dim=32, encoder_layers=1, heads=2, n_programs=8)


@pytest.fixture
def patches(make_slide):
    return stimg.pp.to_patches(make_slide(), size=8, n_channels=24)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)


def options(**arguments):
    return Run(max_epochs=1, **arguments).trainer_options


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        (None, None),
        ("00:00:10:00", 600),
        ("01:00:00:01", 86401),
        (timedelta(minutes=2), 120),
        ({"hours": 1, "seconds": 5}, 3605),
    ],
)
def test_limits_of_time(limit, seconds):
    assert Run(max_epochs=1, max_time=limit).max_seconds == seconds
    assert Run(max_epochs=1, trainer_kwargs={"max_time": limit}).max_seconds == seconds


@pytest.mark.parametrize("limit", [0, -3, 1.5, "ten minutes", "00:00:00:00", timedelta(0), {"seconds": 0}, {"eons": 1}])
def test_no_time_is_refused(patches, limit):
    with pytest.raises(ValueError, match="positive time"):
        stimg.tl.pretrain(patches, CONFIG, max_time=limit)


def test_names_of_devices(two_gpus, monkeypatch):
    for device, accelerator, devices, precision in (
        ("auto", "cpu", 1, "32-true"),  # that of the settings
        ("cpu", "cpu", 1, "32-true"),
        ("cuda", "gpu", 1, "bf16-mixed"),
        ("cuda:0", "gpu", [0], "bf16-mixed"),
        ("cuda:1", "gpu", [1], "bf16-mixed"),
    ):
        found = options(device=device)
        assert (found["accelerator"], found["devices"], found["precision"]) == (accelerator, devices, precision)
    with stimg.settings.override(device="cuda:1"):
        assert options()["devices"] == [1]
        assert options(device="cpu")["accelerator"] == "cpu"
    with stimg.settings.override(device="auto"):
        assert options()["accelerator"] == "gpu"
    given = options(device="cuda:1", trainer_kwargs={"devices": 2, "precision": "32-true", "max_epochs": 7})
    assert (given["devices"], given["precision"], given["max_epochs"]) == (2, "32-true", 7)
    assert options(device="cuda", trainer_kwargs={"accelerator": "cpu"})["precision"] == "32-true"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    found = options(device="mps")
    assert (found["accelerator"], found["devices"], found["precision"]) == ("mps", 1, "32-true")


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "tpu", 0])
def test_devices_that_are_absent_are_refused_before_any_work(two_gpus, patches, monkeypatch, device):
    monkeypatch.setattr(stimg.pp.PatchDataset, "split", None)
    with pytest.raises(ValueError, match="`device"):
        stimg.tl.pretrain(patches, CONFIG, device=device)


def test_the_random_state_of_the_session_is_left_alone(patches, monkeypatch):
    def fail(*_):
        raise AssertionError

    for name in ("cuda.manual_seed", "cuda.manual_seed_all", "mps.manual_seed"):
        monkeypatch.setattr(f"torch.{name}", fail)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    stimg.tl.pretrain(patches, CONFIG, max_steps=1, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numbers)


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_batch_end"])
def test_an_interrupt_in_the_first_epoch_returns_no_untrained_model(patches, hook):
    def interrupt(*_):
        raise KeyboardInterrupt

    callback = lightning.Callback()
    setattr(callback, hook, interrupt)
    with pytest.raises(KeyboardInterrupt, match="one epoch"):
        stimg.tl.pretrain(patches, CONFIG, max_epochs=3, callbacks=[callback])


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_strategies_that_return_no_weights_are_refused(patches, strategy):
    with pytest.raises(ValueError, match="torchrun"):
        stimg.tl.pretrain(patches, CONFIG, trainer_kwargs={"devices": 2, "strategy": strategy})


def test_a_training_without_batches_is_an_error(patches):
    with pytest.raises(ValueError, match="not one epoch"):
        stimg.tl.pretrain(patches, CONFIG, max_epochs=1, trainer_kwargs={"limit_train_batches": 0})


def test_early_stopping_needs_held_out_data():
    run = Run(max_epochs=1, early_stopping=2)
    run.check_held_out(True)
    with pytest.raises(ValueError, match="`early_stopping`"):
        run.check_held_out(False)


@pytest.mark.parametrize("wrong", ["early", None, 3])
def test_callbacks_that_are_none_are_named(wrong):
    with pytest.raises(TypeError, match=f"`callbacks` to hold `lightning.Callback` objects, found {wrong!r}"):
        Run(max_epochs=1, callbacks=[wrong])


def test_folders_that_cannot_be_made_are_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for folder in (tmp_path / "file", tmp_path / "file" / "new", tmp_path / "loop", tmp_path / ("f" * 300)):
        with pytest.raises(NotADirectoryError, match="`checkpoint_dir` to be a folder"):
            Run(max_epochs=1, checkpoint_dir=folder)
