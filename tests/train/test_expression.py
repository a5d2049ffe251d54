"""Groups and colours of training on H&E."""

import numpy as np
import torch

from stimg._train._expression import log_normalised, neighbours
from stimg._train._images import jitter_colours


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
