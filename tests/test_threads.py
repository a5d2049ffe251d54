"""Threads and processes beside stimg's own."""

from __future__ import annotations

import multiprocessing
import os

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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_after_an_embedding_does_not_hang(make_slide, trained):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    slide = make_slide()
    try:
        stimg.tl.embed(slide, trained)
        torch.ones(2**20).sqrt().sum()  # on both threads, which a child does not inherit
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found = pool.apply_async(_embed, (slide, trained)).get(timeout=60)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found, slide.obsm["X_stimg"])


def _embed(slide, model):
    torch.ones(2**20).sqrt().sum()
    stimg.tl.embed(slide, model, key_added="child")
    stimg.tl.domains(slide, 3, use_rep="child", method="kmeans")
    return slide.obsm["child"]
