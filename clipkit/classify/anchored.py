"""Two classifiers that start at the zero-shot one, held to it by the same strength, averaged.

One is a logistic regression, the other has a Gaussian for each class. Where one errs the other is
often right, so their mean is better than both (Raina et al., 2003; Lasserre et al., 2006, on such
pairs). The penalty towards the text prototypes is the idea of CLAP (2312.12730), and the Gaussians
are those of Wang et al. (2402.04087) with a prior from the texts.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from clipkit.classify.anchored_experts import CHOICES, Experts, Which
from clipkit.classify.anchored_gaussian import ROUNDS
from clipkit.classify.anchored_missing import offset_of_missing
from clipkit.classify.fitting import (
    Fitted,
    Folds,
    calibrate,
    held_out,
    is_clearly_lower,
    make_folds,
)
from clipkit.classify.heads import CosineHead, LinearHead

# 3 to 0.001 in half decades, the strongest first.
STRENGTHS = tuple(10 ** (exponent / 2) for exponent in range(1, -7, -1))
USUAL = 0.1  # the strength before anything is known of the support set
FEW = 0.6  # over the number of images is the usual strength where that is more: six images
MANY = 2000  # images, of which a part is held out once, not each once
HELD_OUT = 1000  # of many images, at most

# Half a standard error: a difference of losses below that is taken for chance.
_is_clearly_lower = partial(is_clearly_lower, errors=0.5)

# Past the minimum of the loss, weaker penalties only take longer: the sweep stops at so much more.
STOP_ABOVE = 1.05


def anchored(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    *,
    strength: float | None = None,
) -> Fitted:
    """Fit a classifier that is held to zero-shot: the mean of two, see `Experts`.

    Args:
        features, labels, zero_shot: as in `fit_head`.
        generator: draws the folds.
        strength: of the pull to zero-shot, above 0; infinity is zero-shot itself. By default it is
            chosen by `_cross_validate`, and is the usual one where each class has a single image.

    Returns:
        A `LinearHead`, the strength, and the experts: "both", or "logistic" or "gaussian" where
        cross-validation finds one alone clearly better.
    """
    experts = Experts(features, labels, zero_shot)
    usual = _usual_strength(len(labels), experts.trust)
    choice = _Choice(usual if strength is None else strength, "both", factor=1.0)
    folds = make_folds(labels, generator)
    if len(labels) > MANY:
        folds = _one_fold(folds)
    if strength is None and folds:
        with_singles = _with_singles(folds, labels)
        choice = _cross_validate(features, labels, zero_shot, with_singles, usual)
    weight, bias = experts.layer(choice.which)
    if math.isfinite(choice.strength):
        iterations = 50 if len(labels) > MANY else 100
        experts.fit(choice.strength, iterations, rounds=ROUNDS)
        weight, bias = experts.layer(choice.which)
        bias = bias + offset_of_missing(
            features, labels, zero_shot, folds, choice.strength, choice.which
        )
    head = LinearHead(
        choice.factor * weight, choice.factor * bias, scale=choice.factor * experts.scale
    )
    return head, {
        "strength": choice.strength,
        "experts": choice.which,
    }


def _usual_strength(images: int, trust: float) -> float:
    """Return the strength to use where no image can be held out.

    Args:
        images: N. A few of them tell too little to leave the texts.
        trust: the temperature of the texts over that of the model. Texts that tell nothing of the
            images are not held to.
    """
    return max(USUAL * min(1.0, trust), FEW / images)


@dataclass(frozen=True)
class _Choice:
    """Hold what was chosen for a support set.

    Attributes:
        strength: of the pull to zero-shot.
        which: the experts.
        factor: that makes the logits fit held-out images.
    """

    strength: float
    which: Which
    factor: float


def _cross_validate(
    features: Tensor, labels: Tensor, zero_shot: CosineHead, folds: Folds, usual: float
) -> _Choice:
    """Return what has the lowest loss on held-out images, or is as good and nearer the usual.

    Each class counts alike, else in a long tail what favors the largest classes would be best.
    Few held-out images tell little. So of strengths that differ in their loss by less than half a
    standard error, the one nearest the usual is taken; and zero-shot itself, at an infinite
    strength, is kept unless its loss is higher by more than that.

    Args:
        features: (N, D).
        labels: (N,).
        zero_shot: where to start.
        folds: at least one.
        usual: the strength to expect.
    """
    parts = [Experts(features[rest], labels[rest], zero_shot) for rest, _ in folds]
    answers = held_out(labels, folds)
    rarity = 1 / answers.bincount()[answers].float()
    shares = rarity / rarity.mean()  # (M,), so that each class counts alike, as in the fits

    def evaluate(which: Which) -> tuple[Tensor, float]:
        pairs = zip(parts, folds, strict=True)
        logits = [part.logits(features[out], which) for part, (_, out) in pairs]
        losses, factor = calibrate(torch.cat(logits), answers)
        return shares * losses, factor

    losses, factor = evaluate("logistic")  # before any fit each is zero-shot
    start = _Choice(math.inf, "logistic", factor=factor)
    results = {start: losses}
    iterations = 10 if len(labels) > MANY else 30
    for strength in _strengths(labels, usual):
        for part in parts:
            part.fit(strength, iterations, rounds=1)
        latest: list[float] = []
        for which in CHOICES:
            losses, factor = evaluate(which)
            results[_Choice(strength, which, factor)] = losses
            latest.append(losses.mean().item())
        if min(latest) > STOP_ABOVE * min(one.mean().item() for one in results.values()):
            break
    best = _nearest(results, usual)
    return best if _is_clearly_lower(results[best], results[start]) else start


def _strengths(labels: Tensor, usual: float) -> list[float]:
    """Return the strengths to compare, the strongest first.

    Where a quarter of the classes have a single image, held-out images tell too little of them to
    pull them less than usual.
    """
    counts = labels.bincount()
    if (counts == 1).sum() * 4 < (counts > 0).sum():
        return list(STRENGTHS)
    return [strength for strength in STRENGTHS if strength > usual] + [usual]


def _with_singles(folds: Folds, labels: Tensor) -> Folds:
    """Return folds that hold out the image of a class that has only one, too.

    The class is known by its text alone, then. That is less than what it will have, but without it
    the best would be what knows the other classes only.
    """
    single = labels.bincount()[labels] == 1  # (N,)
    turn = single.cumsum(dim=0) - 1  # (N,), the number of a single image among them
    found: Folds = []
    for number, (_, out) in enumerate(folds):
        held = out | (single & (turn % len(folds) == number))
        found.append((~held, held))
    return found


def _one_fold(folds: Folds) -> Folds:
    """Return the first fold, of which some images are held out; none if there is no fold."""
    found: Folds = []
    for rest, out in folds[:1]:
        places = out.nonzero().flatten()  # (M, 1) -> (M,)
        some = torch.zeros_like(out)
        some[places[:: math.ceil(len(places) / HELD_OUT)]] = True
        found.append((rest, some))
    return found


def _nearest(results: dict[_Choice, Tensor], usual: float) -> _Choice:
    """Return the choice with the lowest loss, or one as good that is nearer the usual.

    Usual is the mean of both experts: one is alone only where that is clearly better.

    Args:
        results: the losses (M,) of each choice on the same images.
        usual: the strength to expect.
    """
    by_loss = sorted(results, key=lambda choice: results[choice].mean().item())
    best = next(choice for choice in by_loss if choice.which == "both")
    if _is_clearly_lower(results[by_loss[0]], results[best]):
        best = by_loss[0]
    alike = [choice for choice in results if choice.which == best.which]
    alike.sort(key=lambda choice: abs(math.log(choice.strength / usual)))
    return next(choice for choice in alike if not _is_clearly_lower(results[best], results[choice]))
