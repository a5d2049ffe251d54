from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import stimg
from stimg.models import _registry


@pytest.fixture
def file(trained, tmp_path) -> Path:
    trained.save(tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


@pytest.fixture
def online(monkeypatch, tmp_path, file):
    asked = []

    def get(url, partial):
        asked.append(url)
        shutil.copy(file, partial)

    monkeypatch.setattr("stimg._downloads._get", get)
    with stimg.settings.override(cachedir=tmp_path / "cache"):
        yield asked


def test_bundled_weights_embed_any_slide_without_a_network(make_slide):
    assert stimg.models.available().loc["stimg-tiny", "bundled"]
    card = stimg.models.card("stimg-tiny")
    assert card["slides"]
    assert card["licence"]
    slide = make_slide()
    slide.var_names = [*stimg.models.load("stimg-tiny").genes[: slide.n_vars - 5], *slide.var_names[-5:]]
    stimg.tl.embed(slide)  # nearly all of the slide's genes are known, so there is no warning
    assert slide.obsm["X_stimg"].shape == (slide.n_obs, card_width())
    assert np.isfinite(slide.obsm["X_stimg"]).all()
    assert slide.uns["stimg"]["embed"]["model"] == "stimg-tiny"


def card_width() -> int:
    return stimg.models.load("stimg-tiny").config.dim


def test_the_bundled_file_is_small():
    path = Path(stimg.models.__file__).parent / stimg.models.available().loc["stimg-tiny", "file"]
    assert path.stat().st_size < 16 * 2**20


def test_paths_and_addresses(file, online, trained):
    assert stimg.models.load(file).sha256 == trained.sha256
    model = stimg.models.load("https://example.org/w/theirs.safetensors", sha256=trained.sha256)
    assert model.sha256 == trained.sha256
    assert online == ["https://example.org/w/theirs.safetensors"]
    stimg.models.load("https://example.org/other/theirs.safetensors")
    assert len(list((stimg.settings.cachedir / "weights").glob("*-theirs.safetensors"))) == 2
    with pytest.raises(FileNotFoundError, match="stimg-tiny"):
        stimg.models.load("none.safetensors")


@pytest.mark.parametrize("wrong", ["0" * 64, "abc", "", 3])
def test_the_hash_counts_wherever_the_file_comes_from(file, online, trained, wrong):
    for source in (file, str(file), "stimg-tiny", "https://example.org/theirs.safetensors"):
        with pytest.raises(ValueError, match="sha256"):
            stimg.models.load(source, sha256=wrong)
    assert stimg.models.load(file, sha256=trained.sha256.upper()).sha256 == trained.sha256


@pytest.mark.parametrize("source", [None, 3, b"stimg-tiny", ["stimg-tiny"], ""])
def test_what_is_no_name_and_no_path_is_refused(source):
    for call in (stimg.models.load, stimg.models.card):
        with pytest.raises((TypeError, ValueError), match="`source` to be a path"):
            call(source)


def test_named_weights_that_are_not_bundled_come_from_the_mirror(monkeypatch, online, trained):
    entry = {"file": "stimg-large.safetensors", "sha256": trained.sha256, "description": "tests"}
    monkeypatch.setattr(_registry, "_registry", lambda: {"stimg-large": entry})
    assert not stimg.models.available().loc["stimg-large", "bundled"]
    with pytest.raises(ConnectionError, match="by hand"):
        stimg.models.load("stimg-large")
    monkeypatch.setenv(_registry.MIRROR, "https://example.org/mirror/")
    assert stimg.models.load("stimg-large").sha256 == trained.sha256
    assert online == ["https://example.org/mirror/stimg-large.safetensors"]
    monkeypatch.delenv(_registry.MIRROR)
    assert stimg.models.load("stimg-large").sha256 == trained.sha256
    entry["sha256"] = "0" * 64
    with pytest.raises(ValueError, match="Expected .*stimg-large"):
        stimg.models.load("stimg-large")


def test_without_a_network_the_error_says_where_to_put_the_file(monkeypatch, tmp_path):
    def retrieve(url, **_):
        raise OSError("no route to host")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    with (
        stimg.settings.override(cachedir=tmp_path),
        pytest.raises(ConnectionError, match="weights/[0-9a-f]{8}-theirs.safetensors"),
    ):
        stimg.models.load("https://example.org/theirs.safetensors")


def test_half_precision_halves_the_file_and_hardly_moves_the_embedding(make_slide, trained, tmp_path):
    trained.save(tmp_path / "full.safetensors")
    trained.save(tmp_path / "half.safetensors", half=True)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    slide = make_slide()
    for name in ("full", "half"):
        stimg.tl.embed(slide, tmp_path / f"{name}.safetensors", key_added=name)
    error = np.linalg.norm(slide.obsm["half"] - slide.obsm["full"]) / np.linalg.norm(slide.obsm["full"])
    assert error < 0.01
