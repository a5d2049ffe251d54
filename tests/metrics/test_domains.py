import numpy as np
import pandas as pd
import pytest

from stimg.metrics import domain_scores


def test_hand_computed_agreement():
    # contingency [[2, 1], [0, 2], [0, 1]] of six observations; the best match gets 2 + 2 of them right
    scores = domain_scores(list("aaabbc"), ["1", "1", "2", "2", "2", "2"])
    assert scores["accuracy"] == pytest.approx(4 / 6)
    # pairs in both: 1 + 1 = 2; in labels 3 + 1 = 4, in domains 1 + 6 = 7, of 15: (2 - 28/15) / (5.5 - 28/15)
    assert scores["ari"] == pytest.approx((2 - 28 / 15) / (5.5 - 28 / 15))
    assert scores["n_labelled"] == 6
    assert "chaos" not in scores


def test_names_do_not_matter():
    scores = domain_scores(["x", "x", "y", "y"], pd.Categorical([2, 2, 1, 1]))
    assert scores == {"ari": 1.0, "nmi": 1.0, "accuracy": 1.0, "n_labelled": 4}


@pytest.mark.parametrize("missing", [np.nan, None])
def test_unlabelled_are_left_out(missing):
    truth = pd.Categorical(["a", "a", "b", "b", None]) if missing is None else ["a", "a", "b", "b", missing]
    scores = domain_scores(truth, ["1", "1", "2", "2", "2"])
    assert scores["accuracy"] == 1.0
    assert scores["n_labelled"] == 4


def test_hand_computed_chaos():
    coordinates = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    scores = domain_scores(None, list("aabb"), coordinates=coordinates)
    # each is at 1 from its own; the axis has a standard deviation (n - 1) of sqrt(10 / 3)
    assert scores["chaos"] == pytest.approx(1 / np.sqrt(10 / 3))
    alone = domain_scores(None, list("aaab"), coordinates=coordinates)
    assert alone["chaos"] == pytest.approx((1 + 1 + 2 + 0) / 4 / np.sqrt(10 / 3))
    assert set(scores) == {"chaos", "pas"}


def test_hand_computed_pas():
    coordinates = np.column_stack([np.arange(30.0), np.zeros(30)])
    halves = np.repeat(["a", "b"], 15)
    assert domain_scores(None, halves, coordinates=coordinates)["pas"] == 0
    stray = halves.copy()
    stray[5] = "b"
    assert domain_scores(None, stray, coordinates=coordinates)["pas"] == pytest.approx(1 / 30)


def test_pas_of_coinciding_observations():
    scores = domain_scores(None, ["a"] * 20, coordinates=np.zeros((20, 2)))
    assert scores == {"chaos": 0.0, "pas": 0.0}


def test_coherent_domains_beat_scattered_ones(slide_hex):
    labels, places = slide_hex.obs["domain"], slide_hex.obsm["spatial"]
    scattered = np.random.default_rng(0).permutation(labels)
    good, bad = (domain_scores(labels, guess, coordinates=places) for guess in (labels, scattered))
    assert good["chaos"] < bad["chaos"]
    assert good["pas"] < 0.1 < 0.5 < bad["pas"]
    assert abs(bad["ari"]) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "b"], ["1"]), "each of 1 observations"),
        ((["a", "b"], ["1", None]), "1 missing"),
        (([None, np.nan], ["1", "2"]), "only missing"),
        ((None, ["1", "2"]), "found neither"),
        (([], []), "one label for each"),
    ],
)
def test_bad_labels(arguments, message):
    with pytest.raises(ValueError, match=message):
        domain_scores(*arguments)


@pytest.mark.parametrize("coordinates", [np.zeros((3, 2)), np.zeros((2, 3)), np.array([[0, np.nan], [0, 1]])])
def test_bad_coordinates(coordinates):
    with pytest.raises(ValueError, match="coordinates"):
        domain_scores(["a", "b"], ["1", "2"], coordinates=coordinates)
