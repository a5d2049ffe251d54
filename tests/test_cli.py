from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
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


def test_results_are_not_overwritten_unasked(tmp_path, slide_file, trained, capsys, monkeypatch):
    trained.save(tmp_path / "mine.safetensors")
    arguments = ["demo", "--out", str(tmp_path / "out"), "--slide", str(slide_file)]
    arguments += ["--model", str(tmp_path / "mine.safetensors"), "--n-domains", "3"]
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "domains.png"
    mine.write_bytes(b"mine")
    mine.chmod(0o640)
    with monkeypatch.context() as patch:
        patch.setattr(_cli, "_read_slide", lambda _: pytest.fail("worked before the folder was checked"))
        assert main(arguments) == 2
    assert "Overwrite with --force" in capsys.readouterr().err
    assert mine.read_bytes() == b"mine"
    assert [path.name for path in mine.parent.iterdir()] == ["domains.png"]

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ad.AnnData, "write_h5ad", full)
        assert main([*arguments, "--force"]) == 1  # after everything else is written under other names
    assert "No space left on device" in capsys.readouterr().err
    assert mine.read_bytes() == b"mine"
    assert [path.name for path in mine.parent.iterdir()] == ["domains.png"]
    assert main([*arguments, "--force"]) == 0
    assert mine.read_bytes().startswith(b"\x89PNG")
    assert mine.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in mine.parent.iterdir()) == sorted(OUTPUTS.values())


def test_a_folder_in_the_place_of_a_result_stays(tmp_path, capsys):
    (tmp_path / "model.safetensors").mkdir()
    assert main(["demo", "--out", str(tmp_path), "--force"]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_home_is_found_in_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = _cli._parser().parse_args(["demo", "--out=~/out", "--slide=~/slide.h5ad"])
    assert (args.out, args.slide) == (tmp_path / "out", tmp_path / "slide.h5ad")
    assert main(["demo", "--out=~/out", "--model=~/none.safetensors"]) == 2
    assert "none.safetensors" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--slide", "{}/folder.h5ad"], "cannot read"),
        (["--slide", "{}/list.zarr"], "cannot read"),
        (["--slide", "{}/other.h5ad"], "cannot read"),
        (["--slide", "{}/" + "a" * 300 + ".h5ad"], "too long"),
        (["--slide", "{}/slide.h5ad", "--layer", "none"], "none"),
        (["--slide", "{}/slide.h5ad", "--table-key", "none", "--model", "{}/folder.h5ad"], "folder.h5ad"),
        (["--model", "{}/slide.h5ad"], "slide.h5ad"),
        (["--model", "https://"], "https://"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, slide_file, capsys, arguments, expected):
    (tmp_path / "folder.h5ad").mkdir()
    (tmp_path / "list.zarr").mkdir()
    (tmp_path / "list.zarr" / ".zgroup").write_text("[]")
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["X"] = np.zeros(3)
        file["obs"] = "text"
    assert main(["demo", "--out", str(tmp_path / "out"), *(part.format(tmp_path) for part in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("stimg demo: error: ")
    assert expected in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), MemoryError(), RecursionError("deep"), OverflowError("large")]
)
def test_any_failure_is_one_line_and_exit_code_1(tmp_path, capsys, monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setattr(_cli, "_read_slide", fail)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.split() == f"stimg demo: error: {error} ({type(error).__name__})".split()
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--max-seconds", "9" * 30], ["--max-epochs", "\u00b2"]])
def test_numbers_out_of_range_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", *arguments])
    assert stopped.value.code == 2
    assert "expected a number" in capsys.readouterr().err


def test_no_arguments_show_the_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "train on one slide" in capsys.readouterr().err


STOP = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore it
import stimg
from stimg import _cli
from stimg._train._history import History

def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)

old = History.on_train_epoch_end
def after_an_epoch(self, *arguments):
    old(self, *arguments)
    interrupt()

if sys.argv[1] == "training":
    History.on_train_epoch_end = after_an_epoch
else:
    _cli._prepare = interrupt
sys.exit(_cli.main(["demo", "--out", sys.argv[2], "--slide", sys.argv[3], "--max-epochs", "9"]))
"""


def stimg_in_a_process(*command):
    environment = os.environ | {"PYTHONPATH": str(Path(stimg.__file__).parents[1]), "STIMG_PROGRESS": "no"}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("where", ["training", "elsewhere"])
def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path, slide_file, where):
    found = stimg_in_a_process("-c", STOP, where, tmp_path / "out", slide_file)
    assert found.returncode == 130
    assert found.stderr.strip().splitlines()[-1] == "stimg demo: interrupted"
    assert "Traceback" not in found.stderr
    assert not list((tmp_path / "out").iterdir())


PIPE = """
import os, subprocess, sys
reads, writes = os.pipe()
os.close(reads)
done = subprocess.run([sys.executable, "-m", "stimg", *sys.argv[1:]], stdout=writes, stderr=subprocess.PIPE, text=True)
print(done.returncode, repr(done.stderr))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["--help"], 0), (["demo"], 1)])
def test_a_broken_pipe_is_silent(tmp_path, slide_file, arguments, code):
    if arguments[0] == "demo":
        arguments = [*arguments, "--out", tmp_path / "out", "--slide", slide_file]
    found = stimg_in_a_process("-c", PIPE, *arguments)
    assert found.stdout.strip() == f"{code} ''", found.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("labels", [np.nan, range(400)], ids=["none", "one of its own for each"])
def test_a_column_that_does_not_hold_domains_does_not_say_how_many(tmp_path, slide_file, capsys, monkeypatch, labels):
    slide = ad.read_h5ad(slide_file)
    slide.obs["domain"] = labels
    slide.write_h5ad(slide_file)
    asked = []
    monkeypatch.setattr(stimg.tl, "domains", lambda _, n_domains, **__: asked.append(n_domains) or 1 / 0)
    assert main(["demo", "--out", str(tmp_path / "out"), "--slide", str(slide_file), *FAST]) == 1
    assert asked == ["auto"]


def test_arguments_that_cannot_be_meant(tmp_path, capsys):
    for arguments, expected in (
        (["--out", ""], "empty text"),
        (["--slide", ""], "empty text"),
        (["--n-domains", "101"], "at most 100"),
    ):
        with pytest.raises(SystemExit):
            main(["demo", *arguments])
        assert expected in capsys.readouterr().err
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.h5ad")
        assert main(["demo", "--out", str(tmp_path / "out"), "--slide", str(tmp_path / "pipe.h5ad")]) == 2
        assert "no slide at" in capsys.readouterr().err
