"""Logistic regression that starts at the zero-shot classifier and is held to it."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.fitting import class_means, minimize
from clipkit.classify.precision import as_float64, restored
from clipkit.classify.scatter import shrunk_spectrum, span


class LogisticExpert:
    """Hold a logistic regression whose weights start at, and are held to, the zero-shot ones.

    logits = t x W^T + z V^T, where z = ((x - g) S^-1/2, |g|)

    W are the zero-shot weights and t is their temperature. g is the mean of the class means, which
    is most of every image and tells nothing: one number stands for it, a bias. S is the scatter
    within classes, shrunk: a direction in which images of one class differ is worth little.
    Minimized over V is the summed cross-entropy, in which each class counts alike, plus
    strength / 2 |V|^2. Classes without images take no part, and keep the logits of their texts.

    Args:
        features: (N, D), of unit length.
        labels: (N,) int64.
        start: W, (C, D).
        scale: t.

    Attributes:
        weight: (C, D); weight, bias of the linear layer that computes the logits.
        bias: (C,).
    """

    def __init__(self, features: Tensor, labels: Tensor, start: Tensor, scale: float) -> None:
        self.start = start
        self.scale = scale
        found, place, counts = cast(
            "tuple[Tensor, Tensor, Tensor]",
            labels.unique(return_inverse=True, return_counts=True),
        )
        self.found = found  # (P,), the classes that have images
        self.labels = place  # (N,)
        self.shares = len(labels) / len(found) / counts.float()  # (P,)
        self.base = scale * features @ start[found].T  # (N, P)
        means, _ = class_means(features, place, len(found))  # (P, D)
        self.center = means.mean(dim=0)  # g, (D,)
        self.length = cast(Tensor, self.center.norm()).item()  # |g|
        self.metric = _metric(features - self.center, features - means[place], len(found))  # (D, n)
        inner = (features - self.center) @ self.metric  # (N, n)
        self.inputs = F.pad(inner, (0, 1), value=self.length)  # z, (N, n + 1)
        self.moved = features.new_zeros(len(found), self.inputs.shape[1])  # V, (P, n + 1)
        self.weight = scale * start
        self.bias = start.new_zeros(len(start))

    def fit(self, strength: float, iterations: int) -> None:
        """Fit V, starting from where the last fit ended."""
        moved = self.moved.requires_grad_()

        def loss() -> Tensor:
            logits = self.base + self.inputs @ moved.T
            cross_entropy = F.cross_entropy(logits, self.labels, self.shares, reduction="sum")
            return (cross_entropy + strength / 2 * moved.square().sum()) / len(self.labels)

        minimize(loss, [moved], iterations)
        self.moved = moved.detach()
        change = self.moved[:, :-1] @ self.metric.T  # (P, D)
        bias = self.moved[:, -1] * self.length - change @ self.center  # (P,)
        self.weight = (self.scale * self.start).index_add(0, self.found, change)
        self.bias = torch.zeros_like(self.bias).index_add(0, self.found, bias)


def _metric(rows: Tensor, rest: Tensor, classes: int) -> Tensor:
    """Return S^-1/2 in a basis of all directions in which images differ, (D, n).

    Its size is such that rows keep their mean length, so that a strength means the same always.

    Args:
        rows: the features around their center, (N, D).
        rest: the features around the means of their classes, (N, D).
        classes: how many those are.
    """
    exact = as_float64(rows)
    basis = span(exact)  # (D, n)
    inner = as_float64(rest) @ basis  # (N, n)
    freedom = len(rows) - classes
    if freedom < 1:
        return restored(basis, rows)  # single images have no scatter
    covariance = inner.T @ inner / freedom
    values, vectors, _, _ = shrunk_spectrum(covariance, rows.shape[1], freedom)
    metric = basis @ (vectors * values.rsqrt()) @ vectors.T  # (D, n)
    kept = cast(Tensor, exact.norm()) / cast(Tensor, (exact @ metric).norm())
    return restored(metric * kept.nan_to_num(1.0), rows)  # 0 / 0 where all images are the same
