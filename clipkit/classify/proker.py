"""ProKeR: kernel ridge regression of what the zero-shot classifier leaves open."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.fitting import Fitted, Folds, calibrate, held_out, make_folds
from clipkit.classify.heads import CacheHead, CosineHead
from clipkit.classify.precision import as_float64, restored

BETAS = (0.5, 1.0, 2.0, 3.0, 5.0)
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# What the paper's code uses at one image a class, found on ImageNet.
PAPER_BETA, PAPER_STRENGTH = 3.0, 0.05


def proker(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    *,
    strength: float | None = None,
    beta: float | None = None,
) -> Fitted:
    """Fit ProKeR (Bendou et al., CVPR 2025), in closed form.

    logits = x W^T + k(x) (K / strength + 1)^-1 (Y - X W^T), where k(x) = exp(-beta (1 - x X^T))

    X are the support images, K the kernel k of their own, Y their labels, one-hot, and W the
    zero-shot weights. Cosines are regressed as they are, without a temperature; the logits are then
    multiplied by that of `zero_shot`, and by what cross-validation finds to fit besides.

    Args:
        features, labels, zero_shot: as in `fit_head`.
        generator: draws the folds.
        strength: of the pull to the zero-shot cosines, above 0.
        beta: how near an image must be to count. By default both have the lowest loss under
            cross-validation, and are 0.05 and 3 where each class has a single image.

    Returns:
        A `CacheHead`, strength and beta. The cost grows with the cube of the number of images.
    """
    strengths = STRENGTHS if strength is None else (strength,)
    betas = BETAS if beta is None else (beta,)
    folds = make_folds(labels, generator)
    if folds:
        strength, beta, factor = _best(features, labels, zero_shot.weight, folds, strengths, betas)
    else:
        strength = PAPER_STRENGTH if strength is None else strength
        beta = PAPER_BETA if beta is None else beta
        factor = 1.0
    scale = factor * zero_shot.logit_scale.detach().exp()
    kernel = _kernel(features, features, beta)
    left = _open(features, labels, zero_shot.weight)
    head = CacheHead(
        zero_shot.weight,
        scale.log(),
        keys=features,
        values=scale * _solve(kernel, left, strength),
        alpha=scale.new_ones(()),
        beta=scale.new_tensor(beta),
    )
    return head, {"strength": strength, "beta": beta}


def _best(
    features: Tensor,
    labels: Tensor,
    start: Tensor,
    folds: Folds,
    strengths: tuple[float, ...],
    betas: tuple[float, ...],
) -> tuple[float, float, float]:
    """Return the strength and beta with the lowest loss on held-out images, and what it took.

    The third number is the factor that makes the logits with the temperature of `start` fit.
    """
    answers = held_out(labels, folds)
    left = [_open(features[rest], labels[rest], start) for rest, _ in folds]
    base = [features[out] @ start.T for _, out in folds]
    best = (math.inf, strengths[0], betas[0], 1.0)
    for beta in betas:
        own = [_kernel(features[rest], features[rest], beta) for rest, _ in folds]
        across = [_kernel(features[out], features[rest], beta) for rest, out in folds]
        for strength in strengths:
            logits = [
                cosines + near @ _solve(kernel, what, strength)
                for cosines, near, kernel, what in zip(base, across, own, left, strict=True)
            ]
            losses, scale = calibrate(torch.cat(logits), answers)
            best = min(best, (losses.mean().item(), strength, beta, scale))
    return best[1:]


def _open(features: Tensor, labels: Tensor, start: Tensor) -> Tensor:
    """Return what the zero-shot cosines leave of the labels, Y - X W^T, (N, C)."""
    return F.one_hot(labels, len(start)) - features @ start.T


def _solve(kernel: Tensor, left: Tensor, strength: float) -> Tensor:
    """Return (K / strength + 1)^-1 times what is left of the labels, (N, C).

    Args:
        kernel: K, (N, N).
        left: (N, C).
        strength: of the pull to the zero-shot cosines.
    """
    matrix = as_float64(kernel) / strength
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor = cast(Tensor, torch.linalg.cholesky(matrix + identity))
    return restored(torch.cholesky_solve(as_float64(left), factor), left)


def _kernel(rows: Tensor, others: Tensor, beta: float) -> Tensor:
    """Return how near features (M, D) are to others (N, D), (M, N)."""
    return (beta * (rows @ others.T - 1)).exp()
