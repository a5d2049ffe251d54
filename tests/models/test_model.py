from __future__ import annotations

import json
import stat

import numpy as np
import pytest
import torch
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
