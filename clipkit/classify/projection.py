"""A change of the image features that all classes share, held to no change at all.

ProLIP (2410.05270) trains nothing but the last projection of the image tower, held to where it was,
while the texts stay as they are. Features lie behind that projection, so here a matrix (D, D) takes
its place, held to the identity.
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
    held_out,
    held_out_logits,
    make_folds,
    minimize,
)
from clipkit.classify.heads import CosineHead, LinearHead
from clipkit.classify.precision import as_float64, restored

# 3 to 0.0001 in half decades, the strongest first.
STRENGTHS = tuple(10 ** (exponent / 2) for exponent in range(1, -9, -1))
ONE_SHOT = 1.0  # 1 / N, as ProLIP has it, at N = 1

# Past the minimum of the loss, weaker penalties only take longer: the sweep stops at so much more.
STOP_ABOVE = 1.05


def projection(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    *,
    strength: float | None = None,
) -> Fitted:
    """Fit a change of the features by which they meet their own texts, as ProLIP does.

    logits = exp(logit_scale) x (1 + B) W^T, where W are the zero-shot weights

    Minimized over B (D, D) is the mean cross-entropy plus strength |B|^2. Features are not scaled
    to unit length again, which the paper does: that would change how sure an answer is, and never
    which class is the likeliest. So the head is linear.

    Args:
        features, labels, zero_shot: as in `fit_head`.
        generator: draws the folds.
        strength: of the pull to no change, above 0; infinity is zero-shot itself. By default it has
            the lowest loss under cross-validation, and is 1 where each class has a single image.

    Returns:
        A `LinearHead` without bias, and the strength.
    """
    calibration = 1.0
    if strength is None:
        folds = make_folds(labels, generator)
        strength = ONE_SHOT
        if folds:
            strength, calibration = _cross_validate(features, labels, zero_shot, folds)
    model = _Change(features, labels, zero_shot)
    if math.isfinite(strength):
        model.fit(strength, iterations=100)
    return LinearHead(calibration * model.weight(), scale=calibration * model.scale), {
        "strength": strength
    }


def _cross_validate(
    features: Tensor, labels: Tensor, zero_shot: CosineHead, folds: Folds
) -> tuple[float, float]:
    """Return the strength with the lowest loss on held-out images, and its calibrating factor.

    Args:
        features: (N, D).
        labels: (N,).
        zero_shot: where to start, which is a candidate too, of infinite strength.
        folds: at least one.
    """
    parts = [_Change(features[rest], labels[rest], zero_shot) for rest, _ in folds]
    functions = [part.logits for part in parts]
    answers = held_out(labels, folds)
    losses, factor = calibrate(held_out_logits(functions, features, folds), answers)
    best = (losses.mean().item(), math.inf, factor)
    for strength in STRENGTHS:
        for part in parts:
            part.fit(strength, iterations=30)
        losses, factor = calibrate(held_out_logits(functions, features, folds), answers)
        loss = losses.mean().item()
        best = min(best, (loss, strength, factor))
        if loss > STOP_ABOVE * best[0]:
            break
    return best[1], best[2]


class _Change:
    """Hold a change of the features, and fit it.

    Its gradient lies where the images do on the one side, and where the texts do on the other, so
    it is B = Q M^T P^T with orthonormal bases Q of the images and P of the texts, and |B| = |M|.

    Args:
        features: (N, D).
        labels: (N,).
        zero_shot: the head of the texts.

    Attributes:
        scale: exp(logit_scale).
    """

    def __init__(self, features: Tensor, labels: Tensor, zero_shot: CosineHead) -> None:
        self.labels = labels
        self.start = zero_shot.weight.detach()  # W, (C, D)
        self.scale = zero_shot.logit_scale.detach().exp().item()
        self.of_images = _basis(features)  # Q, (D, n)
        self.of_texts = _basis(self.start)  # P, (D, c)
        self.base = features @ self.start.T  # (N, C)
        self.inputs = features @ self.of_images  # (N, n)
        self.outputs = self.start @ self.of_texts  # (C, c)
        shape = (self.outputs.shape[1], self.inputs.shape[1])
        self.moved = features.new_zeros(shape)  # M, (c, n)

    def fit(self, strength: float, iterations: int) -> None:
        """Fit M, starting from where the last fit ended."""
        moved = self.moved.requires_grad_()

        def loss() -> Tensor:
            logits = self.base + self.inputs @ moved.T @ self.outputs.T
            cross_entropy = F.cross_entropy(self.scale * logits, self.labels)
            return cross_entropy + strength * moved.square().sum()

        minimize(loss, [moved], iterations)
        self.moved = moved.detach()

    def weight(self) -> Tensor:
        """Return the weights (C, D) of the linear layer that computes the logits."""
        change = self.outputs @ self.moved @ self.of_images.T  # (C, D)
        return self.scale * (self.start + change)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (M, C) of any features (M, D)."""
        return features @ self.weight().T


def _basis(rows: Tensor) -> Tensor:
    """Return an orthonormal basis of what rows (R, D) span, (D, at most R)."""
    basis, _ = cast("tuple[Tensor, Tensor]", torch.linalg.qr(as_float64(rows).T))
    return restored(basis, rows)
