"""A network with one hidden layer, in numpy."""

from __future__ import annotations

import numpy as np

Weights = dict[str, np.ndarray]


def spirals(points: int, turns: float, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two spirals wound into each other: positions (2 × points, 2) and which spiral each is on (0 or 1)."""
    random = np.random.default_rng(seed)
    along = np.sqrt(random.uniform(0.02, 1.0, points))
    angle = 2 * np.pi * turns * along
    arm = np.stack([along * np.cos(angle), along * np.sin(angle)], axis=1)
    x = np.concatenate([arm, -arm]) + random.normal(0.0, noise, (2 * points, 2))
    return x, np.repeat([0.0, 1.0], points)


def start(hidden: int, seed: int = 0) -> Weights:
    """Weights to begin with. The input is a position and its sines and cosines: 10 numbers."""
    random = np.random.default_rng(seed)
    return {
        "w1": random.normal(0.0, 0.5, (10, hidden)),
        "b1": np.zeros(hidden),
        "w2": random.normal(0.0, 0.5, (hidden, 1)),
        "b2": np.zeros(1),
    }


def features(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.sin(4 * x), np.cos(4 * x), np.sin(8 * x), np.cos(8 * x)], axis=1)


def predict(weights: Weights, x: np.ndarray) -> np.ndarray:
    """The probability of the second spiral for each position."""
    hidden = np.tanh(features(x) @ weights["w1"] + weights["b1"])
    return 1.0 / (1.0 + np.exp(-(hidden @ weights["w2"] + weights["b2"])[:, 0]))


def improve(weights: Weights, x: np.ndarray, y: np.ndarray, rate: float) -> float:
    """One step down the gradient, in place; returns the loss before it."""
    inputs = features(x)
    hidden = np.tanh(inputs @ weights["w1"] + weights["b1"])
    guess = 1.0 / (1.0 + np.exp(-(hidden @ weights["w2"] + weights["b2"])[:, 0]))
    error = ((guess - y) / len(y))[:, None]
    back = error @ weights["w2"].T * (1.0 - hidden**2)
    weights["w2"] -= rate * hidden.T @ error
    weights["b2"] -= rate * error.sum(axis=0)
    weights["w1"] -= rate * inputs.T @ back
    weights["b1"] -= rate * back.sum(axis=0)
    return float(-np.mean(y * np.log(guess + 1e-9) + (1 - y) * np.log(1 - guess + 1e-9)))
