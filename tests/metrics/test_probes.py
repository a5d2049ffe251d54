import numpy as np
import pytest
import torch

from stimg.metrics import probe, transfer_probe
from stimg.metrics._probes import _regions

RNG = np.random.default_rng(0)
PLACES = np.stack(np.meshgrid(np.arange(15.0), np.arange(15.0)), axis=-1).reshape(-1, 2)
LABELS = np.where(PLACES[:, 0] < 7.5, "left", "right")
SIGNAL = np.column_stack([np.where(LABELS == "left", 0.0, 5.0), RNG.normal(size=225)])
SIGNAL[:, 0] += 0.1 * RNG.normal(size=225)


@pytest.mark.parametrize("method", ["knn", "logistic", "mlp"])
def test_each_method_finds_a_plain_signal(method):
    scores = probe(SIGNAL, LABELS, PLACES, method=method, protocol="random")
    assert scores["accuracy"] > 0.95
    assert scores["macro_f1"] > 0.95
    assert scores["ari"] > 0.8
    assert sum(fold["n_test"] for fold in scores["folds"]) == len(LABELS)


def test_blocks_are_contiguous_and_complete():
    tests = _regions(PLACES, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(np.concatenate(tests)), np.arange(225))
    for test in tests:
        inside, outside = PLACES[test], np.delete(PLACES, test, axis=0)
        centre = inside.mean(0)
        # most of what is near the centre of a region belongs to it
        near = np.linalg.norm(outside - centre, axis=1) < 2
        assert near.sum() == 0


def test_blocked_folds_are_harder_than_random_ones_for_mere_smoothness():
    smooth = PLACES / 15
    labels = np.array([f"{x // 4:.0f}{y // 4:.0f}" for x, y in PLACES])
    blocked = probe(smooth, labels, PLACES, protocol="blocked")["accuracy"]
    random = probe(smooth, labels, PLACES, protocol="random")["accuracy"]
    assert random - blocked > 0.3


def test_paper_protocol_is_ten_splits_of_a_fifth():
    scores = probe(SIGNAL, LABELS, protocol="paper")
    assert [fold["n_test"] for fold in scores["folds"]] == [45] * 10
    assert scores["accuracy"] == pytest.approx(np.mean([fold["accuracy"] for fold in scores["folds"]]))


@pytest.mark.parametrize("method", ["knn", "mlp"])
def test_same_seed_same_scores_and_global_state_untouched(method):
    before = torch.random.get_rng_state()
    first, again = (probe(SIGNAL[::3], LABELS[::3], PLACES[::3], method=method, n_folds=2, rng=3) for _ in range(2))
    assert first == again
    assert torch.equal(before, torch.random.get_rng_state())


def test_unlabelled_are_left_out():
    labels = LABELS.astype(object)
    labels[:100] = None
    scores = probe(SIGNAL, labels, PLACES)
    assert sum(fold["n_test"] for fold in scores["folds"]) == 125


def test_transfer_by_hand():
    train = np.array([[0.0], [0.1], [1.0], [1.1]])
    scores = transfer_probe(
        train, list("aabb"), [[0.0], [1.0], [1.05], [0.05]], ["a", "b", None, "b"], method="logistic"
    )
    assert scores["n_test"] == 3
    assert scores["accuracy"] == pytest.approx(2 / 3)
    # F1 of a: precision 1/2, recall 1; of b: precision 1, recall 1/2
    assert scores["macro_f1"] == pytest.approx(2 / 3)


def test_scale_of_features_matters_to_knn_alone():
    noisy = SIGNAL * [1, 100]
    assert probe(noisy, LABELS, protocol="random", method="logistic")["accuracy"] > 0.95
    assert probe(noisy, LABELS, protocol="random", method="knn")["accuracy"] < 0.7


def test_features_are_standardised_by_training_alone():
    moved = np.array([[10.0], [10.1]])
    train = np.array([[0.0], [0.1], [1.0], [1.1]])
    scores = transfer_probe(train, list("aabb"), moved, ["a", "b"], method="logistic")
    assert scores["accuracy"] == 0.5  # both are far on the side of b


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "forest"}, "method"),
        ({"protocol": "leaky"}, "protocol"),
        ({"n_folds": 1}, "n_folds"),
        ({"coordinates": None}, "Expected `coordinates`"),
        ({"coordinates": PLACES[:5]}, "coordinates"),
        ({"coordinates": np.zeros((225, 2))}, "1"),
        ({"embedding": SIGNAL[:5]}, "each of 5 observations"),
        ({"embedding": SIGNAL[:, 0]}, "shape"),
        ({"embedding": np.full((225, 2), np.nan)}, "NaN"),
        ({"labels": [None] * 225}, "only missing"),
        ({"labels": ["a"] * 225}, "at least two labels"),
        ({"labels": ["a", "b", "a"] + [None] * 222}, "at least 5"),
    ],
)
def test_bad_input(change, message):
    arguments = {"embedding": SIGNAL, "labels": LABELS, "coordinates": PLACES, **change}
    with pytest.raises(ValueError, match=message):
        probe(arguments.pop("embedding"), arguments.pop("labels"), arguments.pop("coordinates"), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emb_test": SIGNAL[:, :1]}, "one width"),
        ({"labels_test": LABELS[:3]}, "each of 225 observations"),
        ({"labels_test": [None] * 225}, "only missing"),
        ({"labels_train": ["a"] * 225}, "at least two labels"),
        ({"method": "forest"}, "method"),
    ],
)
def test_bad_transfer(change, message):
    arguments = {"emb_train": SIGNAL, "labels_train": LABELS, "emb_test": SIGNAL, "labels_test": LABELS, **change}
    with pytest.raises(ValueError, match=message):
        transfer_probe(**arguments)
