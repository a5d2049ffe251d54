from __future__ import annotations

import pytest

import stimg
from stimg.models import AlignmentModel, ExpressionModel, Model
from stimg.models._given import given_model


def test_models_pass_through_or_are_loaded(trained, tmp_path):
    assert given_model(Model, trained) is trained
    assert given_model(Model, "stimg-tiny").sha256 == stimg.models.load("stimg-tiny").sha256
    trained.save(tmp_path / "mine.safetensors")
    for path in (tmp_path / "mine.safetensors", str(tmp_path / "mine.safetensors")):
        assert given_model(Model, path).sha256 == trained.sha256
        for kind in (ExpressionModel, AlignmentModel):
            with pytest.raises(ValueError, match=f"Expected weights .*{kind.__name__}.* found weights"):
                given_model(kind, path)
    with pytest.raises(FileNotFoundError):
        given_model(ExpressionModel, "stimg-tiny")


@pytest.mark.parametrize("kind", [Model, ExpressionModel, AlignmentModel])
def test_anything_else_is_refused_by_name(kind, trained):
    for wrong in (None, 3, b"stimg-tiny", [trained], trained if kind is not Model else trained.network):
        with pytest.raises(TypeError, match=rf"Expected `init` to be a `stimg\.models\.{kind.__name__}`.*path, found"):
            given_model(kind, wrong, "init")
