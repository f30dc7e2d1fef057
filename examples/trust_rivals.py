"""What `trust.py --compare` compares: other conformal scores, rejection scores and presence.

Cost and figures: see `trust.py`, which runs all of it.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import clipkit
from clipkit.classify.conformal import label_sets
from clipkit.classify.contrast import contrast
from clipkit.classify.presence import fit_presence

COVERAGE = 0.9
FALSE_ALARMS = 0.05
Figures = dict[str, float]


def adaptive(logits: Tensor, penalty: float = 0.0, free: int = 0) -> Tensor:
    """Return the scores (N, C) of APS, or of RAPS with a penalty for each label after `free`.

    Both are without the random part, which would make of one image another set each time.
    """
    shares = logits.softmax(dim=1)
    order = shares.argsort(dim=1, descending=True)
    places = torch.arange(1, shares.shape[1] + 1)
    sums = shares.gather(1, order).cumsum(dim=1) + penalty * (places - free).clamp(min=0)
    return torch.empty_like(shares).scatter(1, order, sums)


SETS: dict[str, Callable[[Tensor], Tensor]] = {
    "LAC": lambda logits: -logits.log_softmax(dim=1),
    "APS": adaptive,
    "RAPS (0.01, 5)": lambda logits: adaptive(logits, 0.01, 5),
    "RAPS (0.1, 1)": lambda logits: adaptive(logits, 0.1, 1),
}


def rivals_of_lac(
    calibrating: Tensor, calibrating_labels: Tensor, known: Tensor, labels: Tensor
) -> Figures:
    """Return coverage and mean size of sets of nominal coverage 90 %, for each score."""
    figures: Figures = {}
    for name, score in SETS.items():
        own = score(calibrating).gather(1, calibrating_labels[:, None])[:, 0].sort().values
        quantile = float(own[math.ceil((len(own) + 1) * COVERAGE) - 1])
        members = label_sets(score(known), quantile)
        # All sets have the most probable label, whatever the score says of the others.
        members = members.scatter(1, known.argmax(dim=1, keepdim=True), True)
        figures[f"coverage {name}"] = members.gather(1, labels[:, None]).float().mean().item()
        figures[f"set size {name}"] = members.sum(dim=1).float().mean().item()
    return figures


def rivals_of_contrast(
    calibrating: Tensor, known: Tensor, unknown: Tensor, temperature: float
) -> Figures:
    """Return the share of unknown images that is detected at 5 % false alarms, for each score."""
    scores: dict[str, Callable[[Tensor], Tensor]] = {
        "contrast": lambda logits: contrast(logits).amax(dim=1),
        "logit": lambda logits: logits.amax(dim=1),
        "softmax": lambda logits: (logits / temperature).softmax(dim=1).amax(dim=1),
        "MCM": lambda logits: (logits / 100).softmax(dim=1).amax(dim=1),
        "energy": lambda logits: (logits / temperature).logsumexp(dim=1),
        "less the mean": lambda logits: logits.amax(dim=1) - logits.mean(dim=1),
    }
    figures: Figures = {}
    for name, score in scores.items():
        threshold = score(calibrating).sort().values[_place(len(calibrating))]
        figures[name] = (score(unknown) < threshold).float().mean().item()
    return figures


def several_labels(
    head: clipkit.Head, features: Tensor, labels: Tensor, seed: int, images: int = 1000
) -> Figures:
    """Return the F1 of labels that are said to be present, averaged over the classes.

    An image of several classes is imitated by the mean of the features of one to three images.
    """
    random = torch.Generator().manual_seed(seed)
    half = torch.randperm(len(labels), generator=random)
    sides = [half[: len(half) // 2], half[len(half) // 2 :]]
    drawn = [_mixed(features[side], labels[side], head.classes, images, random) for side in sides]
    (few, few_truth), (others, truth) = drawn
    with torch.no_grad():
        calibrating, measured = head(few), head(others)
    presence = fit_presence(calibrating, few_truth)
    shares = presence.probabilities(measured)
    # A logit less its row's mean has the same contrast but for a factor of the mean.
    plain = [logits - logits.mean(dim=1, keepdim=True) for logits in (calibrating, measured)]
    centered = fit_presence(plain[0], few_truth)
    return {
        "contrast, best F1": _f1(shares > presence.thresholds, truth),
        "contrast, half": _f1(shares > 0.5, truth),
        "less the mean, best F1": _f1(
            centered.probabilities(plain[1]) > centered.thresholds, truth
        ),
    }


def _mixed(
    features: Tensor, labels: Tensor, classes: int, images: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return features (images, D) of one to three images each, and truth (images, C) bool."""
    chosen = torch.randint(len(labels), (images, 3), generator=random)
    counts = torch.randint(1, 4, (images, 1), generator=random)
    used = torch.arange(3) < counts  # (images, 3)
    mixed = F.normalize((features[chosen] * used[:, :, None]).sum(dim=1), dim=1)
    truth = torch.zeros(images, classes)
    truth.scatter_add_(1, labels[chosen], used.float())
    return mixed, truth > 0


def _f1(said: Tensor, truth: Tensor) -> float:
    """Return F1 averaged over the classes that occur."""
    hits = (said & truth).sum(dim=0)
    scores = 2 * hits / (said.sum(dim=0) + truth.sum(dim=0)).clamp(min=1)
    return scores[truth.any(dim=0)].mean().item()


def _place(count: int) -> int:
    return max(1, math.floor((count + 1) * FALSE_ALARMS)) - 1
