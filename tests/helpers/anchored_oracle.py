"""What `anchored` documents, in float64 and in all directions, by NumPy, SciPy and scikit-learn."""

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from torch import Tensor

from clipkit.classify.heads import CosineHead

Array = npt.NDArray[Any]

covariance = pytest.importorskip("sklearn.covariance")
linalg = pytest.importorskip("scipy.linalg")
optimize = pytest.importorskip("scipy.optimize")


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

    s = math.exp(_lowest(loss, 6))
    return s, cross_entropy(s * logits, labels)


def _lowest(loss: Any, bound: float) -> float:
    found = optimize.minimize_scalar(
        loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-9}
    )
    return float(found.x)


def within(x: Array, y: Array) -> Array:
    """Return independent rows (N - P, D) with the scatter of images around their class means."""
    rows = [linalg.helmert(sum(y == c)) @ x[y == c] for c in np.unique(y) if sum(y == c) > 1]
    return np.concatenate(rows) if rows else np.zeros((0, x.shape[1]))


def oas(rows: Array) -> Array:
    """Return scikit-learn's estimate from rows (M, D) around zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single row is enough
        return covariance.OAS(assume_centered=True).fit(rows).covariance_.reshape(-1, rows.shape[1])


class Oracle:
    """Hold what both experts start from, and the logistic one.

    Attributes:
        t: the temperature of the texts.
        x, y, w: features, labels, texts.
        found: the classes that have images, (P,).
        counts: of images, (C,).
        g: the mean of the class means.
    """

    def __init__(self, features: Tensor, labels: Tensor, zero_shot: CosineHead) -> None:
        self.x: Array = features.double().numpy()
        self.y: Array = labels.numpy()
        self.w: Array = zero_shot.weight.detach().double().numpy()
        self.counts = np.bincount(self.y, minlength=len(self.w))
        self.found = np.flatnonzero(self.counts)
        means = [self.x[self.y == c].mean(axis=0) for c in self.found]
        self.g: Array = np.mean(means, axis=0)
        self.usual = zero_shot.scale
        cosines = self.x @ self.w.T

        def loss(moved: float) -> float:
            scores = self.usual * np.exp(moved) * cosines
            return cross_entropy(scores, self.y).sum() + moved**2 / 2

        self.t = self.usual * math.exp(_lowest(loss, 20))
        self.metric = np.eye(self.x.shape[1])
        rows = within(self.x, self.y)
        if len(rows):
            values, vectors = np.linalg.eigh(oas(rows))
            self.metric = vectors @ np.diag(np.maximum(values, 1e-12) ** -0.5) @ vectors.T
            size = np.linalg.norm((self.x - self.g) @ self.metric)
            self.metric *= np.linalg.norm(self.x - self.g) / size if size else 1.0

    def logistic(self, strength: float) -> tuple[Array, Array]:
        """Return weights (C, D) and bias (C,) of the regression."""
        place = np.searchsorted(self.found, self.y)
        share = len(self.y) / len(self.found) / self.counts[self.y]  # (N,)
        base = self.t * self.x @ self.w[self.found].T
        length = np.linalg.norm(self.g)
        z = np.column_stack([(self.x - self.g) @ self.metric, np.full(len(self.x), length)])
        onehot = np.eye(len(self.found))[place]

        def objective(flat: Array) -> tuple[float, Array]:
            moved = flat.reshape(len(self.found), -1)  # (P, D + 1)
            logits = base + z @ moved.T
            chances = np.exp(logits - logits.max(axis=1, keepdims=True))
            chances /= chances.sum(axis=1, keepdims=True)
            slope = (share[:, None] * (chances - onehot)).T @ z + strength * moved
            loss = (share * cross_entropy(logits, place)).sum() + strength / 2 * (moved**2).sum()
            return loss, slope.ravel()

        options = {"ftol": 1e-15, "gtol": 1e-8, "maxiter": 10000, "maxfun": 10000}
        start = np.zeros(z.shape[1] * len(self.found))
        found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
        moved = found.x.reshape(len(self.found), -1)
        change = moved[:, :-1] @ self.metric
        weight, bias = self.t * self.w, np.zeros(len(self.w))
        weight[self.found] += change
        bias[self.found] = moved[:, -1] * length - change @ self.g
        return weight, bias


class GaussianOracle:
    """Hold Gaussians of all classes, with matrices (D, D) for each.

    Attributes:
        share: that the covariance was shrunk by.
    """

    def __init__(self, start: Oracle) -> None:
        self.start = start
        classes, self.width = start.w.shape
        self.own = np.zeros((classes, self.width))  # means around the mean of all
        for c in start.found:
            self.own[c] = start.x[start.y == c].mean(axis=0) - start.g
        self.by_images = np.zeros_like(self.own)  # what images alone make of the mean of all
        self.hidden = np.zeros(self.width)  # of each variance, the smallest first

    def fit(self, distance: float, rounds: int) -> tuple[Array, Array]:
        """Return weights (C, D) and bias (C,)."""
        for _ in range(rounds):
            self._round(distance)
        one = self.start
        s = self.vectors @ np.diag(self.values) @ self.vectors.T
        texts = one.t * (one.w - one.w.mean(axis=0))
        by_text = texts @ s
        means = np.array(
            [p + gain @ (o - p) for p, gain, o in zip(by_text, self.gain, self.own, strict=True)]
        )
        weight = np.linalg.solve(s, means.T).T
        squares = np.einsum("cd,cd->c", weight, means) / 2
        # Of n images the mean is off by S / n, of which the gain lets its square through.
        through = np.array([np.trace(gain @ gain) for gain in self.gain])
        squares -= through / np.maximum(one.counts, 1) / 2
        by_text_alone = np.einsum("cd,cd->c", texts, by_text) / 2
        absent = one.counts == 0
        longer = (squares - by_text_alone)[~absent].mean()
        squares[absent] = by_text_alone[absent] + longer
        bias = -squares - weight @ one.g
        return weight + one.t * one.w.mean(axis=0), bias - bias.mean()

    def _round(self, distance: float) -> None:
        """Find the scatter around `by_images`, and that again."""
        one, width = self.start, self.width
        rest = one.x - one.g - self.by_images[one.y]
        freedom = max(1, len(rest) * (1 - self.hidden.mean()) - 1)
        raw = rest.T @ rest / len(rest)
        squares, trace = (raw**2).sum(), np.trace(raw)
        below = (freedom + 1) * (squares - trace**2 / width)
        self.share = min(1.0, (squares + trace**2) / below) if below > 0 else 1.0
        shrunk = (1 - self.share) * raw + self.share * trace / width * np.eye(width)
        values, self.vectors = np.linalg.eigh(shrunk)
        hidden = self.hidden if self.share < 1 else np.full(width, self.hidden.mean())
        self.values = np.maximum(values, 1e-12) / np.maximum(1 - hidden, 0.05)
        ratio = distance * np.sqrt(self.values / self.values.mean())
        shares = [n * ratio / (1 + n * ratio) for n in one.counts]  # (C, D)
        self.gain = [self.vectors @ np.diag(share) @ self.vectors.T for share in shares]
        self.hidden = np.sum(shares, axis=0) / len(rest)
        self.by_images = np.array([gain @ o for gain, o in zip(self.gain, self.own, strict=True)])


class Pair:
    """Hold both experts on one support set, and average them."""

    def __init__(self, features: Tensor, labels: Tensor, zero_shot: CosineHead) -> None:
        self.one = Oracle(features, labels, zero_shot)
        self.two = GaussianOracle(self.one)

    def layers(self, strength: float, rounds: int) -> dict[str, tuple[Array, Array]]:
        """Return the layer of both, and of each alone."""
        first = self.one.logistic(strength)
        second = self.two.fit(0.003 / strength, rounds)
        mean = tuple((a + b) / 2 for a, b in zip(first, second, strict=True))
        return {"both": (mean[0], mean[1]), "logistic": first, "gaussian": second}


def logits(layer: tuple[Array, Array], features: Tensor) -> Array:
    """Return the logits (N, C) of features (N, D)."""
    return features.double().numpy() @ layer[0].T + layer[1]


def half_errors(losses: Array, others: Array) -> float:
    """Return by how many halves of a standard error losses are lower than others."""
    gain = others - losses
    if not gain.any():
        return 0.0
    return float(2 * gain.mean() / (gain.std(ddof=1) / math.sqrt(len(gain))))
