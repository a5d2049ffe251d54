import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from stimg._cluster import _mixture
from stimg._cluster._methods import cluster
from stimg._cluster._mixture import MOST_MERGED, hierarchical_start


def long_clusters(sizes, *, seed=0, d=3):
    """Clusters that differ in one dimension and vary most in another, which k-means cuts instead."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    values = rng.normal(size=(len(labels), d))
    values[:, 0] += 10 * labels
    values[:, 1] *= 6
    order = rng.permutation(len(labels))
    return values[order], labels[order]


def test_the_start_separates_long_clusters():
    values, truth = long_clusters([80, 120, 60])
    rows, found = hierarchical_start(values, 3)
    assert sorted(rows) == list(range(260))
    assert adjusted_rand_score(truth[rows], found) > 0.9
    assert adjusted_rand_score(truth, KMeans(3, n_init=10, random_state=0).fit_predict(values)) < 0.6


@pytest.mark.parametrize("seed", [4, 8, 9, 30])
def test_fewer_observations_than_dimensions_of_very_different_spread(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(15, 14))
    values = values @ (np.logspace(0, -4, 14)[:, None] * np.linalg.qr(rng.normal(size=(43, 43)))[0][:14])
    labels, confidence = cluster(values, 2, method="mixture", seed=0)
    assert set(labels) == {0, 1}
    assert np.isfinite(confidence).all()


def test_labels_count_from_zero_without_gaps():
    values, _ = long_clusters([30, 30, 30])
    for n_clusters in (1, 2, 5, 45):
        assert np.array_equal(np.unique(hierarchical_start(values, n_clusters)[1]), np.arange(n_clusters))


def test_the_order_of_rows_does_not_matter():
    values, _ = long_clusters([50, 40, 40])
    order = np.random.default_rng(1).permutation(len(values))
    rows, found = hierarchical_start(values, 4)
    other_rows, other = hierarchical_start(values[order], 4)
    first, second = np.empty(len(values), int), np.empty(len(values), int)
    first[rows], second[order[other_rows]] = found, other
    assert adjusted_rand_score(first, second) == 1


def test_many_rows_are_thinned_evenly():
    values, _ = long_clusters([2000, 1000])
    rows, _ = hierarchical_start(values, 2)
    assert len(rows) == len(set(rows)) == MOST_MERGED
    assert abs(np.median(values[rows, 0]) - np.median(values[:, 0])) < 0.1


@pytest.mark.parametrize("covariance", ["tied", "full"])
def test_the_mixture_finds_long_clusters_with_any_seed(covariance):
    values, truth = long_clusters([150, 100, 50], seed=3)
    runs = [cluster(values, 3, method="mixture", seed=seed, covariance=covariance)[0] for seed in range(3)]
    assert all(adjusted_rand_score(truth, labels) > 0.95 for labels in runs)


def test_of_many_rows_a_part_is_fitted_first(monkeypatch):
    values, truth = long_clusters([1500, 1000, 500], seed=3)
    monkeypatch.setattr(_mixture, "MOST_FITTED", 300)
    labels, confidence = cluster(values, 3, method="mixture", seed=0)
    assert adjusted_rand_score(truth, labels) > 0.95
    assert confidence.shape == (3000,)
