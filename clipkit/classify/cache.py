"""Tip-Adapter: zero-shot classification with a cache of the support images."""

import math
from collections.abc import Sequence

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
    shuffled_batches,
)
from clipkit.classify.heads import CacheHead, CosineHead

ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
BETAS = (1.0, 3.0, 5.5, 10.0, 30.0)
PAPER_ALPHA, PAPER_BETA = 1.0, 5.5
FINETUNING_BATCH = 256  # as in the code of the paper


def cache(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    *,
    alpha: float | None = None,
    beta: float | None = None,
) -> Fitted:
    """Make a Tip-Adapter (2111.03930), without training.

    Args:
        features, labels, zero_shot: as in `fit_head`.
        generator: draws the folds.
        alpha, beta: as in `CacheHead`. By default those of `ALPHAS` and `BETAS` with the lowest
            loss under cross-validation, and the paper's 1 and 5.5 where each class has a single
            image.

    Returns:
        A `CacheHead`, alpha and beta.
    """
    values = F.one_hot(labels, zero_shot.classes).float()  # (N, C)
    if alpha is None or beta is None:
        alphas = ALPHAS if alpha is None else (alpha,)
        betas = BETAS if beta is None else (beta,)
        folds = make_folds(labels, generator)
        if folds:
            alpha, beta = _best_settings(features, labels, zero_shot, folds, alphas, betas)
    alpha = PAPER_ALPHA if alpha is None else alpha
    beta = PAPER_BETA if beta is None else beta
    head = CacheHead(
        zero_shot.weight,
        zero_shot.logit_scale,
        keys=features,
        values=values,
        alpha=torch.tensor(alpha, dtype=torch.float32, device=features.device),
        beta=torch.tensor(beta, dtype=torch.float32, device=features.device),
    )
    return head, {"alpha": alpha, "beta": beta}


def _best_settings(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    folds: Folds,
    alphas: Sequence[float],
    betas: Sequence[float],
) -> tuple[float, float]:
    """Return the alpha and beta with the lowest loss on held-out images."""
    values = F.one_hot(labels, zero_shot.classes).float()  # (N, C)
    with torch.no_grad():
        base = held_out_logits([zero_shot] * len(folds), features, folds)
    answers = held_out(labels, folds)
    nearness = [features[out] @ features[rest].T - 1 for rest, out in folds]
    losses: dict[tuple[float, float], float] = {}
    for beta in betas:
        affinities = [
            (beta * near).exp() @ values[rest]
            for near, (rest, _) in zip(nearness, folds, strict=True)
        ]
        logits = torch.cat(affinities)
        for alpha in alphas:
            loss, _ = calibrate(base + alpha * logits, answers)
            losses[alpha, beta] = loss.mean().item()
    return min(losses, key=lambda settings: losses[settings])


def cache_finetuned(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    *,
    epochs: int = 20,
    lr: float = 1e-3,
) -> Fitted:
    """Make a Tip-Adapter-F (2111.03930): a `cache` with its keys trained by AdamW.

    The last epoch is taken. The paper takes the best one on other data, which are not at hand.

    Args:
        features, labels, zero_shot: as in `fit_head`.
        generator: draws the folds, then the order of the images.
        epochs: passes over the support set, from 0.
        lr: the learning rate at the start; it falls to 0 along a cosine.

    Returns:
        A `CacheHead`; alpha and beta, chosen as for `cache`, epochs and lr.
    """
    head, chosen = cache(features, labels, zero_shot, generator)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, eps=1e-4)
    batches = math.ceil(len(labels) / FINETUNING_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in range(epochs):
        for batch in shuffled_batches(len(labels), FINETUNING_BATCH, generator, labels.device):
            optimizer.zero_grad()
            F.cross_entropy(head(features[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return head, chosen | {"epochs": epochs, "lr": lr}
