from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import stimg
from stimg._train._sampler import EpochSampler


@pytest.fixture
def patches(make_slide):
    return stimg.pp.to_patches(make_slide(), size=8, n_channels=24, stride=4)


def equal(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_items_have_the_documented_shapes(patches):
    item = patches[0]
    assert item["expression"].shape == (64, 24)
    assert item["expression"].dtype == torch.float32
    assert item["genes"].unique().numel() == 24
    assert item["present"].float().mean() >= 0.25
    assert not item["expression"][~item["present"]].any()
    assert torch.isfinite(item["positions"]).all()


def test_values_are_those_of_the_slide(make_slide):
    slide = make_slide()
    patches = stimg.pp.to_patches(slide, size=8, n_channels=40, augment=False)
    item = patches[5]
    array = patches.slides[0]
    _, row, col = patches.window(5)
    sites = array.grid[row : row + 8, col : col + 8].ravel()
    names = patches.genes[item["genes"].numpy()]
    for place in np.flatnonzero(sites >= 0)[::7]:
        counts = slide.X[array.obs_index[array.obs_site == sites[place]]].toarray().ravel()
        logged = np.log1p(counts / counts.sum() * 1e4)
        whole = np.log1p(slide.X.toarray() / slide.X.toarray().sum(1, keepdims=True) * 1e4)
        scores = (logged - whole.mean(0)) / np.maximum(whole.std(0), 1e-6)
        expected = [scores[slide.var_names.get_loc(name)] for name in names]
        np.testing.assert_allclose(item["expression"][place].numpy(), np.minimum(expected, 10), rtol=1e-3, atol=1e-3)


def test_same_seed_epoch_and_index_give_the_same_crop(make_slide, patches):
    again = stimg.pp.to_patches(make_slide(), size=8, n_channels=24, stride=4)
    assert equal(patches[3, 2], again[3, 2])
    assert equal(patches[2], patches[0, 2])
    assert not equal(patches[0, 2], patches[1, 2])
    other = stimg.pp.to_patches(make_slide(), size=8, n_channels=24, stride=4, rng=1)
    assert not equal(patches[2], other[2])


def test_workers_crop_the_same_batches(patches):
    sampler = EpochSampler(len(patches), 0)
    sampler.set_epoch(2)
    alone = list(DataLoader(patches, 4, sampler=sampler))
    helped = list(DataLoader(patches, 4, sampler=sampler, num_workers=2))
    assert len(alone) == len(helped)
    assert all(equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_groups_are_drawn_equally_often(make_slide):
    slides = [make_slide(seed=0), make_slide(seed=1), make_slide(n_obs=700, seed=2)]
    patches = stimg.pp.to_patches(slides, size=8, n_channels=24, stride=4, groups=["brain", "brain", "heart"])
    assert stimg.pp.to_patches(slides, size=8, n_channels=24).draw_weights() is None
    sampler = EpochSampler(len(patches), 0, 40, patches.draw_weights())
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == len(set(drawn))
    assert drawn == list(sampler)
    share = np.bincount([patches.window(index)[0] for _, index in drawn]) / len(drawn)
    np.testing.assert_allclose(share, [0.25, 0.25, 0.5], atol=0.04)
    sampler.set_epoch(1)
    assert not set(drawn) & set(sampler)


@pytest.mark.parametrize("platform", ["visium", "square", "free"])
def test_symmetries_keep_distances_between_sites(make_slide, platform):
    plain = stimg.pp.to_patches(make_slide(platform), size=6, n_channels=40, stride=1, augment=False)
    turned = stimg.pp.to_patches(make_slide(platform), size=6, n_channels=40, stride=1)

    def signature(item):
        places, values = item["positions"][item["present"]], item["expression"][item["present"]].sum(1)
        order = values.argsort()
        return values[order], torch.cdist(places[order], places[order], compute_mode="donot_use_mm_for_euclid_dist")

    for index in range(0, len(plain), 9):
        values, distances = signature(plain[index])
        for epoch in range(4):
            found_values, found_distances = signature(turned[epoch, index])
            torch.testing.assert_close(found_values, values, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(found_distances, distances, rtol=1e-4, atol=1e-3)


def test_channels_follow_their_weights(make_slide):
    slide = make_slide()
    slide.var["stimg_weight"] = np.linspace(0.01, 1, slide.n_vars).astype(np.float32)
    patches = stimg.pp.to_patches(slide, size=8, n_channels=10)
    drawn = np.zeros(len(patches.genes))
    for epoch in range(40):
        drawn[patches[epoch, 0]["genes"].numpy()] += 1
    assert drawn[-20:].sum() > 3 * drawn[:20].sum()
    top = stimg.pp.to_patches(slide, size=8, n_channels=10, channel_rule="top")
    assert set(top.genes[top[0]["genes"].numpy()]) == set(slide.var_names[-10:])


def test_panels_may_differ_and_small_ones_are_padded(make_slide):
    small = make_slide(n_genes=20)
    stimg.pp.select_genes(small, n_genes=12)
    patches = stimg.pp.to_patches([make_slide(), small], size=8, n_channels=24, names=["large", "small"])
    index = next(i for i in range(len(patches)) if patches.window(i)[0] == 1)
    item = patches[index]
    assert item["channel_mask"].sum() == 12
    assert not item["expression"][:, ~item["channel_mask"]].any()
    assert set(patches.genes[item["genes"][:12].numpy()]) <= set(small.var_names)
    assert [s.name for s in patches.slides] == ["large", "small"]


def test_held_out_sites_are_never_in_training_windows(patches):
    train, validation = patches.split(0.3)
    for a, b in zip(train.grids, validation.grids, strict=True):
        assert not ((a >= 0) & (b >= 0)).any()
        assert (b >= 0).any()
    whole, nothing = patches.split(0)
    assert nothing is None
    assert whole is patches


def test_units_cover_the_same_sites(patches):
    spots, slide = patches.with_unit("spot"), patches.with_unit("slide")
    assert len(spots) == patches.slides[0].n_sites
    assert spots[0]["expression"].shape == (1, 24)
    assert len(slide) == 1
    assert slide[0]["present"].sum() == patches.slides[0].n_sites


def test_bad_arguments_are_refused(make_slide):
    slide = make_slide()
    for changes, message in (
        ({"size": 0}, "`size`"),
        ({"n_channels": 0}, "`n_channels`"),
        ({"stride": 1.5}, "`stride`"),
        ({"min_tissue": 2}, "`min_tissue`"),
        ({"channel_rule": "best"}, "`channel_rule`"),
        ({"names": ["a", "b"]}, "`names`"),
        ({"groups": ["a", "b"]}, "`groups`"),
        ({"size": 64, "min_tissue": 0.9}, "has no 64 x 64 patch"),
    ):
        with pytest.raises(ValueError, match=message):
            stimg.pp.to_patches(slide, **changes)
    with pytest.raises(ValueError, match="empty list"):
        stimg.pp.to_patches([])
    with pytest.raises(TypeError, match="AnnData or SpatialData"):
        stimg.pp.to_patches("slide.h5ad")
    bare = stimg.datasets.synthetic(n_obs=100, n_genes=20)
    with pytest.raises(KeyError, match="to_lattice"):
        stimg.pp.to_patches(bare)
    stimg.pp.to_lattice(bare)
    with pytest.raises(KeyError, match="select_genes"):
        stimg.pp.to_patches(bare)
    with pytest.raises(IndexError, match="one of .* patches"):
        stimg.pp.to_patches(slide, size=8)[10_000]


def test_a_collection_stays_on_disk(tmp_path):
    root = stimg.datasets.synthetic_1k4m(tmp_path / "1k4m", n_slides=3, n_rows=8, n_genes=40)
    with stimg.settings.override(cachedir=tmp_path / "cache"):
        everything = stimg.datasets.stimage_1k4m(root=root)
        assert len(stimg.pp.to_patches(everything, size=4, n_channels=8).slides) == 3
        collection = everything.filter(technology="ST")
        options = {"size": 4, "n_channels": 8, "groups": collection.catalogue["tissue"].tolist()}
        found = stimg.pp.to_patches(collection, **options)
        slides = [collection.read(name) for name in collection.names]
        for slide in slides:
            stimg.pp.to_lattice(slide, "st")
            stimg.pp.select_genes(slide)
        expected = stimg.pp.to_patches(slides, names=collection.names, **options)
        assert [slide.name for slide in found.slides] == collection.names
        mapped = found.slides[0].expression.data
        assert isinstance(mapped, np.memmap)
        for i in (0, len(expected) - 1):
            for key, value in expected[3, i].items():
                assert torch.equal(torch.as_tensor(found[3, i][key]), torch.as_tensor(value)), key
        folder = Path(mapped.filename).parent
        del mapped
        assert folder.is_dir()
        stimg.tl.pretrain(found, max_steps=1, device="cpu", val_fraction=0)
        with pytest.raises(KeyError, match="label_key"):
            stimg.pp.to_patches(collection, size=4, label_key="nothing")
        del found
        gc.collect()
        assert not folder.exists()
