"""How likely classes are that have no images, beside those that have some."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.anchored_experts import Experts, Which
from clipkit.classify.anchored_gaussian import ROUNDS
from clipkit.classify.fitting import Folds, minimize
from clipkit.classify.heads import CosineHead

GROUPS = 4  # of classes, each of which is left out once; fewer where fewer classes have images


def offset_of_missing(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    folds: Folds,
    strength: float,
    which: Which,
) -> Tensor:
    """Return what to add to the logits of the classes without images, (C,); zeros for the others.

    Images pull an image to their own classes more surely than a text does, so beside fitted
    classes one that has a text alone would hardly ever be chosen. What it takes to make up for
    that is found by playing it: classes that have images are left out of the fit, group by group.
    One number is fitted to their images and to held-out images of other classes, each kind
    counting as much as its share of the classes.

    Args:
        features: (N, D).
        labels: (N,).
        zero_shot: where the fits start.
        folds: for held-out images. Without any the offset is zero, and so it is where a single
            class has images, which none can be left out beside.
        strength, which: as in `anchored`.
    """
    present = labels.bincount(minlength=zero_shot.classes) > 0  # (C,)
    offset = zero_shot.weight.new_zeros(zero_shot.classes)
    if present.all() or present.sum() == 1 or not folds:
        return offset
    known = [_play(features, labels, zero_shot, out, strength, which) for _, out in folds]
    unknown = [
        _play(features, labels, zero_shot, out, strength, which)
        for out in _left_out(labels, present)[: len(folds)]  # as many fits of either kind, at most
    ]
    share = 1 - present.float().mean().item()
    return torch.where(present, offset, _fit_offset(known, unknown, share))


def _left_out(labels: Tensor, present: Tensor) -> list[Tensor]:
    """Return, for each group of classes, which images (N,) are of it."""
    classes = present.nonzero().flatten()  # (P, 1) -> (P,)
    groups = [classes[start::GROUPS] for start in range(min(GROUPS, len(classes)))]
    return [torch.isin(labels, group) for group in groups]


Played = tuple[Tensor, Tensor, Tensor]  # logits (M, C), labels (M,), classes without images (C,)


def _play(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    out: Tensor,
    strength: float,
    which: Which,
) -> Played:
    """Return the logits of images that are left out of a fit, and which classes it had none of."""
    experts = Experts(features[~out], labels[~out], zero_shot)
    experts.fit(strength, iterations=30, rounds=ROUNDS)
    missing = labels[~out].bincount(minlength=zero_shot.classes) == 0
    return experts.logits(features[out], which), labels[out], missing


def _fit_offset(known: list[Played], unknown: list[Played], share: float) -> Tensor:
    """Return the number () that makes classes with and without images equally believable."""
    offset = known[0][0].new_zeros(()).requires_grad_()

    def loss_of(played: list[Played]) -> Tensor:
        losses = [
            F.cross_entropy(logits + offset * missing, labels, reduction="none")
            for logits, labels, missing in played
        ]
        return torch.cat(losses).mean()

    def loss() -> Tensor:
        return (1 - share) * loss_of(known) + share * loss_of(unknown)

    minimize(loss, [offset], iterations=50)
    return offset.detach()
