"""Training in two processes that talk by gloo, started by torchrun or with what `srun` tells its processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

import stimg

pytestmark = pytest.mark.slow

BEGIN = """
import json, os, sys
import stimg

processes, out = int(sys.argv[1]), sys.argv[2]
together = {"devices": processes, "strategy": "ddp"} if processes > 1 else {}
rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
"""
PRETRAIN = """
slides = [stimg.datasets.synthetic("visium", n_obs=600, n_genes=60, seed=seed) for seed in (0, 1)]
for slide in slides:
    stimg.pp.to_lattice(slide)
    stimg.pp.select_genes(slide, n_genes=40)
patches = stimg.pp.to_patches(slides, size=8, n_channels=24, groups=["a", "b"] if "groups" in sys.argv else None)
config = stimg.nn.Config(dim=32, encoder_layers=1, heads=2, n_programs=8, batch_size=16 // processes)
model = stimg.tl.pretrain(
    patches, config, max_epochs=4, device="cpu", rng=0, checkpoint_dir=out, trainer_kwargs=together,
    max_time="00:01:00:00",
)
"""
ALIGN = """
slide = stimg.datasets.synthetic_histology(n_rows=8, n_cols=8, n_genes=12, seed=0)
stimg.pp.to_lattice(slide, platform="st")
patches = stimg.pp.to_image_patches(slide, names=["one"])
config = stimg.nn.AlignConfig(dim=8, hidden=16, dropout=0.0, batch_size=32 // processes)
model = stimg.tl.align(
    patches, config, max_epochs=3, crop_size=64, val_fraction=0, device="cpu", rng=0, trainer_kwargs=together
)
"""
TUNE = """
slide = stimg.datasets.synthetic_histology(n_rows=8, n_cols=8, n_genes=12, seed=0)
stimg.pp.to_lattice(slide, platform="st")
stimg.pp.select_genes(slide, n_genes=12)
small = stimg.nn.Config(dim=16, encoder_layers=1, heads=2, n_programs=4)
spatial = stimg.tl.pretrain(stimg.pp.to_patches(slide, size=4), small, max_steps=1, val_fraction=0, device="cpu", rng=0)
patches = stimg.pp.to_image_patches(slide, names=["one"], spatial_model=spatial)
config = stimg.nn.AlignConfig(dim=8, hidden=16, dropout=0.0, batch_size=32 // processes, gene_encoder="tuned")
model = stimg.tl.align(
    patches, config, max_epochs=3, crop_size=64, val_fraction=0, device="cpu", rng=0, trainer_kwargs=together
)
"""
EXPRESSION = """
slide = stimg.datasets.synthetic_histology(n_rows=12, n_cols=12, n_genes=12, seed=0)
stimg.pp.to_lattice(slide, platform="st")
patches = stimg.pp.to_image_patches(slide, size=128, stride=64, n_genes=8)
# correlations are over each process's own batch, and colours change at random: both off, so that losses compare
config = stimg.nn.DenseConfig(batch_size=8 // processes, dropout=0.0, pearson_loss=0.0, colour_jitter=0.0)
model = stimg.tl.train_expression(patches, config, max_epochs=3, device="cpu", rng=0, trainer_kwargs=together)
"""
END = """
if processes > 1:
    from torch import distributed
    assert (distributed.get_rank(), distributed.get_world_size()) == (int(rank), processes)
model.history.to_csv(f"{out}/history-{rank}.csv")
model.save(f"{out}/model-{rank}.safetensors")
"""


def train(folder: Path, program: str, processes: int, *arguments: str, by_slurm: bool = False) -> list:
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(BEGIN + program + END)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {
        "PYTHONPATH": str(Path(stimg.__file__).parents[1]),
        "STIMG_PROGRESS": "no",
        "OMP_NUM_THREADS": "1",
        "USE_LIBUV": "0",
    }
    plain = by_slurm or processes == 1
    command = [*([sys.executable] if plain else start), str(script), str(processes), str(folder), *arguments]

    def run(variables: dict[str, str]) -> None:
        one = environment | variables
        found = subprocess.run(command, env=one, capture_output=True, text=True, timeout=300, check=False)
        assert found.returncode == 0, found.stderr[-3000:]

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(run, slurm_variables(processes) if by_slurm else [{}]))
    return [
        (pd.read_csv(folder / f"history-{rank}.csv"), load_file(folder / f"model-{rank}.safetensors"))
        for rank in range(processes)
    ]


def slurm_variables(processes: int) -> list[dict[str, str]]:
    """What `srun` puts into the environment of each process of a job on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "stimg", "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_NNODES": "1"}
    job |= {"SLURM_NTASKS": str(processes), "SLURM_NTASKS_PER_NODE": str(processes), "SLURM_NODEID": "0"}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [job | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(processes)]


@pytest.mark.parametrize(("groups", "by_slurm"), [(False, False), (True, False), (False, True)])
def test_two_processes_learn_as_one_with_the_double_batch(tmp_path, groups, by_slurm):
    arguments = ["groups"] if groups else []
    ((alone, _),) = train(tmp_path / "one", PRETRAIN, 1, *arguments)
    (first, weights), (second, others) = train(tmp_path / "two", PRETRAIN, 2, *arguments, by_slurm=by_slurm)
    for name, value in weights.items():
        np.testing.assert_array_equal(value, others[name])
    for column in ("train_loss", "val_loss", "lr"):
        np.testing.assert_allclose(first[column], second[column], rtol=1e-6)
        np.testing.assert_allclose(first[column], alone[column], rtol=0.03)
    assert first["train_loss"].iloc[-1] < 0.97 * first["train_loss"].iloc[0]
    assert (tmp_path / "two" / "last.ckpt").is_file()


@pytest.mark.parametrize("program", [ALIGN, TUNE], ids=["genes", "tuned"])
def test_alignment_gathers_the_negatives_of_both(tmp_path, program):
    ((alone, _),) = train(tmp_path / "one", program, 1)
    (first, weights), (second, others) = train(tmp_path / "two", program, 2)
    for name, value in weights.items():
        np.testing.assert_array_equal(value, others[name])
    np.testing.assert_allclose(first["train_loss"], second["train_loss"], rtol=1e-6)
    np.testing.assert_allclose(first["train_loss"], alone["train_loss"], rtol=1e-3)


def test_expression_is_trained_in_two_processes(tmp_path):
    ((alone, _),) = train(tmp_path / "one", EXPRESSION, 1)
    (first, weights), (second, others) = train(tmp_path / "two", EXPRESSION, 2)
    for name, value in weights.items():
        np.testing.assert_array_equal(value, others[name])
    for column in ("train_loss", "val_loss", "lr"):
        np.testing.assert_allclose(first[column], second[column], rtol=1e-6)
    np.testing.assert_allclose(first["train_loss"], alone["train_loss"], rtol=0.1)
