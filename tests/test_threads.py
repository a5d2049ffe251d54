"""Threads and processes beside stimg's own."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

import stimg
from stimg._input._threads import one_thread, threads_apart


def threads():
    return {part["filepath"]: part["num_threads"] for part in threadpool_info()}


def test_limits_end_with_the_block_also_after_an_error():
    before = threads()
    with one_thread(), one_thread():
        assert set(threads().values()) == {1}
    with pytest.raises(RuntimeError, match="inside"), one_thread():
        raise RuntimeError("inside")
    assert threads() == before


def test_torch_gets_its_threads_back():
    number = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threads_apart() as apart:
            assert apart == 3
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(number)


@pytest.mark.parametrize("number", [1, 3])
def test_embeddings_do_not_depend_on_the_number_of_threads(make_slide, trained, number):
    slide, before = make_slide(), torch.get_num_threads()
    stimg.tl.embed(slide, trained, batch_size=2)
    torch.set_num_threads(number)
    try:
        stimg.tl.embed(slide, trained, batch_size=2, key_added="other")
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(slide.obsm["other"], slide.obsm["X_stimg"])


FORK = """
import multiprocessing, sys
import numpy as np, torch, stimg

stimg.settings.progress = False
torch.set_num_threads(2)
slide = stimg.datasets.synthetic("visium", n_obs=300, n_genes=60)
stimg.pp.to_lattice(slide)

def embed(key):
    torch.ones(2**20).sqrt().sum()  # on both threads, which a child does not inherit
    stimg.tl.embed(slide, sys.argv[1], key_added=key, device="cpu")
    stimg.tl.domains(slide, 3, use_rep=key, method="kmeans")
    return slide.obsm[key]

here = embed("here")
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert np.array_equal(pool.apply_async(embed, ("child",)).get(timeout=60), here)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_after_an_embedding_does_not_hang(trained, tmp_path):
    trained.save(tmp_path / "weights.safetensors")
    command = [sys.executable, "-c", FORK, str(tmp_path / "weights.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
