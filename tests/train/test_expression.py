"""Groups and colours of training on H&E."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

import stimg
from stimg._image._crops import slide_statistics
from stimg._image._slide_image import SlideImage
from stimg._train._expression import log_normalised, neighbours
from stimg._train._images import jitter_colours
from stimg.nn import AlignConfig, DenseConfig


def test_neighbours_are_of_the_same_crop():
    places = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 3.0], [0.0, 1.0]])
    found = neighbours(places, np.array([0, 0, 0, 1]), np.full(4, 1.5)).toarray()
    assert np.array_equal(found, [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def test_groups_sum_counts_before_the_logarithm():
    counts, totals = np.array([[1.0, 0.0], [3.0, 2.0], [0.0, 0.0]]), np.array([10.0, 30.0, 0.0])
    members = neighbours(np.array([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0]]), np.zeros(3), np.full(3, 2.0))
    found = log_normalised(members @ counts, members @ totals, 100)
    assert np.allclose(found[0], np.log1p([10, 5]))
    assert np.array_equal(found[2], [0, 0])


def test_colours_change_alike_for_a_seed_and_stay_in_range():
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = (jitter_colours(images, 0.2, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert 0 <= first.min() <= first.max() <= 1
    assert not torch.allclose(first, images)
    assert torch.equal(jitter_colours(images, 0, torch.Generator()), images)


def test_neighbours_are_those_of_all_pairs_without_their_memory():
    rng = np.random.default_rng(0)
    for n in (0, 1, 300):
        places, crop, reach = rng.uniform(0, 60, (n, 2)), rng.integers(0, 3, n), rng.uniform(2, 9, n)
        apart = np.linalg.norm(places[:, None] - places[None], axis=2)
        expected = (apart <= reach[:, None]) & (crop[:, None] == crop[None])
        assert np.array_equal(neighbours(places, crop, reach).toarray(), expected)
    bins = np.stack(np.mgrid[:64, :64], -1).reshape(-1, 2) * 4.0
    tracemalloc.start()
    found = neighbours(bins, np.zeros(len(bins), dtype=int), np.full(len(bins), 4.4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.nnz == 5 * 64**2 - 4 * 64
    assert peak < 20e6  # all pairs took 537 MB


def test_the_stain_is_measured_once_for_each_slide(monkeypatch):
    """It is known before the first of the processes that read crops starts."""
    measured = []

    def counted(image, *given, **options):
        measured.append(image.name)
        return slide_statistics(image, *given, **options)

    def stop(module, loader):
        raise InterruptedError

    monkeypatch.setattr("stimg._data._image_patches.slide_statistics", counted)
    monkeypatch.setattr("stimg._train._expression.stain_regression", stop)
    slides = [stimg.datasets.synthetic_histology(n_rows=5, n_cols=5, n_genes=5, seed=seed) for seed in range(2)]
    for slide in slides:
        stimg.pp.to_lattice(slide, "st")
    patches = stimg.pp.to_image_patches(slides, mpp=4, size=128)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            stimg.tl.train_expression(patches, DenseConfig(dim=32), max_epochs=1, num_workers=2, device="cpu")
        assert measured == ["slide0", "slide1"]


def test_every_crop_is_read_once_for_alignment(monkeypatch):
    asked = []

    class Counted(SlideImage):
        def read(self, top, left, size, *given, **options):
            asked.append((top, left, size))
            return super().read(top, left, size, *given, **options)

    slide = stimg.pp.to_lattice(stimg.datasets.synthetic_histology(n_rows=6, n_cols=6, n_genes=5), "st", copy=True)
    patches = stimg.pp.to_image_patches(slide)
    image = patches.slides[0].image
    patches.slides[0] = replace(patches.slides[0], image=Counted(image.levels, image.mpp))
    size = 64
    config = AlignConfig(dim=8, hidden=16, batch_size=12)
    for _ in range(2):
        stimg.tl.align(patches, config, max_epochs=3, crop_size=size, val_fraction=0.2, device="cpu")
    crops = [one for one in asked if one[2] == (size, size)]
    assert len(crops) == len(set(crops)) == slide.n_obs
