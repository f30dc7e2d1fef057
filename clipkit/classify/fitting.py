"""Share what the few-shot methods need: folds, class means, calibration, the minimizer."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.heads import Head
from clipkit.classify.metrics import fit_temperature

Fitted = tuple[Head, dict[str, Any]]  # a head, and the settings that were chosen for it, as JSON
Folds = list[tuple[Tensor, Tensor]]  # masks (N,) of what to fit on, and of what to hold out
FOLDS = 4


def shuffled(count: int, generator: torch.Generator) -> Tensor:
    """Return the numbers 0 to count - 1 in random order: (count,) int64, on the CPU.

    Args:
        count: how many numbers.
        generator: a generator of the CPU. All draws come from the CPU, so that a seed means the
            same on every device.
    """
    return torch.randperm(count, generator=generator, dtype=torch.int64, device="cpu")


def shuffled_batches(
    count: int, size: int, generator: torch.Generator, device: torch.device
) -> list[Tensor]:
    """Return the numbers 0 to count - 1 in random order, in batches on `device`.

    Each is (size,) int64, and the last one may be shorter.
    """
    order = shuffled(count, generator).to(device)
    return list(cast("tuple[Tensor, ...]", order.split(size)))


def distinct(labels: Tensor) -> list[int]:
    """Return the labels that occur in (N,), in rising order."""
    return cast("list[int]", labels.unique().tolist())


def class_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean feature of each class, and how many images it has.

    Args:
        features: (N, D) float32.
        labels: (N,) int64.
        classes: C.

    Returns:
        means (C, D) float32, zeros where a class has no image; counts (C,) int64.
    """
    counts = labels.bincount(minlength=classes)
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
    return sums / counts.clamp(min=1)[:, None], counts


def make_folds(labels: Tensor, generator: torch.Generator, most: int = FOLDS) -> Folds:
    """Divide the support set for cross-validation, each class evenly.

    A class with a single image is never held out.

    Args:
        labels: (N,) int64.
        generator: of the CPU, which draws what falls into which fold.
        most: how many folds at most, at least 2.

    Returns:
        For each fold, two masks (N,): of what to fit on, and of what to hold out. There are as many
        folds as the largest class has images, at most `most`, and none if no class has two.
    """
    fold_of = torch.full_like(labels, -1)
    for label in distinct(labels):
        own = (labels == label).nonzero().flatten()  # (images of the class, 1) -> (images,)
        if len(own) > 1:
            order = shuffled(len(own), generator).to(own.device)
            place = torch.arange(len(own), dtype=labels.dtype, device=own.device)
            fold_of[own[order]] = place % most
    return [(fold_of != fold, fold_of == fold) for fold in range(int(fold_of.max()) + 1)]


def held_out(values: Tensor, folds: Folds) -> Tensor:
    """Return the rows of `values` that are held out, fold after fold.

    Args:
        values: (N, ...), one row per image.
        folds: as from `make_folds`.
    """
    return torch.cat([values[out] for _, out in folds])


def held_out_logits(
    functions: Sequence[Callable[[Tensor], Tensor]], features: Tensor, folds: Folds
) -> Tensor:
    """Return the logits of the images that are held out, fold after fold.

    Args:
        functions: for each fold, a function from features (M, D) to logits (M, C).
        features: (N, D).
        folds: as from `make_folds`.
    """
    pairs = zip(functions, folds, strict=True)
    return torch.cat([function(features[out]) for function, (_, out) in pairs])


def calibrate(logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Return the losses of held-out logits at their best temperature, and that factor.

    Candidates are compared so, because none is to win or lose by how sure it is of itself.

    Args:
        logits: (N, C).
        labels: (N,) int64.

    Returns:
        The cross-entropy of each row (N,), and the factor of `temperature`.
    """
    scale = temperature(logits, labels)
    return F.cross_entropy(scale * logits, labels, reduction="none"), scale


def temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the factor that fits logits best to their labels, and to half a mistake besides.

    The mistake is an image with the mean of all sorted scores, and its label is the second best
    class. Without it there is no best factor where all images are told apart: the larger the
    factor, the better, and each answer would be taken for certain.

    Args:
        logits: (N, C).
        labels: (N,) int64.
    """
    typical = logits.sort(dim=1, descending=True).values.mean(dim=0, keepdim=True)  # (1, C)
    second = labels.new_ones(1)
    # Each image counts twice, so that the mistake counts half as much as an image.
    return fit_temperature(
        torch.cat([logits, logits, typical]), torch.cat([labels, labels, second])
    )


def is_clearly_lower(losses: Tensor, others: Tensor, errors: float) -> bool:
    """Return whether losses (N,) are lower on average by more than so many standard errors.

    That is false for a single image, which has no standard error.

    Args:
        losses, others: of the same images, (N,).
        errors: how many standard errors of the mean difference.
    """
    gain = others - losses
    if len(gain) < 2:
        return False
    return bool(gain.mean() > errors * gain.std() / len(gain) ** 0.5)


def minimize(
    loss: Callable[[], Tensor], parameters: list[Tensor], iterations: int, tolerance: float = 1e-5
) -> None:
    """Minimize a smooth loss over `parameters`, in place, by L-BFGS with a line search.

    Args:
        loss: computes the loss () from the parameters as they are.
        parameters: leaf tensors that require gradients.
        iterations: at most so many.
        tolerance: stop where the largest slope is below it.
    """
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-4 * tolerance,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value.item()

    optimizer.step(closure)
