"""Gaussian discriminant analysis beside zero-shot classification, without training."""

from typing import cast

import torch
from torch import Tensor

from clipkit.classify.fitting import (
    Fitted,
    Folds,
    calibrate,
    class_means,
    held_out,
    held_out_logits,
    make_folds,
)
from clipkit.classify.heads import CosineHead, LinearHead
from clipkit.classify.precision import as_float64, restored

ALPHAS = tuple(10.0**exponent for exponent in range(-3, 4))
ALPHA_OF_ONE = 1.0  # where each class has a single image


def gaussian(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    *,
    alpha: float | None = None,
) -> Fitted:
    """Add the logits of Gaussian discriminant analysis to the zero-shot ones (2402.04087).

    Each class has a mean of its own, and all have one covariance.

    Args:
        features, labels, zero_shot: as in `fit_head`. A class without images keeps its zero-shot
            logits alone.
        generator: draws the folds.
        alpha: what multiplies the Gaussian's logits. By default the one of `ALPHAS` with the lowest
            loss under cross-validation; 1 where each class has a single image.

    Returns:
        A `LinearHead`, and alpha.
    """
    if alpha is None:
        alpha = _best_alpha(features, labels, zero_shot, make_folds(labels, generator))
    discriminant = _discriminant(features, labels, zero_shot.classes)
    linear = zero_shot.to_linear()
    head = LinearHead(
        linear.weight + alpha * discriminant.weight,
        linear.bias + alpha * discriminant.bias,
        scale=linear.scale,
    )
    return head, {"alpha": alpha}


def _best_alpha(features: Tensor, labels: Tensor, zero_shot: CosineHead, folds: Folds) -> float:
    """Return the factor with the lowest loss on held-out images."""
    if not folds:
        return ALPHA_OF_ONE
    fitted = [_discriminant(features[rest], labels[rest], zero_shot.classes) for rest, _ in folds]
    with torch.no_grad():
        base = held_out_logits([zero_shot] * len(folds), features, folds)
        logits = held_out_logits(fitted, features, folds)
    answers = held_out(labels, folds)

    def loss(alpha: float) -> float:
        losses, _ = calibrate(base + alpha * logits, answers)
        return losses.mean().item()

    return min(ALPHAS, key=loss)


def _discriminant(features: Tensor, labels: Tensor, classes: int) -> LinearHead:
    """Return the linear layer that computes the Gaussian's logits for even priors.

    Args:
        features: (N, D) float32.
        labels: (N,) int64.
        classes: C.
    """
    count, width = features.shape
    means, counts = class_means(features, labels, classes)
    if counts.max() > 1:
        rest = features - means[labels]
    else:
        rest = features - features.mean(dim=0)  # single images have no other scatter
    scatter = as_float64(rest.T @ rest)  # (D, D), N - 1 times the covariance
    identity = torch.eye(width, dtype=scatter.dtype, device=scatter.device)
    # The empirical Bayes estimate of the paper, kept above 0.
    ridge = (scatter.trace() / max(1, count - 1)).clamp(min=1e-6)
    precise_means = as_float64(means).T  # (D, C)
    solution = cast(Tensor, torch.linalg.solve(scatter + ridge * identity, precise_means))  # (D, C)
    weight = width * restored(solution.T, features)  # (C, D)
    return LinearHead(weight, -(weight * means).sum(dim=1) / 2)
