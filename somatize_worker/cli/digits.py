"""What the demo trains: handwritten digits, read by a small neural network.

Written as a user would write it. The steps are two estimators of scikit-learn, and a filter of our own around a third
one, so that its training can report how far it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from somatize_worker import Filter, report
from somatize_worker.pipeline import Pipeline, pipeline

EPOCHS = 120


class Images(NamedTuple):
    """Images as rows of 64 numbers, and which digit each shows."""

    x_train: np.ndarray
    x_test: np.ndarray
    y_train: np.ndarray
    y_test: np.ndarray


def load(seed: int) -> Images:
    """The data set that comes with scikit-learn; a quarter of it is kept for the test."""
    images, digits = load_digits(return_X_y=True)
    return Images(*train_test_split(images, digits, test_size=0.25, stratify=digits, random_state=seed))


def make_pipeline(seed: int) -> Pipeline:
    """Scale and reduce where the plan runs; train on a worker that serves the tag ``trainer``."""

    class Classifier(Filter):
        """A neural network. What ``fit`` returns is the state that ``forward`` gets."""

        def fit(self, x: Any, y: Any = None) -> Any:
            network = MLPClassifier(hidden_layer_sizes=(96,), learning_rate_init=0.003, random_state=seed)
            for epoch in range(EPOCHS):
                network.partial_fit(x, y, classes=np.arange(10))
                report(progress=(epoch + 1) / EPOCHS, metrics={"loss": network.loss_})
            return network

        def forward(self, x: Any, state: Any) -> Any:
            return state.predict(x)

    return pipeline(
        pipeline(StandardScaler(), name="scale"),
        pipeline(PCA(n_components=32, random_state=seed), name="reduce"),
        Classifier().named("classify").on("trainer"),
    )
