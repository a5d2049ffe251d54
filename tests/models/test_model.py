from __future__ import annotations

import json
import stat

import numpy as np
import pytest
import torch
from hostile import hostile, unpacked
from safetensors.torch import load_file, save_file

import stimg
from stimg.models import Model


@pytest.fixture
def path(trained, tmp_path):
    path = tmp_path / "model.safetensors"
    trained.save(path)
    return path


def test_round_trip_keeps_everything(trained, path):
    loaded = Model.load(path)
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(tensor, loaded.network.state_dict()[name])
    np.testing.assert_array_equal(loaded.genes, trained.genes)
    assert loaded.card == trained.card
    assert loaded.config == trained.config
    np.testing.assert_allclose(loaded.history, trained.history)
    assert loaded.sha256 == trained.sha256
    assert "slide0" in repr(loaded)


def test_files_are_not_overwritten_unasked(trained, path):
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        trained.save(path)
    trained.save(path, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_bad_folders_are_refused(trained, tmp_path, monkeypatch):
    with pytest.raises(NotADirectoryError, match="existing folder"):
        trained.save(tmp_path / "none" / "model.safetensors")
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="can ?not be written"):
        trained.save(tmp_path / "model.safetensors")


def test_a_failed_write_leaves_nothing_behind(trained, path, monkeypatch):
    def fail(_):
        raise OSError("disk full")

    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        trained.save(path, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_damaged_and_foreign_files_are_named(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="No weights file"):
        Model.load(tmp_path / "none.safetensors")
    data = path.read_bytes()
    short = tmp_path / "short.safetensors"
    for keep in (0, 4, 100, len(data) // 2):
        short.write_bytes(data[:keep])
        with pytest.raises(ValueError, match="truncated"):
            Model.load(short)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, foreign)
    with pytest.raises(ValueError, match="not a stimg model"):
        Model.load(foreign)
    pickled = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(2)}, pickled)
    with pytest.raises(ValueError, match="not a safetensors file"):
        Model.load(pickled)


def test_newer_formats_and_wrong_tensors_are_refused(trained, path, tmp_path):
    tensors = load_file(path)
    content = {
        "format": 1,
        "config": trained.config.to_dict(),
        "genes": trained.genes.tolist(),
        "card": trained.card,
        "history": [],
    }
    other = tmp_path / "other.safetensors"
    save_file(tensors, other, metadata={"stimg": json.dumps(content | {"format": 99})})
    with pytest.raises(ValueError, match="Update stimg"):
        Model.load(other)
    save_file(tensors, other, metadata={"stimg": json.dumps(content | {"genes": ["a"]})})
    with pytest.raises(ValueError, match="do not fit its configuration"):
        Model.load(other)
    for card in ([], {**content["card"], "labels": 3}):
        save_file(tensors, other, metadata={"stimg": json.dumps(content | {"card": card})})
        with pytest.raises(ValueError, match="its card"):
            Model.load(other)
    twice = content["genes"][:-1] + content["genes"][:1]
    save_file(tensors, other, metadata={"stimg": json.dumps(content | {"genes": twice})})
    with pytest.raises(ValueError, match="gene twice"):
        Model.load(other)
    save_file(tensors, other, metadata={"stimg": "{"})
    with pytest.raises(ValueError, match="cannot be read"):
        Model.load(other)
    del content["card"]
    save_file(tensors, other, metadata={"stimg": json.dumps(content)})
    with pytest.raises(ValueError, match="metadata lack"):
        Model.load(other)


@pytest.mark.parametrize("name", ["m" * 300, "a\0b"], ids=["too long", "null character"])
def test_names_that_no_file_can_have(trained, tmp_path, name):
    with pytest.raises(ValueError, match="Expected `path` to be the name of a file"):
        trained.save(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="No weights file at"):
        stimg.models.load(tmp_path / name)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_to_itself_is_named(trained, tmp_path, overwrite):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(FileExistsError, match="leads back to itself"):
        trained.save(tmp_path / "a", overwrite=overwrite)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "b"]


@pytest.fixture(scope="module")
def named():
    """Return a model that knows names, and another section of its tissue."""
    slides = [stimg.datasets.synthetic(n_obs=300, n_genes=60, seed=seed) for seed in (0, 1)]
    config = stimg.nn.Config(dim=32, encoder_layers=1, heads=2, n_programs=8)
    with stimg.settings.override(progress=False):
        for slide in slides:
            stimg.pp.to_lattice(slide)
            stimg.pp.select_genes(slide, n_genes=40)
        patches = stimg.pp.to_patches(slides[:1], size=8, n_channels=24, label_key="domain", groups=["liver"])
        return stimg.tl.pretrain(patches, config, max_steps=2, device="cpu"), slides[1]


@pytest.mark.parametrize("half", [False, True])
def test_names_are_kept_in_the_file(named, tmp_path, half):
    model, slide = named
    path = tmp_path / "named.safetensors"
    model.save(path, half=half)
    loaded = Model.load(path)
    assert loaded.card["label_groups"] == ["liver"]
    first, second = (stimg.tl.annotate(slide, one, copy=True) for one in (model, loaded))
    same = first.obs["stimg_label"].astype(str) == second.obs["stimg_label"].astype(str)
    assert same.mean() > 0.98 if half else same.all()
    tolerance = {"atol": 0.02 if half else 0}
    np.testing.assert_allclose(first.obs["stimg_label_confidence"], second.obs["stimg_label_confidence"], **tolerance)
    assert (loaded.network.label_profile == -1).equal(model.network.label_profile == -1)


def test_files_without_names_load_and_are_refused_where_names_are_needed(named, tmp_path):
    model, slide = named
    path = tmp_path / "old.safetensors"
    model.save(path)
    tensors, content = unpacked(path)
    del content["card"]["label_groups"]
    kept = {name: tensor for name, tensor in tensors.items() if name[6:] not in ("weight", "bias", "profile")}
    assert len(kept) == len(tensors) - 3
    save_file(kept, path, metadata={"stimg": json.dumps(content)})
    old = Model.load(path)
    stimg.tl.embed(slide, old, copy=True)
    with pytest.raises(ValueError, match="kept no names of its labels.*earlier version.*`reference`"):
        stimg.tl.annotate(slide, old)
    assert "stimg_label" not in slide.obs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"card": {"label_groups": ["kidney"]}}, "fewer than two 'labels' of .*kidney"),
        ({"card": {"label_groups": "liver"}}, "'label_groups'"),
        ({"card": {"label_groups": ["liver", "liver"]}}, "'label_groups'"),
        ({"card": {"label_groups": []}}, "tensors do not fit"),
        ({"card": {"labels": ["liver/a", "liver/b"]}}, "tensors do not fit"),
        ({"tensors": {"label_profile": lambda old: old[:, 1:]}}, "tensors do not fit"),
        ({"tensors": {"label_weight": lambda old: None}}, "tensors do not fit"),
        ({"tensors": {"label_bias": lambda old: old * torch.nan}}, "NaN"),
    ],
)
def test_names_that_do_not_fit_are_refused(named, tmp_path, changes, message):
    path = tmp_path / "named.safetensors"
    named[0].save(path)
    hostile(path, **changes)
    with pytest.raises(ValueError, match=message):
        Model.load(path)
