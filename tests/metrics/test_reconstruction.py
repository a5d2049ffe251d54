import numpy as np
import pytest
from scipy import sparse

from stimg.metrics import _reconstruction, reconstruction_scores

TRUE = np.array([[0.0, 1.0, 2.0], [1.0, 1.0, 0.0], [2.0, 1.0, 1.0]])
GUESS = np.array([[0.0, 0.0, 0.0], [2.0, 1.0, 2.0], [4.0, 2.0, 1.0]])


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_array])
def test_hand_computed(kind):
    scores = reconstruction_scores(kind(TRUE), kind(GUESS))
    assert scores["mse"] == pytest.approx((0 + 1 + 4 + 1 + 0 + 4 + 4 + 1 + 0) / 9)
    assert scores["mae"] == pytest.approx((0 + 1 + 2 + 1 + 0 + 2 + 2 + 1 + 0) / 9)
    # gene 1: 1; gene 2: constant; gene 3: -1
    assert scores["pearson"] == pytest.approx(0)
    assert (scores["n_values"], scores["n_genes"], scores["n_genes_undefined"]) == (9, 2, 1)


def test_hidden_observations():
    scores = reconstruction_scores(TRUE, GUESS, hidden=np.array([True, False, True]))
    assert scores["mse"] == pytest.approx((0 + 1 + 4 + 4 + 1 + 0) / 6)
    assert scores["n_values"] == 6


def test_hidden_values():
    hidden = np.array([[True, False, False], [True, False, False], [False, False, True]])
    scores = reconstruction_scores(TRUE, GUESS, hidden=hidden)
    assert scores["mse"] == pytest.approx(1 / 3)
    assert scores["pearson"] == pytest.approx(1)
    assert scores["n_genes_undefined"] == 2


def test_genes_missing_from_the_prediction_are_left_out():
    guess = GUESS.copy()
    guess[:, 0] = np.nan
    scores = reconstruction_scores(TRUE, guess)
    assert scores["n_genes_missing"] == 1
    assert scores["mse"] == pytest.approx((1 + 4 + 0 + 4 + 1 + 0) / 6)


def test_all_undefined_is_nan_without_a_warning():
    assert np.isnan(reconstruction_scores(np.full((3, 2), 0.1), GUESS[:, :2])["pearson"])


def test_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    true, guess = rng.random((20, 7)), rng.random((20, 7))
    whole = reconstruction_scores(true, guess)
    assert whole["pearson"] == pytest.approx(
        np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(true.T, guess.T, strict=True)])
    )
    monkeypatch.setattr(_reconstruction, "GENES_AT_ONCE", 2)
    assert reconstruction_scores(true, guess) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("true", "guess", "hidden", "message"),
    [
        (TRUE, GUESS[:2], None, "shape"),
        (TRUE[0], GUESS[0], None, "shape"),
        (TRUE * np.nan, GUESS, None, "`true` has 9 NaN"),
        (TRUE, GUESS * np.nan, None, "none that are finite"),
        (TRUE, GUESS, np.zeros(3, bool), "at least one True"),
        (TRUE, GUESS, np.ones(3), "float64"),
        (TRUE, GUESS, np.ones(2, bool), "shape"),
    ],
)
def test_bad_input(true, guess, hidden, message):
    with pytest.raises(ValueError, match=message):
        reconstruction_scores(true, guess, hidden=hidden)
