import numpy as np
import pytest
from scipy import sparse

from stimg.metrics import hide_regions, interpolate_hidden

GRID = np.argwhere(np.ones((8, 9), dtype=bool)).astype(np.int32)
LINE = np.column_stack([np.arange(5.0), np.zeros(5)])
VALUES = np.array([[1.0, 0.0], [3.0, 2.0], [9.0, 9.0], [5.0, 4.0], [7.0, 6.0]])
MIDDLE = np.array([False, False, True, False, False])


def test_regions_are_whole_squares_within_tissue():
    tissue = GRID[~((GRID[:, 0] == 3) & (GRID[:, 1] == 3))]
    hidden = hide_regions(tissue, 3, n_regions=1, rng=1)
    chosen = tissue[hidden]
    assert hidden.sum() == 9
    np.testing.assert_array_equal(np.ptp(chosen, axis=0), [2, 2])


def test_regions_do_not_overlap():
    assert hide_regions(GRID, 3, n_regions=2).sum() == 18
    assert hide_regions(GRID, 8, n_regions=5).sum() == 64  # no more fit


def test_all_observations_of_a_site_are_hidden_together():
    twice = np.concatenate([GRID, GRID]) + 5
    hidden = hide_regions(twice, 2, n_regions=3)
    np.testing.assert_array_equal(hidden[: len(GRID)], hidden[len(GRID) :])
    assert hidden.sum() == 2 * 3 * 4


def test_regions_are_deterministic():
    np.testing.assert_array_equal(hide_regions(GRID, 2, rng=4), hide_regions(GRID, 2, rng=4))


@pytest.mark.parametrize(
    ("lattice", "size", "message"),
    [
        (GRID, 9, "No 9 x 9 region"),
        (GRID[::2], 2, "No 2 x 2 region"),
        (GRID, 0, "size"),
        (GRID.astype(float), 2, "integers"),
        (GRID[:, :1], 2, "shape"),
    ],
)
def test_bad_regions(lattice, size, message):
    with pytest.raises(ValueError, match=message):
        hide_regions(lattice, size)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_array])
def test_nearest_by_hand(kind):
    filled = interpolate_hidden(kind(VALUES), LINE, MIDDLE, n_neighbors=2)
    np.testing.assert_allclose(filled, [[4, 3]])
    assert filled.dtype == np.float32


def test_gaussian_by_hand():
    filled = interpolate_hidden(VALUES, LINE, MIDDLE, method="gaussian", bandwidth=1.0)
    near, far = np.exp(-0.5), np.exp(-2)
    np.testing.assert_allclose(filled[0, 0], (near * (3 + 5) + far * (1 + 7)) / (2 * near + 2 * far), rtol=1e-6)


def test_gaussian_reaches_the_middle_of_a_large_hole():
    places = np.column_stack([np.arange(400.0), np.zeros(400)])
    hidden = (places[:, 0] > 50) & (places[:, 0] < 350)
    filled = interpolate_hidden(np.full((400, 3), 2.0), places, hidden, method="gaussian", bandwidth=0.5)
    np.testing.assert_allclose(filled, 2)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_pca_with_all_components_is_the_gaussian(kind):
    rng = np.random.default_rng(0)
    places, values = rng.random((40, 2)), rng.random((40, 4)) @ rng.random((4, 4))
    values[:, 3] = values[:, 0]  # three dimensions
    hidden = np.arange(40) < 5
    pca = interpolate_hidden(kind(values), places, hidden, method="pca", n_components=3)
    gaussian = interpolate_hidden(values, places, hidden, method="gaussian")
    np.testing.assert_allclose(pca, gaussian, atol=1e-5)


def test_zero_and_order():
    assert not interpolate_hidden(VALUES, LINE, MIDDLE, method="zero").any()
    ends = np.array([True, False, False, False, True])
    filled = interpolate_hidden(VALUES, LINE, ends, n_neighbors=1)
    np.testing.assert_allclose(filled, VALUES[[1, 3]])


def test_hidden_values_are_not_read():
    poisoned = VALUES.copy()
    poisoned[2] = np.nan
    for method in ("nearest", "gaussian", "pca"):
        np.testing.assert_array_equal(
            interpolate_hidden(poisoned, LINE, MIDDLE, method=method),
            interpolate_hidden(VALUES, LINE, MIDDLE, method=method),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": np.ones(5, bool)}, "all 5 hidden"),
        ({"hidden": np.zeros(5, bool)}, "at least one True"),
        ({"hidden": np.ones(5)}, "bool"),
        ({"positions": LINE[:3]}, "positions"),
        ({"positions": LINE * np.nan}, "NaN"),
        ({"expression": VALUES[0]}, "shape"),
        ({"expression": VALUES * np.nan}, "seen observations"),
        ({"method": "kriging"}, "method"),
        ({"bandwidth": -1}, "bandwidth"),
        ({"n_neighbors": 0}, "n_neighbors"),
        ({"method": "pca", "expression": VALUES[:, :1]}, "2 genes"),
    ],
)
def test_bad_input(change, message):
    arguments = {"expression": VALUES, "positions": LINE, "hidden": MIDDLE, **change}
    with pytest.raises(ValueError, match=message):
        interpolate_hidden(**arguments)
