"""Say of each label by itself whether it is in an image, where several can be.

Each class has a sigmoid of how far its logit stands out: 1 / (1 + exp(-(slope x + offset))), fitted
as by Platt (1999), where x is the `contrast` of the logit. A label is present above a threshold of
its class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.classify.contrast import contrast
from clipkit.classify.precision import as_float64

_STEPS = 100  # of Newton; about ten do
_HALVINGS = 30  # of a step that would raise the loss
_TINY = 1e-12  # keeps a class invertible that has the same logit on all images


@dataclass(frozen=True, eq=False)
class Presence:
    """Hold a sigmoid and a threshold for each class.

    Attributes:
        slopes, offsets: (C,) float32.
        thresholds: (C,) float32, 0 to 1. A label is present where its sigmoid is above.
        images: how many images they come from.

    Example:
        classifier.calibrate(images, [["cat"], ["cat", "dog"], [], ...])
        classifier.calibration.presence.thresholds  # (C,)
    """

    slopes: Tensor
    offsets: Tensor
    thresholds: Tensor
    images: int

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability that each label is in each image, (N, C) float32.

        Args:
            logits: (N, C) float32, as a head gives them.
        """
        slopes, offsets = self.slopes.to(logits.device), self.offsets.to(logits.device)
        return (contrast(logits) * slopes + offsets).sigmoid()


def fit_presence(logits: Tensor, truth: Tensor) -> Presence:
    """Fit the sigmoid and the threshold of each class.

    Targets are Platt's: (n + 1) / (n + 2) for n images with the label, 1 / (m + 2) for m without,
    so that no probability becomes 0 or 1. Where a label is rarer with a higher logit, the logit
    says nothing, and the slope is 0: such a class is present if it is in more than half of the
    images. The threshold of the others is the one with the highest F1 on the images; a class that
    is in none of them is never present.

    Args:
        logits: (N, C), as a head gives them.
        truth: (N, C) bool, which labels are in which image.
    """
    scores = contrast(as_float64(logits))
    truth = truth.to(scores.device)
    slopes, offsets = _platt(scores, truth)
    probabilities = (scores * slopes + offsets).sigmoid()
    thresholds = [
        _best_threshold(own, present) if slope > 0 else _constant_threshold(present)
        for own, present, slope in zip(probabilities.T, truth.T, slopes, strict=True)
    ]
    return Presence(
        slopes=slopes.float().cpu(),
        offsets=offsets.float().cpu(),
        thresholds=torch.tensor(thresholds, dtype=torch.float32, device="cpu"),
        images=len(logits),
    )


def _platt(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and offset of each class, (C,) float64, by Newton steps of all classes at once.

    Args:
        scores: (N, C) float64.
        truth: (N, C) bool.
    """
    positives = truth.sum(dim=0).to(scores.dtype)  # (C,)
    negatives = len(truth) - positives
    targets = torch.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))  # (N, C)
    mean = scores.mean(dim=0)
    spread = scores.std(dim=0, correction=0).clamp(min=1e-6)
    inputs = (scores - mean) / spread  # so that steps have one size in all classes
    prior = targets.mean(dim=0)
    slope, offset = torch.zeros_like(mean), prior.logit()
    for _ in range(_STEPS):
        step_slope, step_offset = _newton_step(inputs, targets, slope, offset)
        size = _step_size(inputs, targets, (slope, offset), (step_slope, step_offset))
        slope, offset = slope - size * step_slope, offset - size * step_offset
        if max(step_slope.abs().max().item(), step_offset.abs().max().item()) < 1e-10:
            break
    rising = slope > 0
    slope = torch.where(rising, slope / spread, torch.zeros_like(slope))
    offset = torch.where(rising, offset - slope * mean, prior.logit())
    return slope, offset


def _newton_step(
    inputs: Tensor, targets: Tensor, slope: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what Newton takes away from the slope and the offset of each class, (C,) each."""
    share = (inputs * slope + offset).sigmoid()  # (N, C)
    error, weight = share - targets, share * (1 - share)
    by_slope, by_offset = (error * inputs).sum(dim=0), error.sum(dim=0)
    second = (weight * inputs.square()).sum(dim=0) + _TINY
    mixed = (weight * inputs).sum(dim=0)
    third = weight.sum(dim=0) + _TINY
    determinant = (second * third - mixed.square()).clamp(min=_TINY**2)
    return (
        (third * by_slope - mixed * by_offset) / determinant,
        (second * by_offset - mixed * by_slope) / determinant,
    )


def _step_size(
    inputs: Tensor, targets: Tensor, place: tuple[Tensor, Tensor], step: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the share of a step, (C,), with which no class has a higher loss than before."""

    def losses(share: Tensor) -> Tensor:
        slope, offset = place[0] - share * step[0], place[1] - share * step[1]
        logits = inputs * slope + offset
        return (torch.nn.functional.softplus(logits) - targets * logits).sum(dim=0)

    size = torch.ones_like(place[0])
    before = losses(torch.zeros_like(size))
    for _ in range(_HALVINGS):
        worse = losses(size) > before + 1e-12 * before.abs()
        if not worse.any():
            break
        size = torch.where(worse, size / 2, size)
    return size


def _constant_threshold(truth: Tensor) -> float:
    """Return the threshold of a class that has the same probability in every image.

    The highest F1 would be had by saying that it is in all of them, however rare it is.

    Args:
        truth: (N,) bool.
    """
    return 0.5 if truth.any() else 1.0


def _best_threshold(probabilities: Tensor, truth: Tensor) -> float:
    """Return the threshold with the highest F1, half-way between two probabilities.

    Args:
        probabilities: (N,) float64.
        truth: (N,) bool.
    """
    if not truth.any():
        return 1.0
    order = probabilities.argsort(descending=True, stable=True)
    ranked = probabilities[order]
    hits = truth[order].cumsum(dim=0)  # (N,), right ones if this many are said to be present
    said = torch.arange(1, len(ranked) + 1, device=ranked.device)
    scores = 2 * hits / (said + truth.sum())
    lower = torch.cat([ranked[1:], ranked.new_zeros(1)])
    scores[ranked == lower] = 0  # a threshold does not part what is equal
    best = int(scores.argmax())
    return ((ranked[best] + lower[best]) / 2).item()
