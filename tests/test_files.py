"""Files that are written whole: modes, links, several writers, and what processes that were killed leave behind."""

from __future__ import annotations

import gc
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import stimg
from stimg._files import LOCK, check_new_path, claim_folder, written_whole
from stimg._input import _rows

needs_unix = pytest.mark.skipif(sys.platform == "win32", reason="modes, links and signals of Unix")


@pytest.fixture
def folder(tmp_path):
    before = os.umask(0o022)
    yield tmp_path
    os.umask(before)


def write(path, text="new", **how):
    with written_whole(path, **how) as unfinished:
        unfinished.write_text(text)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@needs_unix
@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_files_have_the_mode_that_the_user_wants(folder, mask, expected):
    os.umask(mask)
    for overwrite in (True, False):
        write(folder / f"new{overwrite}", overwrite=overwrite)
        assert mode(folder / f"new{overwrite}") == expected


@needs_unix
@pytest.mark.parametrize("old", [0o600, 0o640, 0o666, 0o755])
def test_files_that_are_replaced_keep_their_mode(folder, old):
    path = folder / "file"
    path.write_text("old")
    path.chmod(old)
    write(path)
    assert path.read_text() == "new"
    assert mode(path) == old
    assert [one.name for one in folder.iterdir()] == ["file"]


@needs_unix
def test_links_stay_and_what_they_point_to_is_replaced(folder):
    (folder / "store").mkdir()
    target, link, middle = folder / "store" / "target", folder / "link", folder / "middle"
    target.write_text("old")
    middle.symlink_to(Path("store") / "target")
    link.symlink_to(middle)
    write(link)
    assert link.is_symlink()
    assert middle.is_symlink()
    assert target.read_text() == "new"
    target.unlink()
    with pytest.raises(NotADirectoryError, match="Create .*none"):
        middle.unlink()
        middle.symlink_to(folder / "none" / "target")
        check_new_path(link)
    middle.unlink()
    middle.symlink_to(target)
    write(link, overwrite=False)  # a link to nothing
    assert target.read_text() == "new"
    assert link.is_symlink()


def test_models_are_saved_through_links_and_keep_modes(trained, folder):
    path = folder / "model.safetensors"
    trained.save(path)
    assert mode(path) == 0o644
    path.chmod(0o640)
    (folder / "link").symlink_to(path)
    trained.save(folder / "link", overwrite=True)
    assert (folder / "link").is_symlink()
    assert mode(path) == 0o640
    with pytest.raises(FileExistsError, match="overwrite=True"):
        trained.save(folder / "link")
    for overwrite, kind in ((True, IsADirectoryError), (False, FileExistsError)):
        with pytest.raises(kind, match="found the folder"):
            trained.save(folder, overwrite=overwrite)


@pytest.mark.parametrize("links", [True, False])
def test_of_two_savers_one_fails(folder, monkeypatch, links):
    if not links:

        def refuse(*_):
            raise PermissionError("no hard links here")

        monkeypatch.setattr("os.link", refuse)
    path = folder / "file"
    with (
        pytest.raises(FileExistsError, match="by another process meanwhile"),
        written_whole(path, overwrite=False) as slow,
    ):
        slow.write_text("slow")
        write(path, "fast", overwrite=False)
    assert path.read_text() == "fast"
    assert [one.name for one in folder.iterdir()] == ["file"]


SAVERS = """
import sys
import threading
from pathlib import Path
import stimg
model = stimg.models.load("stimg-tiny")
print("ready", flush=True)
sys.stdin.readline()
try:
    model.save(sys.argv[1])
    print("saved")
except FileExistsError as error:
    print("exists")
"""


def start(program, *arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(stimg.__file__).parents[1]), "STIMG_PROGRESS": "no"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], env=environment, **pipes)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


@pytest.mark.slow
def test_of_two_processes_that_save_at_once_one_succeeds(folder):
    processes = [start(SAVERS, folder / "model.safetensors") for _ in range(2)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    found = [process.communicate(timeout=100)[0] for process in processes]
    assert sorted(found) == ["exists\n", "saved\n"]
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    stimg.models.load(folder / "model.safetensors")


def test_a_folder_is_not_put_over_another(folder):
    path = folder / "map.zarr"
    with pytest.raises(FileExistsError, match="meanwhile"), written_whole(path, overwrite=False) as unfinished:
        unfinished.mkdir()
        path.mkdir()
        (path / "mine").touch()
    assert (path / "mine").exists()
    assert [one.name for one in folder.iterdir()] == ["map.zarr"]


def test_a_full_disk_is_named(folder):
    if not Path("/dev/full").exists():
        pytest.skip("needs the device /dev/full")
    with pytest.raises(OSError, match=r"No space left.*file"), written_whole(folder / "file"):
        Path("/dev/full").write_text("too much")
    assert not list(folder.iterdir())


def test_home_is_found_in_paths(folder, trained, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    trained.save("~/model.safetensors")
    trained.save(Path("~") / "other.safetensors")
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "other.safetensors"}
    for source in ("~/model.safetensors", Path("~/model.safetensors")):
        assert stimg.models.load(source).sha256 == trained.sha256
        assert type(trained).load(source).sha256 == trained.sha256
    slide = stimg.datasets.synthetic("visium", n_obs=120, n_genes=60, seed=0)
    stimg.pp.to_lattice(slide)
    stimg.pp.select_genes(slide, n_genes=20)
    stimg.tl.embed(slide, "~/model.safetensors")
    stored = stimg.datasets.synthetic("visium", n_obs=50, n_genes=20, path="~/slide.h5ad")
    assert Path(stored.filename) == folder / "slide.h5ad"
    stored.file.close()
    with pytest.raises(FileNotFoundError, match=str(folder)):
        stimg.tl.pretrain(stimg.pp.to_patches(slide, size=8), resume="~/none.ckpt")
    with stimg.settings.override(cachedir="~/cache"):
        assert stimg.settings.cachedir == folder / "cache"
    for unknown in ("~nobody-has-this-name/cache", ""):
        with pytest.raises(ValueError, match="cachedir"):
            stimg.settings.cachedir = unknown


def test_only_folders_of_the_dead_are_swept(folder):
    alive, remove = claim_folder(folder, ".work.")
    dead = folder / ".work.dead"
    dead.mkdir()
    (dead / LOCK).touch()
    (dead / "data").write_text("half")
    mine = folder / ".work.mine"
    mine.mkdir()
    (mine / "data").write_text("of the user")
    other, remove_other = claim_folder(folder, ".work.")
    assert set(folder.iterdir()) == {alive, other, mine}
    remove()
    remove_other()
    assert set(folder.iterdir()) == {mine}


def test_disks_without_locks_work_and_are_not_swept(folder, monkeypatch):
    dead = folder / ".file.dead"
    dead.mkdir()
    (dead / LOCK).touch()

    def refuse(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr("stimg._files._OwnLock.acquire", refuse)
    write(folder / "file")
    assert {path.name for path in folder.iterdir()} == {"file", ".file.dead"}


def test_a_store_may_be_removed_by_another_thread(folder):
    work, remove = claim_folder(folder, ".work.")
    thread = threading.Thread(target=remove)
    thread.start()
    thread.join()
    assert not list(folder.iterdir())
    assert not [one for one in Path("/proc/self/fd").glob("*") if str(work) in os.path.realpath(one)]


def test_a_cache_that_cannot_be_written_to_is_named(folder):
    with stimg.settings.override(cachedir=folder / "cache"):
        (folder / "cache").touch()
        with pytest.raises(OSError, match="Set `stimg.settings.cachedir`"):
            _rows.collect_rows([sparse.csr_array(np.eye(3))], 3, mapped=True)


@needs_unix
def test_a_forked_child_leaves_what_is_its_parents(folder):
    matrix = sparse.csr_array(np.eye(5, dtype=np.float32))
    with stimg.settings.override(cachedir=folder):
        mapped = _rows.collect_rows([matrix], 5, mapped=True)
    store = folder / "expression"
    (held,) = store.iterdir()
    child = os.fork()
    if not child:
        code = 1
        try:
            del mapped
            gc.collect()  # runs the finalizer, in which the child must do nothing
            claim_folder(store, "rows.")[1]()  # nor does its sweep
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (held / "data").exists()
    other, remove = claim_folder(store, "rows.")  # the lock is still held
    assert held.exists()
    remove()
    assert (mapped != matrix).nnz == 0
    del mapped
    gc.collect()
    assert not list(store.iterdir())


STORE = """
import os, sys
import numpy as np
from scipy import sparse
import stimg
from stimg._input import _rows
stimg.settings.cachedir = sys.argv[1]
mapped = _rows.collect_rows([sparse.csr_array(np.eye(9))], 9, mapped=True)
if "fork" in sys.argv and not os.fork():
    sys.exit()  # a child that ends in the usual way, finalizers included
if "fork" in sys.argv:
    os.wait()
print("ready", flush=True)
sys.stdin.readline()
print(mapped.data.sum(), len(os.listdir(stimg.settings.cachedir / "expression")))
"""


@needs_unix
@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_what_killed_processes_left_in_the_cache_is_swept(folder, by):
    alive = start(STORE, folder, "fork")
    killed = start(STORE, folder)
    killed.send_signal(by)
    killed.communicate(timeout=100)
    assert killed.returncode == -by
    assert len(list((folder / "expression").iterdir())) == 2
    last = start(STORE, folder)
    assert len(list((folder / "expression").iterdir())) == 2  # of `alive` and of `last`
    assert last.communicate("\n", timeout=100)[0] == "9.0 2\n"
    assert alive.communicate("\n", timeout=100)[0] == "9.0 1\n"
    assert not list((folder / "expression").iterdir())


MAP = """
import os, signal, sys
import stimg
from stimg._apply import _dense, _dense_map

def blocks(*arguments, old=_dense_map.dense_blocks, **options):
    for i, block in enumerate(old(*arguments, **options)):
        if i == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield block

_dense.CORE = _dense_map.CORE = 32
if "kill" in sys.argv:
    _dense_map.dense_blocks = blocks
slide = stimg.datasets.synthetic_histology(n_rows=5, n_cols=5, n_genes=12)
stimg.pp.to_lattice(slide, "st")
model = stimg.models.ExpressionModel.load(sys.argv[1])
stimg.tl.predict_expression(slide, model, dense=list(model.genes[:2]), map_path=sys.argv[2], symmetric=False)
"""


@needs_unix
@pytest.mark.slow
def test_a_map_that_was_not_finished_is_not_there(folder):
    import zarr

    slide = stimg.datasets.synthetic_histology(n_rows=5, n_cols=5, n_genes=12)
    stimg.pp.to_lattice(slide, "st")
    patches = stimg.pp.to_image_patches(slide, mpp=4, size=128, n_genes=8)
    stimg.tl.train_expression(patches, max_steps=1).save(folder / "model.safetensors")
    path = folder / "map.zarr"
    environment = os.environ | {"PYTHONPATH": str(Path(stimg.__file__).parents[1]), "STIMG_PROGRESS": "no"}

    def run(*arguments):
        command = [sys.executable, "-c", MAP, str(folder / "model.safetensors"), str(path), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    assert run("kill").returncode == -signal.SIGKILL
    assert not path.exists()
    (unfinished,) = folder.glob(".map.zarr.*")
    values = zarr.open_array(unfinished / "map.zarr", mode="r")[:]
    assert np.isfinite(values).any()
    assert np.isnan(values).any()  # what was not written is not zero
    assert run().returncode == 0
    assert np.isfinite(zarr.open_array(path, mode="r")[:]).all()
    assert {one.name for one in folder.iterdir()} == {"model.safetensors", "map.zarr"}
    before = sorted(path.rglob("*"))
    again = run()
    assert again.returncode == 1
    assert "already exists" in again.stderr
    assert sorted(path.rglob("*")) == before
