"""Loss, groups and colours of training on H&E."""

import numpy as np
import torch
from scipy import stats

from stimg._train._expression import log_normalised, negative_binomial_loss, neighbours, uncorrelated
from stimg._train._images import jitter_colours


def test_one_minus_pearson():
    rng = np.random.default_rng(0)
    predicted, truth = rng.normal(size=(2, 20, 5)).astype(np.float32)
    pearson = np.mean([np.corrcoef(predicted[:, g], truth[:, g])[0, 1] for g in range(5)])
    assert np.isclose(uncorrelated(torch.from_numpy(predicted), torch.from_numpy(truth)), 1 - pearson, atol=1e-5)


def test_genes_that_were_not_measured_are_left_out():
    rng = np.random.default_rng(0)
    predicted, truth = torch.from_numpy(rng.normal(size=(2, 20, 5)).astype(np.float32))
    expected = uncorrelated(predicted[:, :3], truth[:, :3])
    truth[:, 3:] = torch.nan
    predicted.requires_grad_()
    found = uncorrelated(predicted, truth)
    assert torch.isclose(found, expected)
    found.backward()
    assert torch.isfinite(predicted.grad).all()
    assert not predicted.grad[:, 3:].any()


def test_likelihood_of_counts():
    means, counts = np.array([[0.5, 3.0], [20.0, 1.0]]), np.array([[0, 5], [18, 1]])
    dispersion = np.array([0.5, 2.0])
    found = negative_binomial_loss(*(torch.tensor(x, dtype=torch.float64) for x in (means, counts, dispersion)))
    size = 1 / dispersion
    assert np.allclose(found, -stats.nbinom.logpmf(counts, size, size / (size + means)))


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
