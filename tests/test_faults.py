"""What goes wrong outside: processes are killed, disks fill up, files are damaged, networks break off."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import threading
import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import hostile, unpacked
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
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


def test_a_file_written_anew_is_read(weights, trained):
    """Otherwise the tests below would pass for the wrong reason."""
    hostile(weights)
    assert torch.equal(Model.load(weights).network.gene_in, trained.network.gene_in)
    hostile(weights, card={"name": "other", "note": {"of": ["the", "user"]}})
    assert Model.load(weights).card["name"] == "other"


HOSTILE = [
    ({"config": {"dim": 2**40}}, "damaged"),
    ({"config": {"dim": 10**30}}, "damaged"),
    ({"config": {"dim": -32}}, "`dim`"),
    ({"config": {"dim": 64}}, "do not fit its configuration"),
    ({"config": {"encoder_layers": 10**9}}, "more layers"),
    ({"config": {"encoder_layers": 0}}, "`encoder_layers`"),
    ({"config": {"dim": "wide"}}, "`dim`"),
    ({"config": {"dim": None}}, "`dim`"),
    ({"config": {"dim": 32.0}}, "`dim`"),
    ({"config": {"heads": 0}}, "`heads`"),
    ({"config": {"heads": 3}}, "`dim` to be a multiple of 4 x `heads`"),
    ({"config": {"mlp_ratio": 1e300}}, "damaged"),
    ({"config": {"mlp_ratio": 1e999}}, "`mlp_ratio`"),
    ({"config": {"learning_rate": 10**400}}, "`learning_rate`"),
    ({"config": {"warmup": float("nan")}}, "`warmup`"),
    ({"config": {"token": ["bound"]}}, "`token`"),
    ({"config": {"unknown": 1}}, "Unknown configuration"),
    ({"config": []}, "damaged"),
    ({"config": None}, "damaged"),
    ({"genes": "ABC"}, "'genes'"),
    ({"genes": []}, "'genes'"),
    ({"genes": [1, 2]}, "'genes'"),
    ({"genes": None}, "'genes'"),
    ({"genes": {"a": 1}}, "'genes'"),
    ({"genes": ["A" * 20_000_000, *(f"G{i}" for i in range(39))]}, "'genes'|header"),
    ({"genes": ["A" * 5_000_000, *(f"G{i}" for i in range(39))]}, "'genes': at most 256 characters, found 40 with up"),
    ({"genes": ["", *(f"G{i}" for i in range(39))]}, "'genes'"),
    ({"genes": ["G1", *(f"G{i}" for i in range(39))]}, "gene twice"),
    ({"genes": ["G\ud800", *(f"G{i}" for i in range(39))]}, "'genes'"),
    ({"genes": ["G\0", *(f"G{i}" for i in range(39))]}, "'genes'"),
    ({"genes": [f"G{i}" for i in range(41)]}, "do not fit its configuration"),
    ({"genes": [f"G{i}" for i in range(39)]}, "do not fit its configuration"),
    ({"card": {"size": 0}}, "0 as 'size'"),
    ({"card": {"size": -8}}, "-8 as 'size'"),
    ({"card": {"size": 30_000}}, "30000 as 'size'"),
    ({"card": {"size": 10**400}}, "'size'"),
    ({"card": {"size": 8.0}}, "'size'"),
    ({"card": {"size": True}}, "'size'"),
    ({"card": {"size": "16"}}, "'size'"),
    ({"card": {"size": 2, "unit": "spot"}}, "2 as 'size'"),
    ({"card": {"target_sum": -1.0}}, "'target_sum'"),
    ({"card": {"target_sum": 0}}, "'target_sum'"),
    ({"card": {"target_sum": 1e300}}, "'target_sum'"),
    ({"card": {"target_sum": float("nan")}}, "'target_sum'"),
    ({"card": {"target_sum": float("inf")}}, "'target_sum'"),
    ({"card": {"labels": ["a"] * 1000}}, "'labels'"),
    ({"card": {"labels": [f"a{i}" for i in range(1000)]}}, "do not fit its configuration"),
    ({"card": {"labels": [1]}}, "'labels'"),
    ({"card": {"labels": 3}}, "its card .*'labels'"),
    ({"card": {"unit": None}}, "'unit'"),
    ({"card": {"unit": ["patch"]}}, "'unit'"),
    ({"card": {"unit": "cell"}}, "'unit'"),
    ({"card": {"genes_per_slide": 0}}, "'genes_per_slide'"),
    ({"card": {"genes_per_slide": -5}}, "'genes_per_slide'"),
    ({"card": {"genes_per_slide": 10**9}}, "'genes_per_slide'"),
    ({"card": {"genes_per_slide": 2.5}}, "'genes_per_slide'"),
    ({"card": {"n_sites": "many"}}, "'n_sites'"),
    ({"card": {"n_channels": 0}}, "'n_channels'"),
    ({"card": {"kinds": ["round"]}}, "'kinds'"),
    ({"card": {"slides": "one"}}, "'slides'"),
    ({"card": {"slides": [None]}}, "'slides'"),
    ({"card": {"name": 3}}, "'name'"),
    ({"card": {"name": "n" * 1_000_000}}, "'name'"),
    ({"card": {"name": "\ud800"}}, "'name'"),
    ({"card": {"init": "of another"}}, "'init'"),
    ({"card": {"seed": -1}}, "'seed'"),
    ({"card": {"licence": ["all"]}}, "'licence'"),
    ({"card": []}, "its card"),
    ({"card": None}, "its card"),
    ({"history": 3}, "history"),
    ({"history": [3]}, "history"),
    ({"history": [{"val_loss": "low"}]}, "'val_loss'"),
    ({"history": [{"train_loss": [1]}]}, "'train_loss'"),
    ({"history": [{"epoch": 10**400}]}, "'epoch'"),
    ({"format": "new"}, "'format'"),
    ({"format": 0}, "'format'"),
    ({"format": True}, "'format'"),
    ({"format": float("inf")}, "'format'"),
    ({"format": 10**6}, "Update stimg"),
    ({"kind": ["patches"]}, "Expected weights"),
    ({"kind": "other"}, "Expected weights"),
    ({"tensors": {"gene_bias": lambda t: t * torch.nan}}, "NaN or infinite weights in ..gene_bias"),
    ({"tensors": {"gene_in": lambda t: t / 0}}, "NaN or infinite weights in ..gene_in"),
    ({"tensors": {"gene_in": lambda t: t[:-1].clone()}}, "wrong shape ..gene_in"),
    ({"tensors": {"gene_in": lambda t: t[None].clone()}}, "wrong shape ..gene_in"),
    ({"tensors": {"gene_in": lambda t: t.double()}}, "types .*gene_in.*F64"),
    ({"tensors": {"gene_in": lambda t: t.int()}}, "types .*gene_in.*I32"),
    ({"tensors": {"gene_in": lambda t: t.bool()}}, "types .*gene_in.*BOOL"),
    ({"tensors": {"gene_in": lambda _: None}}, "missing ..gene_in"),
    ({"tensors": {"more": lambda _: torch.zeros(3)}}, "unexpected ..more"),
]


@pytest.mark.parametrize(("changes", "found"), HOSTILE, ids=lambda value: str(value)[:60])
def test_absurd_metadata_and_tensors_are_refused_by_name(weights, changes, found):
    hostile(weights, **changes)
    with pytest.raises(ValueError, match=found) as error:
        Model.load(weights)
    assert weights.name in str(error.value)
    assert len(str(error.value)) < 2000


def test_metadata_that_are_deep_or_long_are_refused(weights):
    tensors, _ = unpacked(weights)
    for text, found in (("[" * 100_000, "cannot be read"), ("1" * 5000, "cannot be read"), (" " * 2**24, "header has")):
        save_file(tensors, weights, metadata={"stimg": text})
        with pytest.raises(ValueError, match=found):
            Model.load(weights)


BOUNDED = """
import resource, sys
import stimg
stimg.models.load("stimg-tiny")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29,) * 2)
for path in sys.argv[1:]:
    try:
        stimg.models.Model.load(path)
        print("loaded")
    except ValueError as error:
        print(str(error)[:200])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_absurd_sizes_take_no_memory(weights, tmp_path):
    huge = [
        {"config": {"dim": 2**20, "heads": 2}},
        {"config": {"n_programs": 2**40, "dim": 2**40}},
        {"config": {"mlp_ratio": 1e9}},
        {"genes": ["A" * 12_000_000, *(f"G{i}" for i in range(39))]},
        {"card": {"labels": [f"l{i}" for i in range(200_000)]}},
    ]
    paths = []
    for i, changes in enumerate(huge):
        paths.append(tmp_path / f"{i}.safetensors")
        paths[-1].write_bytes(weights.read_bytes())
        hostile(paths[-1], **changes)
    found = run(BOUNDED, *paths)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.count("is damaged") == len(huge), found.stdout


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(data=st.data())
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_fields_are_refused_by_name_or_harmless(trained, tmp_path, data):
    """Either the file is refused with an error that names the field, or its model gives a finite embedding."""
    path = tmp_path / "odd.safetensors"
    path.unlink(missing_ok=True)
    trained.save(path)
    part = data.draw(st.sampled_from(["card", "config"]))
    known = sorted((trained.card if part == "card" else trained.config.to_dict()).keys())
    name = data.draw(st.sampled_from(known))
    value = data.draw(ODD)
    hostile(path, **{part: {name: value}})
    try:
        model = Model.load(path)
    except ValueError as error:
        wrong = rf"['`]{name}['`]|{name}=|do not fit its configuration|more layers|program_loss"
        assert re.search(wrong, str(error)), error
        return
    slide = stimg.datasets.synthetic("visium", n_obs=60, n_genes=60)
    stimg.pp.to_lattice(slide)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of genes, if `genes_per_slide` is another number
        stimg.tl.embed(slide, model, symmetric=False)
    assert np.isfinite(slide.obsm["X_stimg"]).all()
    assert "M parameters" in repr(model)
    model.save(path, overwrite=True)


def test_what_could_not_be_read_again_is_not_written(trained, tmp_path):
    path = tmp_path / "model.safetensors"
    for card, found in (
        ({"size": 30_000}, "30000 as 'size'"),
        ({"note": {1, 2}}, "set is not JSON serializable"),
        ({"name": None}, "'name'"),
    ):
        with pytest.raises(ValueError, match=f"Cannot save the model.*{found}"):
            replace(trained, card=trained.card | card).save(path)
    network = deepcopy(trained.network)
    network.gene_bias.data[3] = 1e6
    replace(trained, network=network).save(path)
    with pytest.raises(ValueError, match="gene_bias.*too large for float16"):
        replace(trained, network=network).save(path, overwrite=True, half=True)
    network.gene_bias.data[3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite weights in ..gene_bias"):
        replace(trained, network=network).save(path, overwrite=True)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


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
