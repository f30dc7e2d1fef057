"""Test `anchored` against SciPy and scikit-learn, and on support sets of all kinds."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from clipkit.classify.anchored import STRENGTHS, _scatter, anchored
from clipkit.classify.few_shot import fit_head
from clipkit.classify.fitting import make_folds
from clipkit.classify.heads import CosineHead
from clipkit.errors import ConfigError
from tests.helpers.support_sets import accuracy, assert_same_head
from tests.helpers.worlds import Array, Oracle, World, scatter_of, temperature

COUNTS = [
    (9, 2, 5, 1, 7, 3),
    (4, 4, 4, 4, 4, 4),
    (30, 2, 2, 2, 2, 2),
    (3, 0, 1, 6, 0, 4),
    (2, 1, 1, 1, 1, 1),
    (1,) * 6,
]


# The formula


@pytest.mark.parametrize("counts", COUNTS[:5])
@pytest.mark.parametrize("width", [3, 12, 40])
def test_scatter_against_sklearn(counts: tuple[int, ...], width: int) -> None:
    features, labels = World(6, width, 0.9, 1).draw(counts)
    found = _scatter(features, labels, 6)
    expected: Any = scatter_of(features.double().numpy(), labels.numpy())
    assert found is not None
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_no_scatter_in_single_images() -> None:
    assert _scatter(*World(6, 12, 0.9, 1).draw((1, 0, 1, 1, 1, 1)), 6) is None


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("strength", [10, 1, 0.1, 0.01])
def test_minimum_against_scipy(counts: tuple[int, ...], strength: float) -> None:
    world = World(6, 12, 0.9, 1)
    features, labels = world.draw(counts)
    oracle = Oracle(features, labels, world.zero_shot)
    head, chosen = fit_head(features, labels, world.zero_shot, strength=strength)
    assert head.scale == pytest.approx(oracle.t, rel=1e-5)
    assert chosen["strength"] == strength
    expected = oracle.fit(strength)
    off = np.abs(head.to_linear().weight.detach().numpy() - expected).max()
    assert off < 5e-3 * np.abs(expected).max()
    assert not head.to_linear().bias.any()


@pytest.mark.parametrize(
    "noise, gap, seed, counts, clear",
    [
        (0.9, 0.7, 0, (9, 2, 5, 1, 7, 3), True),
        (1.5, 0.5, 1, (4, 4, 3, 5, 4, 4), True),
        (1.5, 0.5, 9, (4, 4, 3, 5, 4, 4), False),
        (2.0, 0.3, 9, (4, 4, 3, 5, 4, 4), False),
    ],
)
def test_choice_against_scipy(
    noise: float, gap: float, seed: int, counts: tuple[int, ...], clear: bool
) -> None:
    """Cross-validate again: the lowest loss, if clearly below zero-shot's, and the best factor."""
    world = World(6, 12, noise, gap, seed)
    features, labels = world.draw(counts)
    head, chosen = fit_head(features, labels, world.zero_shot, seed=3)
    folds = make_folds(labels, torch.Generator().manual_seed(3))
    y = np.concatenate([labels[out].numpy() for _, out in folds])
    oracles = [Oracle(features[rest], labels[rest], world.zero_shot) for rest, _ in folds]
    held_out = [features[out].double().numpy() for _, out in folds]

    def evaluate(strength: float) -> tuple[float, Array]:
        """Return the best factor and the losses of the images that were held out."""
        weights = [one.t * one.w if math.isinf(strength) else one.fit(strength) for one in oracles]
        logits = [x @ weight.T for x, weight in zip(held_out, weights, strict=True)]
        return temperature(np.concatenate(logits), y)

    results = {strength: evaluate(strength) for strength in (math.inf, *STRENGTHS)}
    means = {strength: losses.mean() for strength, (_, losses) in results.items()}
    best = min(means, key=lambda strength: means[strength])
    gain = results[math.inf][1] - results[best][1]
    assert best < 10
    assert (gain.mean() > gain.std(ddof=1) / math.sqrt(len(gain))) == clear
    if clear:  # its neighbors may be as good
        assert means[chosen["strength"]] == pytest.approx(means[best], rel=1e-3)
    else:
        assert chosen["strength"] == math.inf
    whole = Oracle(features, labels, world.zero_shot)
    factor = results[chosen["strength"]][0]
    assert head.scale == pytest.approx(whole.t * factor, rel=1e-2)


@pytest.mark.parametrize("counts", [(1,) * 6, (1, 0, 1, 1, 0, 1)])
def test_single_images_follow_the_rule(counts: tuple[int, ...]) -> None:
    world = World(6, 12, 0.9, 1)
    features, labels = world.draw(counts)
    head, chosen = fit_head(features, labels, world.zero_shot)
    oracle = Oracle(features, labels, world.zero_shot)
    scores = oracle.t * oracle.x @ oracle.w.T
    own = scores[np.arange(len(scores)), oracle.y]
    loss = np.log(np.exp(scores).sum(axis=1)).mean() - own.mean()
    assert chosen["strength"] == pytest.approx(0.03 / (loss / math.log(6)) ** 3, rel=1e-4)
    assert head.scale == pytest.approx(oracle.t, rel=1e-5)
    same, _ = fit_head(features, labels, world.zero_shot, strength=chosen["strength"])
    assert_same_head(same, head)


# Strength


def test_the_rule_has_a_limit() -> None:
    """Texts that leave no doubt at all do not make the strength infinite."""
    zero_shot = CosineHead(torch.eye(40), torch.tensor(1.0))
    _, chosen = fit_head(torch.eye(40), torch.arange(40), zero_shot)
    assert chosen["strength"] == pytest.approx(0.03 / 0.03**3)


@pytest.mark.parametrize("strength", [math.inf, 1e9])
def test_the_strongest_penalty_leaves_zero_shot(strength: float) -> None:
    world = World(8, 16, 1.5, 1)
    features, labels = world.draw((5,) * 8)
    others, _ = world.draw((50,) * 8)
    head, chosen = fit_head(features, labels, world.zero_shot, strength=strength)
    assert chosen["strength"] == strength
    assert head.scale is not None
    cosines = world.zero_shot(others) / 100
    assert head(others).argmax(dim=1).equal(cosines.argmax(dim=1))
    torch.testing.assert_close(head(others) / head.scale, cosines, rtol=0, atol=1e-5)


def test_the_weaker_the_penalty_the_freer_the_fit() -> None:
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
    "counts", [(5, 0, 3, 0, 4, 2), (40, 1, 1, 1, 1, 1), (2, 1, 1, 1, 1, 0), (1, 0, 0, 0, 0, 0)]
)
def test_uneven_support_sets(counts: tuple[int, ...]) -> None:
    world = World(6, 12, 0.6, 0.3)
    others, answers = world.draw((100,) * 6)
    head, chosen = fit_head(*world.draw(counts), world.zero_shot)
    assert head(others).isfinite().all()
    assert head.scale is not None
    assert head.scale > 0
    assert chosen["strength"] in (*STRENGTHS, math.inf) or max(counts) == 1
    allowed = 0.02 if sum(counts) > 1 else 0.05
    zero_shot = accuracy(world.zero_shot, others, answers)
    assert accuracy(head, others, answers) >= zero_shot - allowed


@pytest.mark.parametrize("times", [2, 3, 8])
def test_the_same_image_again_and_again(times: int) -> None:
    """There is no scatter, then."""
    world = World(4, 6, 0.5, 1)
    features, labels = world.draw((1,) * 4)
    head, _ = fit_head(features.repeat(times, 1), labels.repeat(times), world.zero_shot)
    assert head(features).isfinite().all()
    assert accuracy(head, features, labels) == 1


def test_one_dimension() -> None:
    zero_shot = CosineHead(torch.tensor([[1.0], [-1.0]]), torch.tensor(1.0))
    features = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    head, _ = fit_head(features, labels, zero_shot)
    assert accuracy(head, features, labels) == 1


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
