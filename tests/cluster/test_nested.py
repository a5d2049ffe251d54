"""Domains inside domains."""

from __future__ import annotations

import numpy as np
import pytest

from stimg._cluster import _nested
from stimg._cluster._methods import cluster
from stimg._cluster._nested import find_levels
from stimg._cluster._numbering import by_size


def tree(sizes, rng, *, apart=(20.0, 6.0)):
    """Three regions; the first of three layers, the second of two, the third of one."""
    values, layers = [], []
    for region, layer, n in sizes:
        centre = np.zeros(8)
        centre[region] = apart[0]
        centre[3 + layer] += apart[1]
        values.append(centre + rng.normal(size=(n, 8)))
        layers += [(region, layer)] * n
    return np.concatenate(values), np.array(layers)


SIZES = [(0, 0, 90), (0, 1, 60), (0, 2, 40), (1, 0, 70), (1, 1, 50), (2, 0, 30)]


def names(level):
    return np.array([domain.name for domain in level.domains])[level.codes]


@pytest.mark.parametrize("method", ["mixture", "kmeans"])
def test_regions_are_split_into_their_layers_and_named_after_them(method):
    values, layers = tree(SIZES, np.random.default_rng(0))
    coarse, fine = find_levels(values, (3, 6), seed=0, method=method)
    expected = ["1.1"] * 90 + ["1.2"] * 60 + ["1.3"] * 40 + ["2.1"] * 70 + ["2.2"] * 50 + ["3"] * 30
    assert (names(fine) == expected).all()
    assert (names(coarse) == [name[0] for name in expected]).all()
    assert [domain.name for domain in fine.domains] == ["1.1", "1.2", "1.3", "2.1", "2.2", "3"]
    assert (fine.confidence <= coarse.confidence).all()
    assert len(np.unique(layers, axis=0)) == 6


@pytest.mark.parametrize("method", ["mixture", "kmeans", "leiden"])
def test_every_level_is_nested_and_the_first_is_the_usual_result(method):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(240, 5)) + 3 * rng.normal(size=(4, 5))[rng.integers(4, size=240)]
    place = np.column_stack([np.arange(240) % 16, np.arange(240) // 16]).astype(float)
    options = {"coordinates": place, "libraries": np.zeros(240, int)} if method == "leiden" else {}
    levels = find_levels(values, (2, 4, 5, 7), seed=0, method=method, **options)
    labels, confidence = cluster(values, 2, method=method, seed=0, **options)
    np.testing.assert_array_equal(levels[0].codes, by_size(labels, 2))
    np.testing.assert_array_equal(levels[0].confidence, confidence)
    for coarser, finer, number in zip(levels, levels[1:], (4, 5, 7), strict=False):
        assert len(np.unique(finer.codes)) == len(finer.domains) == number
        assert len({domain.name for domain in finer.domains}) == number
        pairs = np.unique(np.stack([names(coarser), names(finer)]), axis=1).T
        assert len(pairs) == number
        assert all(fine == coarse or fine.startswith(f"{coarse}.") for coarse, fine in pairs.tolist())
        assert (finer.confidence <= coarser.confidence).all()


def test_the_split_that_gains_most_is_made_whatever_the_size():
    values, _ = tree([(0, 0, 120), (1, 0, 20), (1, 1, 20)], np.random.default_rng(0))
    _, fine = find_levels(values, (2, 3), seed=0, method="kmeans")
    assert [domain.name for domain in fine.domains] == ["1", "2.1", "2.2"]


def test_the_gain_is_the_difference_of_likelihoods():
    rng = np.random.default_rng(0)
    values, leaves = rng.normal(size=(60, 3)), rng.integers(2, size=60)

    def likelihood(labels):
        offset = values - np.stack([values[labels == k].mean(0) for k in range(labels.max() + 1)])[labels]
        count = np.bincount(labels)
        return -len(values) / 2 * np.linalg.slogdet(offset.T @ offset)[1] + (count * np.log(count / 60)).sum()

    rows = np.flatnonzero(leaves == 1)
    part = (values[rows, 0] > 0).astype(int)
    finer = leaves.copy()
    finer[rows[part == 1]] = 2
    (gain,) = _nested._gains(values, leaves, [(rows, part, np.ones(len(rows)))])
    assert gain == pytest.approx(likelihood(finer) - likelihood(leaves), rel=1e-4)


def test_refined_parts_stay_inside_refined_domains():
    rng = np.random.default_rng(2)
    place = np.column_stack([np.arange(400) % 20, np.arange(400) // 20]).astype(float)
    truth = (place[:, 0] >= 10) * 2 + (place[:, 1] >= 10)
    values = np.array([[0, 0], [0, 2], [5, 0], [5, 2]])[truth] + rng.normal(size=(400, 2))
    smooth = (place, np.zeros(400, int), 8)
    levels = find_levels(values, (2, 4), seed=0, method="kmeans", smooth=smooth)
    rough = find_levels(values, (2, 4), seed=0, method="kmeans")
    assert len(np.unique(np.stack([level.codes for level in levels]), axis=1).T) == 4
    (alone,) = find_levels(values, (2,), seed=0, method="kmeans", smooth=smooth)
    np.testing.assert_array_equal(levels[0].codes, alone.codes)

    def lone(codes):
        near = np.abs(place[:, None] - place).sum(2) == 1
        return ((codes[:, None] != codes) & near).sum()

    assert lone(levels[1].codes) < lone(rough[1].codes) / 2


def test_more_parts_than_different_rows_are_refused():
    values = np.repeat(np.eye(3), 5, axis=0)
    with pytest.raises(RuntimeError, match=r"None of 3 domains can be split further.*at most 3 in `levels`"):
        find_levels(values, (2, 3, 5), seed=0, method="kmeans")


def test_parts_have_distinct_shades_of_their_domain():
    from matplotlib.colors import rgb_to_hsv, to_rgb

    values, _ = tree(SIZES, np.random.default_rng(0))
    coarse, middle, fine = find_levels(values, (3, 5, 6), seed=0, method="kmeans")
    base = {domain.name: domain.colour for domain in coarse.domains}
    kept = {domain.name: domain.colour for domain in middle.domains}
    assert len({domain.colour for domain in fine.domains}) == 6
    for domain in fine.domains:
        assert kept.get(domain.name, domain.colour) == domain.colour
        assert (domain.name in base) == (domain.colour == base.get(domain.name))
        hues = [rgb_to_hsv(to_rgb(colour))[0] for colour in (domain.colour, base[domain.name[0]])]
        assert abs(hues[0] - hues[1]) < 0.1
