"""The classifiers of the probes."""

from __future__ import annotations

from typing import Any

import numpy as np

from stimg._input._device import seeded

METHODS = ("knn", "logistic", "mlp")
MLP_EPOCHS = 40
MLP_BATCH = 128


def make_classifier(method: str, n_neighbors: int, n_train: int, seed: int) -> Any:
    """Return an unfitted classifier, with `fit` and `predict` as in scikit-learn."""
    if method == "knn":
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier(min(n_neighbors, n_train))
    if method == "logistic":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(max_iter=5000, random_state=seed)
    return Perceptron(seed)


class Perceptron:
    """The paper's probe: hidden layers of 512, 256 and 128, dropout 0.5, Adam at 1e-3.

    It is written in torch, since scikit-learn's perceptron has no dropout, and runs on the CPU. Torch's global random
    state stays as it was.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray) -> Perceptron:
        """Train for a fixed number of epochs."""
        import torch
        from torch import nn

        self.classes, codes = np.unique(y, return_inverse=True)
        with seeded(self.seed):
            widths = [X.shape[1], 512, 256, 128]
            layers: list[nn.Module] = []
            for wide, narrow in zip(widths, widths[1:], strict=False):
                layers += [nn.Linear(wide, narrow), nn.ReLU(), nn.Dropout(0.5)]
            self.network = nn.Sequential(*layers, nn.Linear(widths[-1], len(self.classes)))
            optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
            values, targets = torch.from_numpy(X.astype(np.float32)), torch.from_numpy(codes)
            for _ in range(MLP_EPOCHS):
                for batch in torch.randperm(len(values)).split(MLP_BATCH):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(self.network(values[batch]), targets[batch]).backward()
                    optimizer.step()
        self.network.eval()
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the likeliest class of every row."""
        import torch

        with torch.inference_mode():
            scores = self.network(torch.from_numpy(X.astype(np.float32)))
        return self.classes[scores.argmax(1).numpy()]
