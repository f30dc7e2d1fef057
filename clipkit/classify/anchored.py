"""Logistic regression that starts at the zero-shot classifier and moves away as far as images ask.

The penalty towards the text prototypes is the idea of CLAP (2312.12730). Here the strength of the
penalty is chosen on the support set, the temperature of the prototypes is fitted first, and
distances are measured against the scatter within classes.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.fitting import (
    Fitted,
    Folds,
    calibrate,
    class_means,
    held_out,
    held_out_logits,
    make_folds,
    minimize,
    temperature,
)
from clipkit.classify.heads import CosineHead, LinearHead
from clipkit.classify.precision import as_float64, restored

# 100 to 0.003 in half decades, the strongest first.
STRENGTHS = tuple(10 ** (exponent / 2) for exponent in range(4, -6, -1))

# Past the minimum of the loss, weaker penalties only take longer: the sweep stops at so much more.
STOP_ABOVE = 1.05


def anchored(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    *,
    strength: float | None = None,
) -> Fitted:
    """Fit logistic regression that is penalized towards the zero-shot weights; see `_Anchored`.

    Args:
        features, labels, zero_shot: as in `fit_head`.
        generator: draws the folds.
        strength: of the penalty, above 0; infinity is zero-shot itself. By default it is chosen by
            `_cross_validate`, or by `_Anchored.rule` where each class has a single image.

    Returns:
        A `LinearHead` without bias, and the strength.
    """
    start = zero_shot.weight.detach()
    model = _Anchored(features, labels, start)
    calibration = 1.0
    if strength is None:
        folds = make_folds(labels, generator)
        if folds:
            strength, calibration = _cross_validate(features, labels, start, folds)
        else:
            strength = model.rule()
    if math.isfinite(strength):
        model.fit(strength, iterations=100)
    head = LinearHead(calibration * model.weight(), scale=calibration * model.scale)
    return head, {"strength": strength}


def _cross_validate(
    features: Tensor, labels: Tensor, start: Tensor, folds: Folds
) -> tuple[float, float]:
    """Return the strength with the lowest loss on held-out images, and its calibrating factor.

    Zero-shot itself, at an infinite strength, is kept unless its loss is higher by more than one
    standard error.

    Args:
        features: (N, D).
        labels: (N,).
        start: (C, D), the zero-shot weights.
        folds: at least one.
    """
    parts = [_Anchored(features[rest], labels[rest], start) for rest, _ in folds]
    answers = held_out(labels, folds)

    def evaluate() -> tuple[Tensor, float]:
        functions = [part.logits for part in parts]
        return calibrate(held_out_logits(functions, features, folds), answers)

    results = {math.inf: evaluate()}
    for strength in STRENGTHS:
        for part in parts:
            part.fit(strength, iterations=30)
        results[strength] = evaluate()
        lowest = min(losses.mean() for losses, _ in results.values())
        if results[strength][0].mean() > STOP_ABOVE * lowest:
            break
    best = min(results, key=lambda strength: results[strength][0].mean())
    if not _is_clearly_lower(results[best][0], results[math.inf][0]):
        best = math.inf
    return best, results[best][1]


def _is_clearly_lower(losses: Tensor, others: Tensor) -> bool:
    """Return whether the losses (N,) are lower on average by more than one standard error.

    That is false for a single image, which has no standard error.
    """
    gain = others - losses
    return bool(gain.mean() > gain.std() / len(gain) ** 0.5)


class _Anchored:
    """Hold a logistic regression whose weights start at, and are held to, the zero-shot ones.

    logits = t x W^T + z V^T, where z = x S^-1/2

    W are the zero-shot weights and t is their temperature, which is fitted first. S is the scatter
    within classes: a direction in which images of one class differ is worth little. Minimized over
    V is the summed cross-entropy, in which each class counts alike, plus strength / 2 |V|^2.

    Args:
        features: (N, D).
        labels: (N,).
        start: W, (C, D).

    Attributes:
        scale: t.
    """

    def __init__(self, features: Tensor, labels: Tensor, start: Tensor) -> None:
        logits = features @ start.T
        self.labels = labels
        self.start = start
        self.scale = temperature(logits, labels)
        self.base = self.scale * logits  # (N, C)
        self.metric = _metric(features, labels, classes=len(start))  # (D, D)
        self.inputs = features @ self.metric  # (N, D)
        self.moved = start.new_zeros(start.shape)  # V, (C, D)
        self.shares = _shares(labels, classes=len(start))  # (C,)

    def fit(self, strength: float, iterations: int) -> None:
        """Fit V, starting from where the last fit ended."""
        moved = self.moved.requires_grad_()

        def loss() -> Tensor:
            logits = self.base + self.inputs @ moved.T
            cross_entropy = F.cross_entropy(logits, self.labels, self.shares, reduction="sum")
            return (cross_entropy + strength / 2 * moved.square().sum()) / len(self.labels)

        minimize(loss, [moved], iterations)
        self.moved = moved.detach()

    def rule(self) -> float:
        """Return the strength to use where no image can be held out: 0.03 / r^3.

        r is the share of log C that remains of the loss when the zero-shot cosines are scaled to
        fit, and at least 0.03. The more the texts say of the support set, the more they are
        trusted. Both 0.03 and the power were set by hand, on the three data sets of
        `examples/few_shot.py`.
        """
        remains = F.cross_entropy(self.base, self.labels).item() / math.log(self.base.shape[1])
        return 0.03 / max(remains, 0.03) ** 3

    def weight(self) -> Tensor:
        """Return the weights (C, D) of the linear layer that computes the logits."""
        return self.scale * self.start + self.moved @ self.metric

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (M, C) of any features (M, D)."""
        return features @ self.weight().T


def _shares(labels: Tensor, classes: int) -> Tensor:
    """Return how much an image of each class counts (C,), so that classes count alike.

    Over all images the sum is N.
    """
    counts = labels.bincount(minlength=classes).float()
    present = (counts > 0).sum().float()
    return len(labels) / present / counts.clamp(min=1)


def _metric(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the matrix S^-1/2 (D, D) float32, or the identity where S is unknown.

    Its size is such that features keep their mean length, so that a strength means the same always.
    """
    scatter = _scatter(features, labels, classes)
    if scatter is None:
        return torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
    values, vectors = cast("tuple[Tensor, Tensor]", torch.linalg.eigh(scatter))  # (D,), (D, D)
    metric = restored(vectors * values.clamp(min=1e-12).rsqrt() @ vectors.T, features)
    shrinkage = cast(Tensor, features.norm() / (features @ metric).norm())
    return metric * shrinkage


def _scatter(features: Tensor, labels: Tensor, classes: int) -> Tensor | None:
    """Return the covariance of features around the mean of their class, shrunk.

    Ledoit and Wolf (2004): it is shrunk towards a multiple of the identity, by the amount that
    minimizes the expected squared error.

    Args:
        features: (N, D) float32.
        labels: (N,) int64.
        classes: C.

    Returns:
        (D, D) float64, on the device of `as_float64`; None if no class has two images.
    """
    means, counts = class_means(features, labels, classes)
    if counts.max() < 2:
        return None
    rest = as_float64((features - means[labels])[counts[labels] > 1])  # (n, D)
    count, width = rest.shape
    covariance = rest.T @ rest / count
    identity = torch.eye(width, dtype=rest.dtype, device=rest.device)
    target = identity * covariance.trace() / width
    distance = (covariance - target).square().sum()
    noise = (rest.square().sum(dim=1).square().sum() / count - covariance.square().sum()) / count
    share = (noise / distance).nan_to_num(0)  # 0 / 0 where images of one class are all the same
    return torch.lerp(covariance, target, share.clamp(0, 1))
