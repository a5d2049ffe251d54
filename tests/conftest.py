from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

import stimg

settings.register_profile("same", derandomize=True)  # what passes today passes tomorrow
settings.load_profile("same")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def quiet():
    with stimg.settings.override(progress=False, device="cpu"):
        yield


@pytest.fixture
def slide_hex():
    return stimg.datasets.synthetic("visium", n_obs=300, n_genes=60, seed=0)


@pytest.fixture
def slide_square():
    return stimg.datasets.synthetic("square", n_obs=300, n_genes=60, seed=0)


@pytest.fixture
def slide_free():
    return stimg.datasets.synthetic("free", n_obs=300, n_genes=60, seed=0)


def prepared(platform="visium", **changes):
    slide = stimg.datasets.synthetic(platform, **({"n_obs": 300, "n_genes": 60, "seed": 0} | changes))
    stimg.pp.to_lattice(slide)
    stimg.pp.select_genes(slide, n_genes=40)
    return slide


@pytest.fixture
def make_slide():
    return prepared


@pytest.fixture(scope="session")
def trained():
    patches = stimg.pp.to_patches(prepared(), size=8, n_channels=24)
    config = stimg.nn.Config(dim=32, encoder_layers=1, heads=2, n_programs=8)
    with stimg.settings.override(progress=False):
        return stimg.tl.pretrain(patches, config, max_epochs=2, device="cpu", rng=0)


@pytest.fixture(scope="session")
def real_data_dir():
    folder = os.environ.get("STIMG_DATA_DIR")
    path = Path(folder) if folder else Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("real slides not found: set STIMG_DATA_DIR")
    return path


@pytest.fixture(scope="session")
def real_cases_dir(real_data_dir):
    """Small real files of other people's, beside the real slides."""
    path = real_data_dir.parent / "cases"
    if not path.is_dir():
        pytest.skip("real files not found: expected the folder 'cases' beside $STIMG_DATA_DIR")
    return path
