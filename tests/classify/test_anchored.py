"""Test what `anchored` chooses, against an oracle, and on support sets of all kinds."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit.classify import anchored as module
from clipkit.classify.anchored import STRENGTHS, anchored
from clipkit.classify.anchored_experts import Which
from clipkit.classify.few_shot import fit_head
from clipkit.classify.fitting import Folds, make_folds
from clipkit.classify.heads import CosineHead, LinearHead
from clipkit.errors import ConfigError
from tests.helpers.anchored_oracle import (
    Array,
    GaussianOracle,
    Oracle,
    Pair,
    half_errors,
    logits,
    temperature,
)
from tests.helpers.support_sets import accuracy, assert_same_head
from tests.helpers.worlds import World

# What is chosen


def usual_strength(oracle: Oracle) -> float:
    """Return the strength to expect: weaker where texts say little, stronger for few images."""
    return max(0.1 * min(1.0, oracle.t / oracle.usual), 0.6 / len(oracle.y))


Option = tuple[float, str]  # a strength, and the experts


def held_out_losses(
    features: Tensor, labels: Tensor, zero_shot: CosineHead, folds: Folds
) -> dict[Option, tuple[float, Array]]:
    """Return the best factor and the losses of held-out images for all that can be chosen."""
    pairs = [Pair(features[rest], labels[rest], zero_shot) for rest, _ in folds]
    y = np.concatenate([labels[out].numpy() for _, out in folds])
    rarity = 1 / np.bincount(y)[y]  # each class counts alike

    def evaluate(layers: list[tuple[Array, Array]]) -> tuple[float, Array]:
        rows = [logits(own, features[out]) for own, (_, out) in zip(layers, folds, strict=True)]
        factor, losses = temperature(np.concatenate(rows), y)
        return factor, losses * rarity / rarity.mean()

    texts = [(pair.one.t * pair.one.w, np.zeros(len(pair.one.w))) for pair in pairs]
    results = {(math.inf, "logistic"): evaluate(texts)}
    for exponent in range(1, -7, -1):
        strength = 10.0 ** (exponent / 2)
        layers = [pair.layers(strength, rounds=1) for pair in pairs]
        for which in ("both", "logistic", "gaussian"):
            results[strength, which] = evaluate([one[which] for one in layers])
    return results


def chosen_of(results: dict[Option, tuple[float, Array]], usual: float) -> Option:
    """Return what the docstring says is chosen."""
    alone = min(results, key=lambda option: results[option][1].mean())
    averaged = [option for option in results if option[1] == "both"]
    best = min(averaged, key=lambda option: results[option][1].mean())
    if half_errors(results[alone][1], results[best][1]) > 1:
        best = alone
    losses = results[best][1]
    as_good = [
        option
        for option in results
        if option[1] == best[1] and half_errors(losses, results[option][1]) <= 1
    ]
    nearest = min(as_good, key=lambda option: abs(math.log(option[0] / usual)))
    start = (math.inf, "logistic")
    return nearest if half_errors(results[nearest][1], results[start][1]) > 1 else start


@pytest.mark.parametrize(
    "noise, gap, counts",
    [
        (1.5, 0.3, (4, 4, 3, 5, 4, 4)),  # zero-shot
        (1.5, 0.3, (9, 2, 5, 4, 7, 3)),
        (1.5, 0.3, (12,) * 6),  # both
        (0.9, 9.9, (20, 2, 9)),  # the Gaussians alone
        (1.5, 1.0, (12,) * 6),  # the logistic one alone
    ],
)
def test_choice_against_an_oracle(noise: float, gap: float, counts: tuple[int, ...]) -> None:
    """Cross-validate again, and never stop early."""
    world = World(len(counts), 12, noise, gap, seed=7)
    features, labels = world.draw(counts)
    others, _ = world.draw((9,) * len(counts))
    head, chosen = fit_head(features, labels, world.zero_shot, seed=3)
    folds = make_folds(labels, torch.Generator().manual_seed(3))
    results = held_out_losses(features, labels, world.zero_shot, folds)
    whole = Pair(features, labels, world.zero_shot)
    strength, which = chosen_of(results, usual_strength(whole.one))
    assert chosen["strength"] == pytest.approx(strength)
    assert chosen["experts"] == which
    factor = results[strength, which][0]
    assert head.scale == pytest.approx(whole.one.t * factor, rel=1e-2)
    layer = (whole.one.t * whole.one.w, np.zeros(len(counts)))
    if math.isfinite(strength):
        layer = whole.layers(strength, rounds=3)[which]
    expected = factor * logits(layer, others)
    found = head(others).detach().double().numpy()
    assert np.abs(found - expected).max() < 2e-2 * np.abs(expected).max()


def test_strengths_and_the_usual_one() -> None:
    assert len(STRENGTHS) == 8
    np.testing.assert_allclose(STRENGTHS, np.logspace(0.5, -3, 8))
    assert module._usual_strength(1000, 2.0) == pytest.approx(0.1)
    assert module._usual_strength(1000, 0.25) == pytest.approx(0.025)
    assert module._usual_strength(3, 1.0) == pytest.approx(0.2)


@pytest.mark.parametrize("counts", [(1,) * 6, (1, 0, 1, 1, 0, 1)])
def test_single_images_take_the_usual_strength(counts: tuple[int, ...]) -> None:
    world = World(6, 12, 1.5, 1)
    features, labels = world.draw(counts)
    head, chosen = fit_head(features, labels, world.zero_shot)
    expected = usual_strength(Oracle(features, labels, world.zero_shot))
    assert chosen["strength"] == pytest.approx(expected, rel=1e-3)
    assert chosen["experts"] == "both"
    same, _ = fit_head(features, labels, world.zero_shot, strength=chosen["strength"])
    assert_same_head(same, head)
    assert_same_head(same, fit_head(features, labels, world.zero_shot, seed=1)[0])  # no folds


# Losses by hand: the errors of the differences are 1 on average, of 4 images.


def choice(strength: float, which: Which = "both") -> Any:
    return module._Choice(strength, which, factor=1.0)


BASE = torch.tensor([1.0, 2.0, 3.0, 4.0])
# Halves of a standard error of this are 0.25: sqrt(1 / 4) / 2.
SPREAD = torch.tensor([-1.0, -1.0, 1.0, 1.0]) * math.sqrt(3 / 4)


def test_clearly_lower_is_half_a_standard_error() -> None:
    assert module._is_clearly_lower(BASE, BASE + SPREAD + 0.26)
    assert not module._is_clearly_lower(BASE, BASE + SPREAD + 0.24)
    assert not module._is_clearly_lower(BASE, BASE + SPREAD - 0.26)
    assert not module._is_clearly_lower(BASE, BASE)
    assert module._is_clearly_lower(BASE, BASE + 0.01)
    assert not module._is_clearly_lower(BASE[:1], BASE[:1] + 1)  # one image tells nothing


def test_the_nearest_to_the_usual_of_those_that_are_as_good() -> None:
    results = {
        choice(math.inf, "logistic"): BASE + 5,
        choice(1.0): BASE + SPREAD + 0.26,  # clearly worse
        choice(0.3): BASE + SPREAD + 0.24,
        choice(0.1): BASE + SPREAD + 0.24,
        choice(0.03): BASE + SPREAD + 0.2,
        choice(0.001): BASE,
        choice(1.0, "logistic"): BASE + 0.1 * SPREAD,  # as good, of one alone
    }
    for usual, expected in ((2.0, 0.3), (0.1, 0.1), (0.05, 0.03), (1e-4, 0.001), (0.18, 0.3)):
        assert module._nearest(results, usual).strength == expected, usual
    assert module._nearest(results, 1.0).which == "both"


@pytest.mark.parametrize("which", ["logistic", "gaussian"])
def test_one_alone_only_where_that_is_clearly_better(which: Which) -> None:
    results = {
        choice(math.inf, "logistic"): BASE + 5,
        choice(0.3): BASE + SPREAD + 0.26,
        choice(0.1): BASE + SPREAD + 0.26,
        choice(1.0, which): BASE + 0.1 * SPREAD + 0.01,
        choice(0.001, which): BASE,
    }
    assert module._nearest(results, 2.0) == choice(1.0, which)
    assert module._nearest(results, 0.01) == choice(0.001, which)
    results[choice(0.1)] = BASE + SPREAD + 0.24
    assert module._nearest(results, 0.01) == choice(0.1)


def count_folds(monkeypatch: pytest.MonkeyPatch, images: int) -> list[int]:
    """Return of how many images each classifier of the cross-validation was made."""
    made: list[int] = []

    class Counted(module.Experts):
        def __init__(self, features: Tensor, labels: Tensor, zero_shot: CosineHead) -> None:
            made.append(len(labels))
            super().__init__(features, labels, zero_shot)

    world = World(2, 3, 1.5, 1)
    monkeypatch.setattr(module, "Experts", Counted)
    monkeypatch.setattr(module, "STRENGTHS", (1.0,))
    fit_head(*world.draw((images // 2, images // 2)), world.zero_shot)
    return made


def test_of_many_images_one_fold_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.MANY == 2000
    assert count_folds(monkeypatch, 2000) == [2000, 1500, 1500, 1500, 1500]
    assert count_folds(monkeypatch, 2002) == [2002, 1500]


# Strength


def test_infinite_strength_is_zero_shot() -> None:
    world = World(8, 16, 1.5, 1)
    features, labels = world.draw((5, 5, 5, 5, 5, 5, 5, 0))
    others, _ = world.draw((50,) * 8)
    head, chosen = fit_head(features, labels, world.zero_shot, strength=math.inf)
    assert chosen["strength"] == math.inf
    assert head.scale is not None
    cosines = world.zero_shot(others) / 100
    torch.testing.assert_close(head(others) / head.scale, cosines, rtol=0, atol=1e-6)
    assert not head.to_linear().bias.any()


def test_the_strongest_finite_pull_leaves_weights_but_no_bias() -> None:
    """Gaussians around the means that texts predict: half the length of those is their bias."""
    world = World(8, 16, 1.5, 1)
    features, labels = world.draw((5,) * 8)
    head, chosen = fit_head(features, labels, world.zero_shot, strength=1e9)
    assert chosen["strength"] == 1e9
    assert head.scale is not None
    linear = head.to_linear()
    torch.testing.assert_close(
        linear.weight / head.scale, world.zero_shot.weight, rtol=0, atol=1e-5
    )
    oracle = Oracle(features, labels, world.zero_shot)
    _, bias = GaussianOracle(oracle).fit(3e-12, rounds=3)
    np.testing.assert_allclose(linear.bias.detach().numpy(), bias / 2, rtol=1e-2, atol=1e-3)
    assert linear.bias.abs().max() > 0.1


def test_the_weaker_the_pull_the_freer_the_fit() -> None:
    world = World(8, 16, 1.5, 1)
    features, labels = world.draw((5,) * 8)
    others, _ = world.draw((50,) * 8)
    before = world.zero_shot(others).argmax(dim=1)
    changed: list[int] = []
    for strength in (100.0, 1.0, 0.01):
        head, _ = fit_head(features, labels, world.zero_shot, strength=strength)
        changed.append(int((head(others).argmax(dim=1) != before).sum()))
    assert 0 <= changed[0] < changed[1] < changed[2]
    assert accuracy(world.zero_shot, features, labels) < 1
    free, _ = fit_head(features, labels, world.zero_shot, strength=1e-5)
    assert accuracy(free, features, labels) == 1


@pytest.mark.parametrize("strength", [0, -1, -math.inf, math.nan])
def test_impossible_strength(strength: float) -> None:
    world = World(3, 4, 1, 1)
    with pytest.raises(ConfigError, match=f"strength must be above 0, .*, not {strength}"):
        fit_head(*world.draw((2, 2, 2)), world.zero_shot, strength=strength)


# Support sets of all kinds


@pytest.mark.parametrize(
    "counts",
    [
        (5, 0, 3, 0, 4, 2),
        (40, 1, 1, 1, 1, 1),
        (2, 1, 1, 1, 1, 0),
        (1, 0, 0, 0, 0, 0),
        (7, 0, 0, 0, 0, 0),
        (3, 2, 0, 0, 0, 0),
        (9, 9),
        (1, 1),
        (12, 1),
    ],
)
@pytest.mark.parametrize("width", [2, 12, 70])
def test_uneven_support_sets(counts: tuple[int, ...], width: int) -> None:
    world = World(len(counts), width, 0.6, 0.3)
    others, answers = world.draw((100,) * len(counts))
    features, labels = world.draw(counts)
    head, chosen = fit_head(features.half(), labels, world.zero_shot)
    assert head(others).isfinite().all()
    assert head.scale is not None
    assert 0.01 < head.scale < 1000
    singles = sum(count == 1 for count in counts)
    assert chosen["strength"] in (*STRENGTHS, math.inf) or singles
    if width > 2:  # six classes in a plane are not told apart by anything
        zero_shot = accuracy(world.zero_shot, others, answers)
        assert accuracy(head, others, answers) >= zero_shot - 0.05


@pytest.mark.parametrize("times", [2, 3, 8])
@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (0, 1, 0, 0), (1, 0, 0, 1)])
@pytest.mark.parametrize("width", [3, 6, 40])
def test_the_same_image_again_and_again(times: int, counts: tuple[int, ...], width: int) -> None:
    """There is no scatter, then."""
    world = World(4, width, 0.5, 1)
    features, labels = world.draw(counts)
    rows, answers = features.repeat(times, 1), labels.repeat(times)
    for strength in (None, 0.01):
        head, _ = fit_head(rows, answers, world.zero_shot, strength=strength)
        assert head(rows).isfinite().all()
    if sum(counts) > 1:  # a single class tells nothing of the others
        assert accuracy(fit_head(rows, answers, world.zero_shot)[0], rows, answers) == 1


def test_one_image_in_all_classes() -> None:
    """All features are the same, whatever their labels: nothing can be told, and nothing fails."""
    world = World(4, 6, 0.5, 1)
    features, _ = world.draw((1, 0, 0, 0))
    for strength in (None, 0.01):
        rows = features.expand(4, -1)
        head, _ = fit_head(rows, torch.tensor([0, 0, 1, 1]), world.zero_shot, strength=strength)
        assert head(world.draw((9,) * 4)[0]).isfinite().all()


@pytest.mark.parametrize("strength", [None, 0.01])
def test_one_dimension(strength: float | None) -> None:
    zero_shot = CosineHead(torch.tensor([[1.0], [-1.0]]), torch.tensor(1.0))
    features = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    head, _ = fit_head(features, labels, zero_shot, strength=strength)
    assert accuracy(head, features, labels) == 1
    assert head(features).isfinite().all()


def test_the_order_of_images_does_not_matter() -> None:
    world = World(6, 40, 1.5, 1)
    others, _ = world.draw((9,) * 6)
    for counts in ((3, 1, 2, 3, 0, 2), (1,) * 6):
        features, labels = world.draw(counts)
        one, other = (
            fit_head(features[order], labels[order], world.zero_shot, strength=0.03)[0]
            for order in (torch.arange(len(labels)), torch.arange(len(labels) - 1, -1, -1))
        )
        own = 1 - (labels.bincount(minlength=6) == 0).float()  # folds set the offset of the others
        torch.testing.assert_close(own * one(others), own * other(others), rtol=0, atol=2e-2)


def test_seed() -> None:
    world = World(6, 12, 0.9, 0.7)
    features, labels = world.draw((9, 2, 5, 1, 7, 3))
    one, again, other = (
        fit_head(features, labels, world.zero_shot, seed=seed) for seed in (0, 0, 1)
    )
    assert_same_head(again[0], one[0])
    assert again[1] == one[1]
    assert other[0].scale != one[0].scale  # other folds


def test_alone() -> None:
    """`fit_head` only adds checks and the generator."""
    world = World(4, 8, 0.9, 1)
    features, labels = world.draw((3,) * 4)
    generator = torch.Generator().manual_seed(0)
    head, _ = anchored(features, labels, world.zero_shot, generator, strength=0.1)
    expected, _ = fit_head(features, labels, world.zero_shot, strength=0.1)
    assert_same_head(head, expected)


def test_classes_that_are_added_later_are_believable() -> None:
    """Their cosines are multiplied by what multiplies the texts of the others."""
    world = World(12, 32, 2.5, 0.8, seed=3)
    features, labels = world.draw((8,) * 6 + (0,) * 6)
    start = CosineHead(world.zero_shot.weight[:6], world.zero_shot.logit_scale)
    head, _ = fit_head(features, labels, start)
    assert isinstance(head, LinearHead)
    more = head.add_zero_shot(world.zero_shot.weight[6:])
    others, answers = world.draw((60,) * 12)
    before = accuracy(world.zero_shot, others, answers)
    assert accuracy(more, others, answers) > before - 0.02
    new = answers >= 6
    known = accuracy(world.zero_shot, others[new], answers[new])
    assert accuracy(more, others[new], answers[new]) > 0.6 * known  # images pull to their classes
