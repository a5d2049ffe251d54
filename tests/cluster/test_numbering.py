"""Domains numbered and coloured like a column of labels."""

from __future__ import annotations

import numpy as np
import pytest

from stimg._cluster._colours import PALETTE, Categories
from stimg._cluster._numbering import like_reference


def test_pairs_share_as_many_observations_as_possible():
    """Greedily, domain 0 would take category a (6 shared) and leave domain 1 only one; together b and a share 10."""
    codes = np.repeat([0, 0, 1, 1], [6, 5, 5, 1])
    labels = np.repeat([0, 1, 0, 1], [6, 5, 5, 1])
    found, colours, matched = like_reference(codes, 2, Categories(labels, ["a", "b"], ["#111111", "#222222"]))
    assert matched == ["a", "b"]
    np.testing.assert_array_equal(found, 1 - codes)
    assert colours == ["#111111", "#222222"]


def test_domains_without_a_category_come_last_in_new_colours():
    codes = np.repeat([0, 1, 2, 3], [40, 30, 20, 10])
    labels = np.repeat([-1, 2, 0], [40, 30, 30])  # domain 3 would be the second in category 0
    reference = Categories(labels, ["L1", "L2", "L3"], list(PALETTE[:3]))
    found, colours, matched = like_reference(codes, 4, reference)
    assert matched == ["L1", "L3", "", ""]
    np.testing.assert_array_equal(found, np.repeat([2, 1, 0, 3], [40, 30, 20, 10]))
    assert colours == [PALETTE[i] for i in (0, 2, 3, 4)]


@pytest.mark.parametrize("n_domains", [1, 3, 6])
def test_every_domain_keeps_a_number_of_its_own(n_domains):
    rng = np.random.default_rng(0)
    codes = np.r_[np.arange(n_domains), rng.integers(n_domains, size=50)]
    labels = rng.integers(-1, 4, size=len(codes))
    found, colours, matched = like_reference(codes, n_domains, Categories(labels, list("abcd"), list(PALETTE[:4])))
    assert len(np.unique(np.stack([codes, found]), axis=1).T) == len(np.unique(found)) == n_domains
    assert len(set(colours)) == len(colours) == len(matched) == n_domains
    named = [name for name in matched if name]
    assert named == sorted(named)
