"""One answer to where torch computes, and from which seed."""

from __future__ import annotations

import pytest
import torch

import stimg
from stimg._input._device import resolve_device, seeded


@pytest.mark.parametrize("name", ["tpu", "", "cuda:x", "gpu", None, 0])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="`device`.*'cuda:N'"):
        resolve_device(name)


def test_auto_is_that_of_the_settings():
    assert resolve_device("auto") == "cpu"
    with stimg.settings.override(device="cuda:1"), pytest.raises(ValueError, match="GPU `device='cuda:1'`"):
        resolve_device("auto")


@pytest.mark.parametrize(
    ("n_gpus", "given", "found"), [(2, "cuda:1", "cuda:1"), (1, "CUDA", "cuda"), (1, "cuda:1", None)]
)
def test_gpus_are_counted(monkeypatch, n_gpus, given, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    if found is None:
        with pytest.raises(ValueError, match=f"found {n_gpus} CUDA"):
            resolve_device(given)
    else:
        assert resolve_device(given) == found
    with stimg.settings.override(device="auto"):
        assert resolve_device("auto") == "cuda"


def test_missing_accelerators_are_refused_before_any_work(make_slide, trained):
    slide = make_slide()
    for device in ("cuda", "cuda:0", "mps"):
        if torch.cuda.is_available() if device.startswith("cuda") else torch.backends.mps.is_available():
            continue
        with pytest.raises(ValueError, match="device"):
            stimg.tl.embed(slide, trained, device=device)
        with pytest.raises(ValueError, match="device"):
            stimg.tl.pretrain(stimg.pp.to_patches(slide, 8, n_channels=8), max_epochs=1, device=device)
    assert "X_stimg" not in slide.obsm


def test_other_machines_may_have_what_this_one_lacks():
    assert resolve_device("cuda:3", here=False) == "cuda:3"
    assert resolve_device("auto", here=False) == "cpu"


def test_the_users_random_states_stay(monkeypatch):
    def fail(*_):
        raise AssertionError("the states of other devices were touched")

    for place in (torch.cuda, torch.mps):
        for name in ("manual_seed", "manual_seed_all", "seed"):
            monkeypatch.setattr(place, name, fail, raising=False)
    before = torch.get_rng_state()
    with seeded(7):
        first = torch.rand(3)
    with seeded(7):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)
