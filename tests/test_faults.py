"""What goes wrong outside: processes are killed, disks fill up, files are damaged, networks break off."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import stimg
from stimg.models import Model


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(Path(stimg.__file__).parents[1]), "STIMG_PROGRESS": "no"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def weights(trained, tmp_path):
    trained.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


TRAIN = """
import os, resource, signal, sys
import stimg
from lightning import Callback

class Fault(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 3:
            if sys.argv[2] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if sys.argv[2] == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

slide = stimg.datasets.synthetic("visium", n_obs=300, n_genes=60)
stimg.pp.to_lattice(slide)
stimg.pp.select_genes(slide, n_genes=40)
patches = stimg.pp.to_patches(slide, size=8, n_channels=24)
config = stimg.nn.Config(dim=32, encoder_layers=1, heads=2, n_programs=8)
model = stimg.tl.pretrain(
    patches, config, max_epochs=4, device="cpu", checkpoint_dir=sys.argv[1], callbacks=[Fault()],
    resume=sys.argv[3] if len(sys.argv) > 3 else None,
)
model.save(os.path.join(sys.argv[1], "model.safetensors"))
"""


@pytest.mark.slow
def test_training_killed_at_once_and_resumed_is_training_without_a_break(tmp_path):
    whole = run(TRAIN, tmp_path / "whole", "")
    assert whole.returncode == 0, whole.stderr
    killed = run(TRAIN, tmp_path / "killed", "kill")
    assert killed.returncode == -signal.SIGKILL
    resumed = run(TRAIN, tmp_path / "killed", "", tmp_path / "killed" / "last.ckpt")
    assert resumed.returncode == 0, resumed.stderr
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process's files are those of Unix")
def test_a_disk_that_fills_up_leaves_the_checkpoint_before(tmp_path):
    full = run(TRAIN, tmp_path, "full")
    assert full.returncode == 1
    assert "File too large" in full.stderr
    resumed = run(TRAIN, tmp_path, "", tmp_path / "last.ckpt")
    assert resumed.returncode == 0, resumed.stderr


SAVE = """
import resource, sys
import stimg
model = stimg.models.load(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
model.save(sys.argv[1], overwrite=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process's files are those of Unix")
def test_saving_on_a_full_disk_keeps_the_old_file(weights):
    before = weights.read_bytes()
    found = run(SAVE, weights)
    assert found.returncode == 1
    assert "File too large" in found.stderr
    assert weights.read_bytes() == before
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]


def test_every_flipped_bit_is_found(weights):
    """In the header, the metadata and the tensors alike."""
    data = bytearray(weights.read_bytes())
    rng = np.random.default_rng(0)
    header = struct.unpack("<Q", data[:8])[0] + 8
    places = np.concatenate([np.arange(8), rng.integers(8, header, 60), rng.integers(header, len(data), 30)])
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.integers(8)
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged|truncated|not a stimg model|Update stimg|Expected weights"):
            Model.load(weights)


def hostile(weights: Path, **changes) -> None:
    """Write the file anew with other metadata, whose checksum an attacker leaves out."""
    tensors = load_file(weights)
    with weights.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        content = json.loads(json.loads(file.read(size))["__metadata__"]["stimg"])
    for name, value in changes.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    save_file(tensors, weights, metadata={"stimg": json.dumps(content)})


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"dim": 2**40}},
        {"config": {"dim": 10**30}},
        {"config": {"encoder_layers": 10**9}},
        {"config": {"dim": "wide"}},
        {"config": {"heads": 0}},
        {"config": {"mlp_ratio": 1e300}},
        {"config": {"unknown": 1}},
        {"config": []},
        {"genes": "ABC"},
        {"genes": []},
        {"genes": [1, 2]},
        {"card": {"size": 0}},
        {"card": {"size": "16"}},
        {"card": {"target_sum": -1.0}},
        {"card": {"labels": ["a"] * 1000}},
        {"card": {"unit": None}},
        {"history": 3},
        {"history": [{"val_loss": "low"}]},
        {"format": "new"},
        {"format": 10**6},
    ],
    ids=str,
)
def test_hostile_metadata_is_refused_without_a_large_allocation(weights, changes):
    hostile(weights, **changes)
    with pytest.raises(ValueError, match="damaged|Update stimg|Expected|Unknown configuration"):
        Model.load(weights)


def header_of(length: int, header: dict) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", length or len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        header_of(2**60, {}),
        header_of(0, {"a": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64 - 1]}}),
        header_of(0, {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**40]}}),
        header_of(0, {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}) + bytes(16),
        b"\x08" + bytes(7) + b"\xff" * 8,
        b"",
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_headers_that_promise_more_than_there_is(tmp_path, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="truncated"):
        Model.load(path)


def test_pickles_are_not_read(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="not a safetensors file"):
        Model.load(path)
    assert not (tmp_path / "owned").exists()


FETCH = """
import sys
import stimg
from stimg.datasets._fetch import fetch
stimg.settings.cachedir = sys.argv[2]
print(fetch(sys.argv[1], "test", "slide").stat().st_size)
"""


@pytest.mark.slow
def test_two_processes_that_fill_one_cache_fetch_once(tmp_path):
    content = os.urandom(3_000_000)
    asked = []

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Range"))
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            for start in range(0, len(content), 300_000):
                self.wfile.write(content[start : start + 300_000])
                threading.Event().wait(0.2)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/slide.bin"
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(run(FETCH, address, tmp_path / "cache"))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.shutdown()
        server.server_close()
    assert [one.stdout.strip() for one in found] == [str(len(content))] * 3, [one.stderr[-500:] for one in found]
    assert asked == [None]
    path = tmp_path / "cache" / "datasets" / "test" / "slide.bin"
    assert path.read_bytes() == content
