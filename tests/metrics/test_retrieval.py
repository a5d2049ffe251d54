"""Recall of partners, and scores of labels in an embedding."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

import stimg


def test_recall_by_hand():
    images = np.eye(4)
    genes = np.array([[1.0, 0, 0, 0], [0.9, 0.4, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    found = stimg.metrics.retrieval_recall(images, genes, ks=(1, 2))
    assert found["image_to_gene@1"] == 1.0
    assert found["gene_to_image@1"] == 0.75
    assert found["gene_to_image@2"] == 1.0
    assert found["chance@2"] == 0.5


def test_constant_embeddings_are_chance():
    found = stimg.metrics.retrieval_recall(np.ones((20, 3)), np.ones((20, 3)), ks=(1, 5))
    assert found["image_to_gene@5"] == pytest.approx(found["chance@5"])
    assert found["gene_to_image@1"] == pytest.approx(0.05)


def test_slides_are_searched_apart():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(30, 4))
    groups = np.repeat(["a", "b", "c"], [10, 10, 10])
    found = stimg.metrics.retrieval_recall(images, images, ks=(1,), groups=groups)
    assert found == pytest.approx({"image_to_gene@1": 1.0, "gene_to_image@1": 1.0, "chance@1": 0.1})


def test_many_spots_in_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    images, genes = rng.normal(size=(2, 50, 6))
    whole = stimg.metrics.retrieval_recall(images, genes)
    monkeypatch.setattr("stimg.metrics._retrieval.CHUNK", 7)
    assert stimg.metrics.retrieval_recall(images, genes) == whole


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones((3, 2)), np.ones((4, 2))), {}, "`genes` of shape .3, 2"),
        ((np.ones((3, 2)), np.full((3, 2), np.nan)), {}, "`genes` has NaN"),
        ((np.ones((3, 2)), np.ones((3, 2))), {"ks": (0,)}, "ks"),
        ((np.ones((3, 2)), np.ones((3, 2))), {"groups": [1]}, "groups"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        stimg.metrics.retrieval_recall(*arguments, **options)


def test_scores_of_labels():
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", None] * 20, dtype=object)
    values = rng.normal(size=(60, 3)) + 5 * (labels == "a")[:, None]
    found = stimg.metrics.embedding_scores(values, labels)
    known = labels != None  # noqa: E711
    assert found["silhouette"] == pytest.approx(silhouette_score(values[known], labels[known].astype(str)))
    assert found["davies_bouldin"] < 1 < found["calinski_harabasz"]
    with pytest.raises(ValueError, match="labels"):
        stimg.metrics.embedding_scores(values, ["a"] * 60)
    with pytest.raises(ValueError, match="labels"):
        stimg.metrics.embedding_scores(values, ["a"] * 3)
