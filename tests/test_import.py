"""Importing stimg costs next to nothing; the heavy packages load on first use."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

import stimg

HEAVY = [
    "anndata",
    "lightning",
    "matplotlib",
    "numpy",
    "pandas",
    "scanpy",
    "scipy",
    "sklearn",
    "spatialdata",
    "squidpy",
]
SUBMODULES = ["datasets", "metrics", "models", "nn", "pl", "pp", "tl"]


def loaded_after(code: str) -> set[str]:
    """Modules in a fresh process after it has run `code`."""
    code = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_loads_nothing_heavy():
    loaded = loaded_after("import stimg")
    assert loaded.isdisjoint([*HEAVY, "torch"])
    assert loaded.isdisjoint(f"stimg.{name}" for name in SUBMODULES)


@pytest.mark.parametrize("name", ["datasets", "metrics", "models", "pl", "pp", "tl"])
def test_submodule_loads_no_torch_before_first_use(name):
    loaded = loaded_after(f"import stimg\ndir(stimg.{name})")
    assert f"stimg.{name}" in loaded
    assert loaded.isdisjoint(["torch", "lightning", "spatialdata", "squidpy", "scanpy"])


@pytest.mark.parametrize("name", SUBMODULES)
def test_public_names_exist_and_are_documented(name):
    module = getattr(stimg, name)
    assert name in dir(stimg)
    for public in module.__all__:
        found = getattr(module, public)
        if callable(found):
            assert found.__doc__, f"stimg.{name}.{public} has no docstring"


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = stimg.nothing_like_this


def test_logger_is_silent_unless_the_application_listens():
    code = "import stimg, logging; logging.getLogger('stimg').error('unheard')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_version_is_that_of_the_installed_package():
    metadata = importlib.import_module("importlib.metadata")
    try:
        installed = metadata.version("stimg")
    except metadata.PackageNotFoundError:
        pytest.skip("stimg runs from its source folder")
    assert stimg.__version__ == installed
