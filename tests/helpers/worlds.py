"""Make classes as Gaussian clouds with texts near their centers, and an oracle for `anchored`."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.heads import CosineHead

Array = npt.NDArray[Any]

covariance = pytest.importorskip("sklearn.covariance")
optimize = pytest.importorskip("scipy.optimize")


class World:
    """Hold classes as Gaussian clouds around centers, and texts near the centers.

    Args:
        classes, width: C, D.
        noise: of images around the center of their class. Directions differ in it.
        gap: of texts around the center; infinite for texts that tell nothing.
        seed: of all draws.
    """

    def __init__(self, classes: int, width: int, noise: float, gap: float, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.centers = self.random.normal(size=(classes, width))
        self.noise = noise * np.linspace(0.3, 2, width)
        texts = self.random.normal(size=(classes, width))
        if math.isfinite(gap):
            texts = self.centers + gap * texts
        weight = F.normalize(torch.tensor(texts), dim=1)
        self.zero_shot = CosineHead(weight, torch.tensor(math.log(100)))

    def draw(self, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return so many images of each class in random order.

        Returns:
            features (N, D) float32 of unit length, and labels (N,).
        """
        labels = np.repeat(np.arange(len(counts)), counts)
        noise = self.random.normal(size=(len(labels), self.centers.shape[1]))
        features = self.centers[labels] + self.noise * noise
        order = self.random.permutation(len(labels))
        rows = torch.tensor(features[order]).float()
        return F.normalize(rows, dim=1), torch.tensor(labels[order])


def scatter_of(x: Array, y: Array) -> Array | None:
    """Return scikit-learn's estimate from the images of classes that have several."""
    rows = [x[y == c] - x[y == c].mean(axis=0) for c in np.unique(y) if (y == c).sum() > 1]
    if not rows:
        return None
    return covariance.LedoitWolf(assume_centered=True).fit(np.concatenate(rows)).covariance_


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return the loss of each image (N,)."""
    highest = logits.max(axis=1)
    total = np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return total + highest - logits[np.arange(len(labels)), labels]


def temperature(logits: Array, labels: Array) -> tuple[float, Array]:
    """Return the factor with the lowest loss, and the loss of each image at it.

    All images count, and half a mistaken one besides.
    """
    mean = np.sort(logits, axis=1)[:, ::-1].mean(axis=0)[None]

    def loss(log_scale: float) -> float:
        s = np.exp(log_scale)
        mistake = cross_entropy(s * mean, np.array([1]))[0]
        return cross_entropy(s * logits, labels).sum() + mistake / 2

    found = optimize.minimize_scalar(
        loss, bounds=(-6, 6), method="bounded", options={"xatol": 1e-8}
    )
    s = np.exp(found.x)
    return s, cross_entropy(s * logits, labels)


class Oracle:
    """Hold the objective that `anchored` documents, in float64, minimized by SciPy.

    Attributes:
        t: the temperature.
        w: the zero-shot weights (C, D).
    """

    def __init__(self, features: Tensor, labels: Tensor, zero_shot: CosineHead) -> None:
        self.x = features.double().numpy()
        self.y = labels.numpy()
        self.w: Array = zero_shot.weight.detach().double().numpy()
        self.onehot = np.eye(len(self.w))[self.y]
        counts = np.bincount(self.y, minlength=len(self.w))
        # Each class counts alike, and the sum of all shares is N.
        self.share = len(self.y) / (counts > 0).sum() / counts[self.y]
        self.t, _ = temperature(self.x @ self.w.T, self.y)
        self.metric = np.eye(self.x.shape[1])
        scatter = scatter_of(self.x, self.y)
        if scatter is not None:
            values, vectors = np.linalg.eigh(scatter)
            self.metric = vectors @ np.diag(np.maximum(values, 1e-12) ** -0.5) @ vectors.T
            self.metric *= np.linalg.norm(self.x) / np.linalg.norm(self.x @ self.metric)
        self.z = self.x @ self.metric

    def _objective(self, flat: Array, strength: float) -> tuple[float, Array]:
        """Return the loss and its slope at V, which is given as one row (C * D,)."""
        moved = flat.reshape(self.w.shape)  # (C * D,) -> (C, D)
        logits = self.t * self.x @ self.w.T + self.z @ moved.T
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        slope = self.share[:, None] * (chances - self.onehot)
        loss = (self.share * cross_entropy(logits, self.y)).sum()
        loss += strength / 2 * (moved**2).sum()
        return loss, (slope.T @ self.z + strength * moved).ravel()

    def fit(self, strength: float) -> Array:
        """Return the weights (C, D) at the minimum."""
        found = optimize.minimize(
            self._objective,
            np.zeros(self.w.size),
            args=(strength,),
            jac=True,
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-8, "maxiter": 10000, "maxfun": 10000},
        )
        return self.t * self.w + found.x.reshape(self.w.shape) @ self.metric
