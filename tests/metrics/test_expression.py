import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from scipy.stats import pearsonr

from stimg.metrics import (
    _expression,
    expression_scores,
    gene_correlations,
    reconstruction_scores,
    smooth_expression,
)

KINDS = [np.asarray, sparse.csr_matrix, sparse.csc_array]
SMALL = hnp.arrays(
    np.float64,
    st.tuples(st.integers(2, 12), st.integers(1, 5)),
    elements=st.integers(-8, 8).map(float),
)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    true = rng.gamma(1.0, size=(90, 70)) * (rng.random((90, 70)) < 0.6)
    return true, true * rng.random(70) + rng.normal(size=(90, 70))


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_scipy(pair, kind, monkeypatch):
    monkeypatch.setattr(_expression, "GENES_AT_ONCE", 16)
    true, guess = pair
    table = gene_correlations(kind(true), kind(guess), genes=[f"g{i}" for i in range(70)])
    expected = np.array([pearsonr(x, y).statistic for x, y in zip(true.T, guess.T, strict=True)])
    np.testing.assert_allclose(table["pearson"], expected)
    np.testing.assert_allclose(table["mse"], ((true - guess) ** 2).mean(0))
    np.testing.assert_allclose(table["mae"], np.abs(true - guess).mean(0))
    np.testing.assert_allclose(table["mean"], true.mean(0))
    np.testing.assert_allclose(table["variance"], true.var(0))
    assert list(table.index) == [f"g{i}" for i in range(70)]
    assert table["pearson"].idxmax() == table["rank"].idxmin()
    assert sorted(table["rank"]) == list(range(1, 71))
    assert not table["constant"].any()


@given(true=SMALL, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_correlations_are_defined_exactly_where_both_vary(true, seed):
    guess = np.random.default_rng(seed).integers(-2, 3, true.shape).astype(float)
    before = true.copy(), guess.copy()
    table = gene_correlations(true, guess)
    varies = (np.ptp(true, axis=0) > 0) & (np.ptp(guess, axis=0) > 0)
    np.testing.assert_array_equal(~table["constant"], varies)
    np.testing.assert_array_equal(table["pearson"].notna(), varies)
    np.testing.assert_array_equal(table["rank"].notna(), varies)
    for gene in np.flatnonzero(varies):
        expected = pearsonr(true[:, gene], guess[:, gene]).statistic
        assert table["pearson"][gene] == pytest.approx(expected, abs=1e-9)
    np.testing.assert_array_equal(true, before[0])
    np.testing.assert_array_equal(guess, before[1])


def test_folds_average_correlations_and_ranks_within_each(pair):
    true, guess = pair[0][:, :4], pair[1][:, :4]
    folds = np.repeat(["a", "b"], 45)
    true[:45, 3] = 1  # constant in the first fold
    table = gene_correlations(true, guess, folds=folds)
    within = np.array(
        [
            [pearsonr(true[rows, g], guess[rows, g]).statistic if np.ptp(true[rows, g]) else np.nan for g in range(4)]
            for rows in (slice(45), slice(45, 90))
        ]
    )
    np.testing.assert_allclose(table["pearson"], np.nanmean(within, 0))
    first = pd.Series(within[0]).rank(ascending=False, na_option="bottom")
    assert first[3] == 4
    np.testing.assert_allclose(table["rank"], (first + pd.Series(within[1]).rank(ascending=False)) / 2)


def test_differences_between_folds_do_not_count_within_them():
    shift = np.repeat([0.0, 10.0], 50)[:, None]
    rng = np.random.default_rng(1)
    true, guess = shift + rng.normal(size=(100, 20)), shift + rng.normal(size=(100, 20))
    assert expression_scores(true, guess)["pcc_m"] > 0.9
    assert abs(expression_scores(true, guess, folds=shift.ravel())["pcc_m"]) < 0.1


def test_scores_are_of_the_table(pair):
    true, guess = pair
    true[:, 0] = 0
    guess[:, 1] = 3
    table, scores = gene_correlations(true, guess), expression_scores(true, guess)
    pearson = table["pearson"].dropna()
    assert scores["pcc_f"] == pytest.approx(np.quantile(pearson, 0.25))
    assert scores["pcc_s"] == pytest.approx(np.median(pearson))
    assert scores["pcc_m"] == pytest.approx(pearson.mean())
    assert scores["pcc_h"] == pytest.approx(np.sort(pearson)[-50:].mean())
    assert scores["mse"] == pytest.approx(((true - guess) ** 2).mean())
    assert scores["mae"] == pytest.approx(np.abs(true - guess).mean())
    assert (scores["n_genes"], scores["n_genes_constant"]) == (68, 2)
    assert (scores["n_obs"], scores["n_obs_missing"]) == (90, 0)


def test_highly_predictable_genes_are_chosen_by_rank_over_folds(pair, monkeypatch):
    monkeypatch.setattr(_expression, "HIGHLY_PREDICTABLE", 5)
    folds = np.arange(90) % 3
    table = gene_correlations(*pair, folds=folds)
    best = table.sort_values("rank").index[:5]
    assert expression_scores(*pair, folds=folds)["pcc_h"] == pytest.approx(table["pearson"][best].mean())


@pytest.mark.parametrize("kind", KINDS)
def test_spots_outside_of_the_image_are_left_out_and_counted(pair, kind):
    true, guess = pair
    outside = np.arange(90) % 9 == 0
    folds = np.arange(90) % 2
    inside = expression_scores(true[~outside], guess[~outside], folds=folds[~outside])
    guess[outside] = np.nan
    scores = expression_scores(kind(true), kind(guess), folds=folds)
    assert scores == pytest.approx(inside | {"n_obs_missing": 10})


def test_perfect_prediction_and_nothing_defined():
    true = np.random.default_rng(0).random((9, 4))
    scores = expression_scores(true, true)
    assert [scores[name] for name in ("pcc_f", "pcc_s", "pcc_m", "pcc_h", "mse")] == pytest.approx([1, 1, 1, 1, 0])
    scores = expression_scores(true, np.full(true.shape, 0.1))
    assert np.isnan([scores[name] for name in ("pcc_f", "pcc_s", "pcc_m", "pcc_h")]).all()
    assert (scores["n_genes"], scores["n_genes_constant"]) == (0, 4)


TRUE = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
HALF = np.array([[0.0, np.nan], [1.0, np.nan], [0.0, np.nan]])


@pytest.mark.parametrize(
    ("true", "guess", "options", "message"),
    [
        (TRUE, TRUE[:2], {}, "`predicted`"),
        (TRUE[0], TRUE[0], {}, "`true`"),
        (TRUE * np.nan, TRUE, {}, "`true` has 6 NaN"),
        (TRUE, np.where(TRUE > 1, np.inf, TRUE), {}, "`predicted` has 2 infinite"),
        (TRUE, TRUE * np.nan, {}, "`predicted`.*NaN in each of 3"),
        (TRUE, HALF, {}, "1 of 2 genes are NaN"),
        (TRUE, TRUE, {"genes": ["a"]}, "`genes` for each of 2"),
        (TRUE, TRUE, {"folds": ["a", "b"]}, "`folds`"),
        (TRUE, TRUE, {"folds": ["a", None, "b"]}, "`folds`, found 1 missing"),
    ],
)
def test_bad_input(true, guess, options, message):
    with pytest.raises(ValueError, match=message):
        gene_correlations(true, guess, **options)


LATTICES = st.sets(st.tuples(st.integers(-3, 4), st.integers(0, 6)), min_size=1, max_size=30).map(
    lambda sites: np.array(sorted(sites, key=lambda site: hash((site, 7))))
)


@given(lattice=LATTICES, kind=st.sampled_from(KINDS))
@settings(max_examples=60, deadline=None)
def test_smoothing_is_the_mean_of_the_neighbours_that_exist(lattice, kind):
    values = np.random.default_rng(0).poisson(1.0, (len(lattice), 3)).astype(float)
    smoothed = smooth_expression(kind(values), lattice)
    assert sparse.issparse(smoothed) == (kind is not np.asarray)
    assert smoothed.dtype == np.float32
    near = (np.abs(lattice[:, None] - lattice[None]) <= 1).all(2)
    dense = smoothed.toarray() if sparse.issparse(smoothed) else smoothed
    np.testing.assert_allclose(dense, near @ values / near.sum(1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "lattice", "message"),
    [
        (TRUE, [[0, 0], [0, 1]], "`lattice` for each of 3"),
        (TRUE, [[0, 0], [0, 1], [0, 0]], "`lattice`, found 1 on the site of another"),
        (TRUE, [[0.0, 0], [0, 1], [0, 2]], "`lattice` as integers"),
        (HALF, [[0, 0], [0, 1], [0, 2]], "`values` has 3 NaN"),
        (TRUE[0], [[0, 0], [0, 1], [0, 2]], "`values` of shape"),
    ],
)
def test_smoothing_refuses(values, lattice, message):
    with pytest.raises(ValueError, match=message):
        smooth_expression(values, lattice)


def test_tables_of_genes_must_fit_together_and_name_the_genes():
    true = pd.DataFrame(np.arange(12.0).reshape(4, 3) ** 2, columns=list("abc"))
    assert list(gene_correlations(true.to_numpy(), true).index) == list("abc")
    for wrong, axis in ((true[["b", "a", "c"]], "columns"), (true[::-1], "index")):
        for score in (expression_scores, reconstruction_scores):
            with pytest.raises(ValueError, match=f"same {axis}"):
                score(true, wrong)
    assert expression_scores(true, true)["mae"] == 0
