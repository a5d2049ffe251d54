from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import stimg
from stimg import _cli
from stimg._cli import OUTPUTS, main

FAST = ["--max-epochs", "1", "--max-seconds", "20"]


@pytest.fixture(autouse=True)
def _no_progress():
    with stimg.settings.override(progress=False, device="cpu"):
        yield


@pytest.fixture
def slide_file(tmp_path):
    slide = stimg.datasets.synthetic("visium", n_domains=3, n_genes=60, n_obs=400, seed=1)
    path = tmp_path / "slide.h5ad"
    slide.write_h5ad(path)
    return path


def test_demo_writes_its_files_and_says_what_is_next(tmp_path, slide_file, capsys):
    out = tmp_path / "a" / "b"
    assert main(["demo", "--out", str(out), "--slide", str(slide_file), *FAST]) == 0
    assert sorted(p.name for p in out.iterdir()) == sorted(OUTPUTS.values())
    done = ad.read_h5ad(out / "embedded.h5ad")
    assert done.obsm["X_stimg"].shape[0] == done.n_obs
    assert np.isfinite(done.obsm["X_stimg"]).all()
    assert done.obs["stimg_domain"].nunique() == done.obs["domain"].nunique() == 3
    assert done.obsm["stimg"].shape[0] == done.n_obs
    assert (done.X != ad.read_h5ad(slide_file).X).nnz == 0
    for name in ("domains.png", "reconstruction.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "ARI" in printed
    assert "Go on in Python" in printed

    again = tmp_path / "again"
    weights = str(out / "model.safetensors")
    arguments = ["demo", "--out", str(again), "--slide", str(slide_file), "--model", weights, "--n-domains", "2"]
    assert main(arguments) == 0
    assert "training" not in capsys.readouterr().out
    same = ad.read_h5ad(again / "embedded.h5ad")
    np.testing.assert_array_equal(same.obsm["X_stimg"], done.obsm["X_stimg"])
    assert same.obs["stimg_domain"].nunique() == 2


def test_default_slide_is_synthetic_and_zarr_is_read_too(tmp_path, slide_file):
    args = _cli._parser().parse_args(["demo"])
    slide, origin = _cli._read_slide(args)
    assert "synthetic" in origin
    assert slide.obs["domain"].nunique() > 1
    stored = ad.read_h5ad(slide_file)
    stored.write_zarr(tmp_path / "slide.zarr")
    args = _cli._parser().parse_args(["demo", "--slide", str(tmp_path / "slide.zarr")])
    read, _ = _cli._read_slide(args)
    assert read.shape == stored.shape


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("slide.csv", b"a,b", "ends in .h5ad or .zarr"),
        ("absent.h5ad", None, "no slide at"),
        ("broken.h5ad", b"\x89HDF\r\n\x1a\n cut short", "cannot read"),
        ("broken.zarr", b"not a store", "cannot read"),
    ],
)
def test_bad_slide_is_one_clear_line(tmp_path, capsys, name, content, expected):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert main(["demo", "--out", str(tmp_path / "out"), "--slide", str(path)]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert name in error
    assert "Traceback" not in error


def test_zarr_that_is_no_slide(tmp_path, capsys):
    zarr = pytest.importorskip("zarr")
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    assert main(["demo", "--out", str(tmp_path / "out"), "--slide", str(tmp_path / "other.zarr")]) == 2
    assert "neither an AnnData nor a SpatialData" in capsys.readouterr().err


def test_unwritable_out_is_found_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_cli, "_read_slide", lambda _: pytest.fail("worked before the folder was checked"))
    (tmp_path / "file").touch()
    assert main(["demo", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "--out DIR" in capsys.readouterr().err


def test_result_never_overwrites_the_slide(tmp_path, slide_file, capsys):
    path = slide_file.rename(tmp_path / "embedded.h5ad")
    before = path.read_bytes()
    assert main(["demo", "--out", str(tmp_path), "--slide", str(path)]) == 2
    assert "overwrite" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_slide_without_coordinates_and_log_data_are_user_errors(tmp_path, slide_file, capsys):
    slide = ad.read_h5ad(slide_file)
    slide.X = slide.X.astype(np.float32).log1p()
    slide.write_h5ad(tmp_path / "log.h5ad")
    assert main(["demo", "--out", str(tmp_path / "out"), "--slide", str(tmp_path / "log.h5ad"), *FAST]) == 2
    assert "log" in capsys.readouterr().err
    bare = ad.AnnData(slide.X, obs=slide.obs[["domain"]], var=slide.var)
    bare.write_h5ad(tmp_path / "bare.h5ad")
    assert main(["demo", "--out", str(tmp_path / "out"), "--slide", str(tmp_path / "bare.h5ad"), *FAST]) == 2
    assert "spatial" in capsys.readouterr().err


def test_bad_weights_are_found_before_the_slide_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_cli, "_read_slide", lambda _: pytest.fail("read the slide first"))
    weights = tmp_path / "foreign.safetensors"
    weights.write_bytes(b"nothing of ours")
    assert main(["demo", "--out", str(tmp_path / "out"), "--model", str(weights)]) == 2
    assert "foreign.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["demo", "--n-domains", "0"], ["demo", "--max-epochs", "x"], ["nothing"]])
def test_bad_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert stimg.__version__ in capsys.readouterr().out
