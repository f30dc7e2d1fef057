"""What the few-shot methods share: folds, class means, calibration and the minimizer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.heads import Head
from clipkit.classify.metrics import fit_temperature

Fitted = tuple[Head, dict[str, Any]]
FOLDS = 4


def class_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The mean feature of each class (C, D), zeros where it has no picture, and its number of pictures (C,)."""
    counts = labels.bincount(minlength=classes)
    return F.one_hot(labels, classes).T.float() @ features / counts.clamp(min=1)[:, None], counts


def make_folds(labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Masks (N,) of what to fit on and what to hold out, drawn by class. A class of one is never held out.

    As many folds as the largest class has pictures, `FOLDS` at most, and none if each has one.
    """
    fold = torch.full_like(labels, -1)
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        if len(own) > 1:
            fold[own[torch.randperm(len(own)).to(own.device)]] = (
                torch.arange(len(own), device=own.device) % FOLDS
            )
    return [(fold != i, fold == i) for i in range(int(fold.max()) + 1)]


def calibrate(logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Return the cross-entropy (N,) of held-out logits at the best temperature, and the factor.

    No candidate is to win or lose by how sure it is of itself.
    """
    scale = temperature(logits, labels)
    return F.cross_entropy(scale * logits, labels, reduction="none"), scale


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The factor that fits best the pictures and half a one more, of their mean scores, whose class scores second.

    Without that mistake there is no best factor where all are told apart, and each would be taken for certain.
    """
    typical = logits.sort(dim=1, descending=True).values.mean(dim=0, keepdim=True)
    return fit_temperature(
        torch.cat([logits, logits, typical]), torch.cat([labels, labels, labels.new_ones(1)])
    )


def minimise(
    loss: Callable[[], Tensor], parameters: list[Tensor], iterations: int, tolerance: float = 1e-5
) -> None:
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-4 * tolerance,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
