from __future__ import annotations

import logging
from pathlib import Path

import pytest

import stimg
from stimg._settings import Settings


@pytest.fixture(autouse=True)
def _keep_log_level():
    logger = logging.getLogger("stimg")
    level = logger.level
    yield
    logger.setLevel(level)


def test_defaults():
    made = Settings({"XDG_CACHE_HOME": "cache"})
    assert made.verbosity == "info"
    assert made.device == "auto"
    assert made.progress is True
    assert made.cachedir == Path("cache").absolute() / "stimg"
    assert Settings({}).cachedir == Path("~/.cache/stimg").expanduser()


def test_environment(tmp_path):
    made = Settings(
        {
            "STIMG_VERBOSITY": "Debug",
            "STIMG_DEVICE": "cuda:1",
            "STIMG_CACHE_DIR": str(tmp_path / "new"),
            "STIMG_PROGRESS": "0",
        }
    )
    assert (made.verbosity, made.device, made.progress) == ("debug", "cuda:1", False)
    assert made.cachedir == tmp_path / "new"
    assert not made.cachedir.exists(), "made when first needed, not before"
    assert logging.getLogger("stimg").level == logging.DEBUG


@pytest.mark.parametrize(
    ("variable", "value"),
    [("STIMG_VERBOSITY", "loud"), ("STIMG_DEVICE", "tpu"), ("STIMG_DEVICE", "cuda:x"), ("STIMG_PROGRESS", "maybe")],
)
def test_bad_environment_names_the_variable_and_the_value(variable, value):
    with pytest.raises(ValueError, match=rf"\${variable}.*{value}"):
        Settings({variable: value})


def test_bad_value_changes_nothing(tmp_path):
    made = Settings({})
    (tmp_path / "file").touch()
    for name, value in [("verbosity", 3), ("device", None), ("progress", 2), ("cachedir", 5)]:
        before = getattr(made, name)
        with pytest.raises(ValueError, match=name):
            setattr(made, name, value)
        assert getattr(made, name) == before
    with pytest.raises(ValueError, match="got the file"):
        made.cachedir = tmp_path / "file"
    with pytest.raises(AttributeError):
        made.verbose = True  # a misspelt setting


def test_override_restores_also_after_an_error():
    made = Settings({})
    with pytest.raises(RuntimeError, match="inside"), made.override(device="cpu", progress=False):
        assert (made.device, made.progress) == ("cpu", False)
        raise RuntimeError("inside")
    assert (made.device, made.progress) == ("auto", True)
    with pytest.raises(ValueError, match="device"), made.override(progress=False, device="tpu"):
        pytest.fail("must not be entered")
    assert made.progress is True
    with pytest.raises(AttributeError, match="Available"), made.override(speed=1):
        pytest.fail("must not be entered")


def test_the_session_has_one_with_a_readable_repr():
    assert isinstance(stimg.settings, Settings)
    assert repr(stimg.settings).startswith("Settings(verbosity=")
