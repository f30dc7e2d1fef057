"""Logistic regression that starts at the zero-shot classifier, and moves from it as far as the pictures warrant.

A penalty towards the text prototypes is CLAP's idea (2312.12730). Here its strength is chosen on the support set, the
prototypes' temperature is fitted first, and distances are measured against the scatter within classes.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.fitting import calibrate, class_means, make_folds, minimise, temperature
from clipkit.classify.heads import CosineHead, Head, LinearHead
from clipkit.errors import ConfigError

Fitted = tuple[Head, dict[str, Any]]
STRENGTHS = tuple(
    10 ** (exponent / 2) for exponent in range(4, -6, -1)
)  # 100 to 0.003, the strongest first


def anchored(
    features: Tensor, labels: Tensor, zero_shot: CosineHead, strength: float | None = None
) -> Fitted:
    """Logistic regression started at the zero-shot weights and penalised towards them; see `_Anchored`.

    Args:
        features, labels, zero_shot: as in `fit_head`.
        strength: of the penalty. By default the one of `STRENGTHS` with the lowest loss under cross-validation, or
            infinity, which is zero-shot itself, unless that is worse by more than its standard error; the logits are
            then scaled as was best for the held-out pictures. Where each class has one picture it is 0.03 / r^3, r the
            share of log C, at least 0.03, that remains of the loss when the zero-shot cosines are scaled to fit: the
            more the texts say of the support set, the more they are trusted. (0.03 and the power were set by hand, on
            the three sets of `examples/few_shot.py`.)
    """
    weight = zero_shot.weight.detach()
    if strength is not None and not strength > 0:
        raise ConfigError(f"strength must be above 0, not {strength!r}")
    whole, scale = _Anchored(features, labels, weight), 1.0
    if strength is None:
        strength, scale = _cross_validate(features, labels, weight) or (whole.rule(), 1.0)
    if math.isfinite(strength):
        whole.fit(strength, iterations=100)
    return LinearHead(scale * whole.weight(weight)), {
        "strength": strength,
        "scale": scale * whole.scale,
    }


def _cross_validate(features: Tensor, labels: Tensor, weight: Tensor) -> tuple[float, float] | None:
    """The best strength and the factor that calibrates it; None if there is nothing to hold out."""
    folds = make_folds(labels)
    parts = [_Anchored(features[rest], labels[rest], weight) for rest, _ in folds]
    if not parts:
        return None
    answers = torch.cat([labels[out] for _, out in folds])

    def held_out() -> tuple[Tensor, float]:
        logits = torch.cat(
            [
                features[out] @ part.weight(weight).T
                for part, (_, out) in zip(parts, folds, strict=True)
            ]
        )
        return calibrate(logits, answers)

    results = {math.inf: held_out()}
    for strength in STRENGTHS:
        for part in parts:
            part.fit(strength, iterations=30)
        results[strength] = held_out()
        if results[strength][0].mean() > 1.05 * min(
            losses.mean() for losses, _ in results.values()
        ):
            break  # past the minimum; what is weaker only takes longer
    best = min(results, key=lambda strength: results[strength][0].mean())
    gain = results[math.inf][0] - results[best][0]
    if not gain.mean() > gain.std() / len(gain) ** 0.5:  # of a single picture there is no deviation
        best = math.inf
    return best, results[best][1]


class _Anchored:
    """Logistic regression whose weights start at, and are held to, the zero-shot ones.

    logits = t x W^T + z V^T, z = x S^-1/2; minimised is the summed cross-entropy, each class counted alike, plus
    strength / 2 |V|^2, over V. t is fitted first, and S is the scatter within classes: a direction in which pictures of
    one class differ is worth little.
    """

    def __init__(self, features: Tensor, labels: Tensor, weight: Tensor) -> None:
        classes, self.labels = len(weight), labels
        logits = features @ weight.T
        self.scale = temperature(logits, labels)
        self.base = self.scale * logits
        scatter = _scatter(features, labels, classes)
        if scatter is None:
            self.metric = torch.eye(features.shape[1], device=features.device)
        else:
            values, vectors = torch.linalg.eigh(scatter)
            self.metric = (vectors * values.clamp(min=1e-12).rsqrt() @ vectors.T).float()
            self.metric *= (
                features.norm() / (features @ self.metric).norm()
            )  # so that a strength means the same
        self.inputs = features @ self.metric  # (N, D)
        self.moved = weight.new_zeros(weight.shape)  # V
        counts = labels.bincount(minlength=classes)
        self.shares = (
            len(labels) / (counts > 0).sum() / counts.clamp(min=1)
        )  # (C,), of the pictures their sum is N

    def fit(self, strength: float, iterations: int) -> None:
        """Go on from where the last fit ended."""
        moved = self.moved.requires_grad_()

        def loss() -> Tensor:
            logits = self.base + self.inputs @ moved.T
            cross_entropy = F.cross_entropy(logits, self.labels, self.shares, reduction="sum")
            return (cross_entropy + strength / 2 * moved.square().sum()) / len(self.labels)

        minimise(loss, [moved], iterations)
        self.moved = moved.detach()

    def rule(self) -> float:
        """The strength where there is nothing to hold out, as `anchored` has it."""
        remains = F.cross_entropy(self.base, self.labels).item() / math.log(self.base.shape[1])
        return 0.03 / max(remains, 0.03) ** 3

    def weight(self, start: Tensor) -> Tensor:
        """The linear layer's, (C, D)."""
        return self.scale * start + self.moved @ self.metric


def _scatter(features: Tensor, labels: Tensor, classes: int) -> Tensor | None:
    """The covariance (D, D) of features around their class's mean, shrunk (Ledoit and Wolf 2004); None if all are one.

    In float64. Shrinkage towards a multiple of the identity, by the amount that minimises the expected squared error.
    """
    means, counts = class_means(features, labels, classes)
    if counts.max() < 2:
        return None
    rest = (features - means[labels])[counts[labels] > 1].double()
    n, width = rest.shape
    covariance = rest.T @ rest / n
    identity = torch.eye(width, dtype=rest.dtype, device=rest.device) * covariance.trace() / width
    distance = (covariance - identity).square().sum()
    noise = (rest.square().sum(dim=1).square().sum() / n - covariance.square().sum()) / n
    share = (noise / distance).nan_to_num(0)  # 0 / 0 where pictures of one class are all the same
    return torch.lerp(covariance, identity, share.clamp(0, 1))
