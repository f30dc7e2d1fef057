"""The linear probe of the CLIP paper: logistic regression on features, without any text."""

import functools
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.fitting import Fitted, make_folds, minimize
from clipkit.classify.heads import CosineHead, LinearHead
from clipkit.classify.metrics import accuracy
from clipkit.classify.precision import as_float64, restored

Layer = tuple[Tensor, Tensor]  # weight (C, D) and bias (C,)

EXPONENTS = (-6, 6)  # C goes from 1e-6 to 1e6, as in the paper
ABSENT = -1e4  # the bias of a class without images: it is never predicted


def linear_probe(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    *,
    C: float | None = None,
) -> Fitted:
    """Fit the linear probe of the CLIP paper (2103.00020, A.3), with a sweep of the L2 strength.

    Minimized by L-BFGS is C times the summed cross-entropy plus half the squared weights. Biases
    are free, as in scikit-learn.

    Args:
        features, labels: as in `fit_head`.
        zero_shot: for the number of classes only. A class without images is never predicted.
        generator: draws what is held out.
        C: above 0. By default the best of 1e-6 to 1e6, in eighths of a decade, by the accuracy on
            a quarter of the images that is held out (on half of them where classes have two); 1
            where each class has a single image.

    Returns:
        A `LinearHead`, and C.
    """
    # The classes that occur (P,), and the place of each label among them (N,).
    present, inner = cast("tuple[Tensor, Tensor]", labels.unique(return_inverse=True))
    classes = len(present)
    strength = _best_strength(features, inner, classes, generator) if C is None else C
    # Most of the way goes in float32, at half the price.
    near = _regress(features, inner, classes, strength, iterations=1000, tolerance=1e-6)
    weight, bias = _regress(
        as_float64(features),
        inner,
        classes,
        strength,
        iterations=1000,
        tolerance=1e-9,
        start=(as_float64(near[0]), as_float64(near[1])),
    )
    whole_weight = features.new_zeros(zero_shot.classes, zero_shot.width)
    whole_bias = features.new_full((zero_shot.classes,), ABSENT)
    whole_weight[present] = restored(weight, features)
    whole_bias[present] = restored(bias, features)
    return LinearHead(whole_weight, whole_bias), {"C": strength}


def _best_strength(
    features: Tensor, labels: Tensor, classes: int, generator: torch.Generator
) -> float:
    """Return the C with the best accuracy on the first fold, in steps that get finer."""
    folds = make_folds(labels, generator)
    if not folds:
        return 1.0
    rest, out = folds[0]

    @functools.cache
    def score(exponent: float) -> float:
        strength = 10.0**exponent
        weight, bias = _regress(
            features[rest], labels[rest], classes, strength, iterations=100, tolerance=1e-4
        )
        return accuracy((features[out] @ weight.T + bias).argmax(dim=1), labels[out])

    lowest, highest = EXPONENTS
    best: float = max(range(lowest, highest + 1, 2), key=score)
    step = 1.0
    while step >= 0.125:
        best = max((best, max(lowest, best - step), min(highest, best + step)), key=score)
        step /= 2
    return 10.0**best


def _regress(
    features: Tensor,
    labels: Tensor,
    classes: int,
    strength: float,
    *,
    iterations: int,
    tolerance: float,
    start: Layer | None = None,
) -> Layer:
    """Return the weight and bias of a logistic regression, in the dtype of the features.

    Args:
        features: (N, D).
        labels: (N,), below `classes`.
        classes: C.
        strength: what multiplies the cross-entropy.
        iterations, tolerance: as in `minimize`.
        start: where to start, of the dtype of the features; zeros by default.
    """
    # For two classes scikit-learn has one row of weights, for the difference.
    factor = strength / 2 if classes == 2 else strength
    if start is None:
        start = features.new_zeros(classes, features.shape[1]), features.new_zeros(classes)
    weight, bias = (tensor.requires_grad_() for tensor in start)
    labels = labels.to(features.device)
    unit = 1 / max(1.0, factor * len(labels))

    def loss() -> Tensor:
        cross_entropy = F.cross_entropy(features @ weight.T + bias, labels, reduction="sum")
        return unit * (factor * cross_entropy + weight.square().sum() / 2)

    minimize(loss, [weight, bias], iterations, tolerance)
    return weight.detach(), bias.detach()
