"""How well labels can be predicted from a frozen embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stimg._input._checks import check_choice, check_positive_int, checked
from stimg.metrics._checks import as_labels, as_points, labelled_rows
from stimg.metrics._classifiers import METHODS, make_classifier

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

PROTOCOLS = ("blocked", "random", "paper")
NEIGHBOURS = 15
PAPER_NEIGHBOURS = 10
PAPER_REPEATS = 10
PAPER_TEST_SHARE = 0.2


@checked
def probe(
    embedding: ArrayLike,
    labels: ArrayLike,
    coordinates: ArrayLike | None = None,
    *,
    method: Literal["knn", "logistic", "mlp"] = "knn",
    protocol: Literal["blocked", "random", "paper"] = "blocked",
    n_folds: int = 5,
    rng: int | np.random.Generator | None = 0,
) -> dict[str, Any]:
    """Predict labels from a frozen embedding of one slide.

    Parameters
    ----------
    embedding
        Features, shape (n_obs, n_features). Standardised by the training observations of each fold, except for k-NN.
    labels
        Expert labels, shape (n_obs,); observations without one (NaN, None) are left out.
    coordinates
        Positions, shape (n_obs, 2); needed by the blocked protocol.
    method
        `"knn"`: 15 nearest neighbours (10 under the paper's protocol). `"logistic"`: logistic regression with an L2
        penalty of strength 1. `"mlp"`: layers of 512, 256 and 128 with dropout 0.5, trained by Adam at 1e-3 for 40
        epochs in batches of 128.
    protocol
        `"blocked"`: k-means of the coordinates cuts the slide into `n_folds` contiguous regions, and each is predicted
        from the others. `"random"`: folds of scattered observations; any smooth embedding scores high, since neighbours
        of the test observations are in training. `"paper"`: ten random splits into 80 and 20 % (Zhu et al. 2026), with
        the same leak.
    n_folds
        Number of folds for `"blocked"` and `"random"`.
    rng
        Seed or generator for the folds and classifiers.

    Returns
    -------
    dict
        `accuracy`, `macro_f1` and `ari`, and `folds`: a list of the same scores for every fold, with its `n_test`.
        For `"blocked"` and `"random"` the scores are over all observations, each predicted once; for `"paper"` they are
        means over the splits. Macro-F1 is over the labels that occur in the test observations.

    Raises
    ------
    ValueError
        Shapes do not fit, values are not finite, `method` or `protocol` is unknown, there are no coordinates for
        `"blocked"`, fewer than two labels, or fewer labelled observations (or places) than folds.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic(n_obs=300)
    >>> sc.pp.pca(slide)
    >>> sorted(stimg.metrics.probe(slide.obsm["X_pca"], slide.obs["domain"], slide.obsm["spatial"]))
    ['accuracy', 'ari', 'folds', 'macro_f1']
    """
    check_choice("method", method, METHODS)
    check_choice("protocol", protocol, PROTOCOLS)
    check_positive_int("n_folds", n_folds, minimum=2)
    features, truth, labelled = _labelled(embedding, labels, "embedding", "labels")
    points = None if coordinates is None else as_points(coordinates, "coordinates", np.size(labels), 2)
    if points is None and protocol == "blocked":
        msg = "Expected `coordinates` for `protocol='blocked'`, found none. Pass `adata.obsm['spatial']`."
        raise ValueError(msg)
    if len(truth) < max(n_folds, 5):
        msg = f"Expected at least {max(n_folds, 5)} labelled observations, found {len(truth)}. Lower `n_folds`."
        raise ValueError(msg)
    generator = np.random.default_rng(rng)
    if protocol == "blocked" and points is not None:
        tests = _regions(points[labelled], n_folds, generator)
    elif protocol == "random":
        tests = np.array_split(generator.permutation(len(truth)), n_folds)
    else:
        n_test = round(PAPER_TEST_SHARE * len(truth))
        tests = [generator.permutation(len(truth))[:n_test] for _ in range(PAPER_REPEATS)]
    neighbours = PAPER_NEIGHBOURS if protocol == "paper" else NEIGHBOURS
    guess = np.empty(len(truth), dtype=object)
    folds = []
    for test in tests:
        train = np.setdiff1d(np.arange(len(truth)), test)
        guess[test] = _predict(features[train], truth[train], features[test], method, neighbours, generator)
        folds.append({**_scores(truth[test], guess[test].astype(str)), "n_test": len(test)})
    if protocol == "paper":
        scores = {name: float(np.mean([fold[name] for fold in folds])) for name in ("accuracy", "macro_f1", "ari")}
    else:
        scores = _scores(truth, guess.astype(str))
    return {**scores, "folds": folds}


@checked
def transfer_probe(
    emb_train: ArrayLike,
    labels_train: ArrayLike,
    emb_test: ArrayLike,
    labels_test: ArrayLike,
    *,
    method: Literal["knn", "logistic", "mlp"] = "knn",
    rng: int | np.random.Generator | None = 0,
) -> dict[str, float]:
    """Predict the labels of one slide from another's.

    Parameters
    ----------
    emb_train, emb_test
        Features of both slides, shapes (n_train, n_features) and (n_test, n_features). Both are standardised by the
        training slide, except for k-NN.
    labels_train, labels_test
        Their labels; observations without one are left out.
    method
        As in :func:`probe`.
    rng
        Seed or generator for the classifier.

    Returns
    -------
    dict
        `accuracy`, `macro_f1` (over the labels of the test slide), `ari`, `n_train` and `n_test`.

    Raises
    ------
    ValueError
        Shapes do not fit, values are not finite, `method` is unknown, or there are fewer than two training labels or no
        labelled observation to test.

    Examples
    --------
    >>> train, test = np.array([[0.0], [1.0]]), np.array([[0.25], [0.75]])
    >>> stimg.metrics.transfer_probe(train, ["a", "b"], test, ["a", "b"], method="logistic")["accuracy"]
    1.0
    """
    check_choice("method", method, METHODS)
    features, truth, _ = _labelled(emb_train, labels_train, "emb_train", "labels_train")
    test_features, test_truth, _ = _labelled(emb_test, labels_test, "emb_test", "labels_test")
    if features.shape[1] != test_features.shape[1]:
        msg = f"Expected embeddings of one width, found {features.shape[1]} and {test_features.shape[1]} features."
        raise ValueError(msg)
    guess = _predict(features, truth, test_features, method, NEIGHBOURS, np.random.default_rng(rng))
    return {**_scores(test_truth, guess), "n_train": len(truth), "n_test": len(test_truth)}


def _labelled(
    embedding: ArrayLike, labels: ArrayLike, embedding_name: str, labels_name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features and labels of the labelled observations, and the numbers of these."""
    features = as_points(embedding, embedding_name)
    truth = as_labels(labels, labels_name, len(features))
    rows = labelled_rows(truth, labels_name)
    return features[rows], truth[rows].astype(str), rows


def _regions(points: np.ndarray, n_folds: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Cut a slide into contiguous regions by k-means of the coordinates."""
    from sklearn.cluster import KMeans

    if (n_places := len(np.unique(points, axis=0))) < n_folds:
        msg = f"Expected at least {n_folds} different places in `coordinates` for as many folds, found {n_places}."
        raise ValueError(msg)
    seed = int(generator.integers(2**31))
    region = KMeans(n_folds, n_init=10, random_state=seed).fit_predict(points - points.mean(0))
    return [np.flatnonzero(region == fold) for fold in range(n_folds)]


def _predict(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, method: str, n_neighbors: int, rng: np.random.Generator
) -> np.ndarray:
    """Fit and predict. Features are standardised by the training observations, except for k-NN.

    Unit variance of every principal component would give noise the weight of signal in the distances of k-NN.
    """
    if len(classes := np.unique(labels)) < 2:
        msg = f"Expected at least two labels among the training observations, found {list(map(str, classes))}."
        raise ValueError(msg)
    mean, std = train.mean(0), train.std(0)
    std = np.where(std > 1e-12 * np.abs(mean).clip(min=1e-12), std, 1)
    if method == "knn":
        mean, std = np.zeros_like(mean), np.ones_like(std)
    classifier = make_classifier(method, n_neighbors, len(train), int(rng.integers(2**31)))
    classifier.fit((train - mean) / std, labels)
    return classifier.predict((test - mean) / std)


def _scores(truth: np.ndarray, guess: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import adjusted_rand_score, f1_score

    return {
        "accuracy": float((truth == guess).mean()),
        "macro_f1": float(f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0)),
        "ari": float(adjusted_rand_score(truth, guess)),
    }
