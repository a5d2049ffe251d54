from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

import stimg
from stimg._slide._slide import Slide
from stimg._slide._values import log_normalise, moments
from stimg._slide._windows import count_occupied, crop, window_starts
from stimg.nn import Config, GeneMAE


def test_moments_and_normalisation_agree_with_dense_arithmetic():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5, (50, 8)).astype(np.float32)
    counts[3] = 0
    found = log_normalise(sparse.csr_array(counts), 1e4)
    totals = np.maximum(counts.sum(1, keepdims=True), 1)
    expected = np.log1p(counts / totals * 1e4)
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-5)
    chosen = log_normalise(sparse.csr_array(counts), 1e4, np.array([5, 2]))
    np.testing.assert_array_equal(chosen.toarray(), found.toarray()[:, [5, 2]])
    mean, std = moments([found])
    np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-4)
    np.testing.assert_allclose(std, expected.std(0), rtol=1e-4)


def test_cells_that_share_a_site_are_summed(make_slide):
    cells = make_slide("free")
    slide = stimg.pp.to_patches(cells, size=8, n_channels=16).slides[0]
    assert slide.n_sites < cells.n_obs
    site = int(np.bincount(slide.obs_site).argmax())
    members = slide.obs_index[slide.obs_site == site]
    counts = np.asarray(cells.X[members].sum(0)).ravel()
    expected = np.log1p(counts / counts.sum() * 1e4)[np.isin(cells.var_names, slide.genes)]
    np.testing.assert_allclose(slide.expression[[site]].toarray()[0], expected, rtol=1e-5)


@pytest.mark.parametrize("scaling", ["zscore", "log"])
def test_one_sparse_product_gives_the_tokens_of_every_patch(make_slide, scaling):
    patches = stimg.pp.to_patches(make_slide(), size=8, n_channels=40, augment=False).with_scaling(scaling)
    slide = patches.slides[0]
    torch.manual_seed(0)
    network = GeneMAE(Config(dim=32, heads=2), len(patches.genes))
    item = patches[3]
    shown = item["present"][:, None] & item["channel_mask"]
    with torch.no_grad():
        direct = network.tokens(item["expression"][None], item["genes"][None], shown[None])[0]
        weight = network.input_layer(torch.arange(len(patches.genes)))[0].numpy()
        scale = network.token_scale(item["channel_mask"].sum()).item()
    every = np.arange(len(slide.genes))
    whole = slide.project(weight[np.searchsorted(patches.genes, slide.genes)], scaling, every) * scale
    sites = crop(slide.grid, patches.window(3)[1:], 8).ravel()
    present = item["present"].numpy()
    np.testing.assert_allclose(direct.numpy()[present], whole[sites[present]], rtol=1e-3, atol=1e-4)


def test_hex_positions_have_six_neighbours_at_one_pitch(make_slide):
    positions = stimg.pp.to_patches(make_slide(), size=8).slides[0].positions()
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    near = (np.abs(distance - 1) < 1e-3).sum(1)
    assert near.max() == 6
    assert np.median(near) == 6
    assert distance[distance > 0].min() > 0.99


def test_windows_cover_the_grid_and_count_its_sites():
    rng = np.random.default_rng(0)
    grid = np.where(rng.random((19, 23)) < 0.6, 1, -1)
    grid[grid == 1] = np.arange((grid == 1).sum())
    corners = window_starts(grid, 6, 4)
    seen = set()
    for corner, count in zip(corners, count_occupied(grid, corners, 6), strict=True):
        window = crop(grid, corner, 6)
        assert (window >= 0).sum() == count
        seen |= set(window[window >= 0].tolist())
    assert seen == set(range(grid.max() + 1))
    np.testing.assert_array_equal(crop(grid, (-2, -3), 6)[2:, 3:], grid[:4, :3])


def test_slides_are_arrays_of_the_nonzeros():
    slide = Slide(
        name="a",
        expression=sparse.csr_array(np.eye(3, dtype=np.float32)),
        genes=np.array(["a", "b", "c"]),
        weights=np.ones(3, np.float32),
        sites=np.array([[0, 0], [0, 1], [1, 0]], np.int32),
        obs_site=np.arange(3),
        obs_index=np.arange(3),
        kind="square",
    )
    np.testing.assert_array_equal(slide.grid, [[0, 1], [2, -1]])


@pytest.mark.parametrize("platform", ["visium", "square", "free"])
def test_symmetries_keep_distances_and_the_order_of_sites(make_slide, platform):
    slide = stimg.pp.to_patches(make_slide(platform), size=8).slides[0]
    turned = list(slide.symmetries())
    assert len(turned) == 4
    np.testing.assert_array_equal(turned[0].sites, slide.sites)
    distances = np.linalg.norm(slide.positions()[:, None] - slide.positions()[None], axis=-1)
    layouts = set()
    for one in turned:
        found = np.linalg.norm(one.positions()[:, None] - one.positions()[None], axis=-1)
        np.testing.assert_allclose(found, distances, atol=1e-4)
        assert one.sites.min() == 0
        assert one.sites.dtype == np.int32
        layouts.add((one.positions() - one.positions().min(0)).tobytes())
    assert len(layouts) == 4
