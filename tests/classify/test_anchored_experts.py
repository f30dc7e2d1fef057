"""Test both experts of `anchored` in float64, against SciPy and scikit-learn, in all directions."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit.classify.anchored_experts import CHOICES, DISTANCE, Experts, text_scale
from clipkit.classify.scatter import shrinkage, span
from tests.helpers.anchored_oracle import Array, GaussianOracle, Oracle, oas
from tests.helpers.worlds import World

KINDS = [
    (9, 2, 5, 1, 7, 3),
    (4, 4, 4, 4, 4, 4),
    (30, 2, 2, 2, 2, 2),
    (3, 0, 1, 6, 0, 4),
    (2, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 1),
    (0, 5, 0, 0),
    (0, 2, 0, 0),
    (0, 0, 1),
    (7, 5),
    (1, 3),
    (1, 1),
]
WIDTHS = [2, 3, 12, 40, 80]  # fewer directions than images, as many, and more than all


def arranged(counts: tuple[int, ...], width: int) -> tuple[World, Tensor, Tensor]:
    world = World(len(counts), width, 1.3, 1.5, seed=len(counts) + width)
    return (world, *world.draw(counts))


def assert_near(found: Tensor, expected: Array, relative: float, absolute: float = 0.0) -> None:
    """Fail unless the largest error is below a share of the largest number."""
    error = np.abs(found.double().numpy() - expected).max()
    assert error <= relative * np.abs(expected).max() + absolute


@pytest.mark.parametrize("counts", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_scale_of_texts_against_scipy(counts: tuple[int, ...], width: int) -> None:
    world, features, labels = arranged(counts, width)
    oracle = Oracle(features, labels, world.zero_shot)
    experts = Experts(features, labels, world.zero_shot)
    assert experts.scale == pytest.approx(oracle.t, rel=2e-3)
    assert experts.trust == pytest.approx(experts.scale / 100, rel=1e-6)


@pytest.mark.parametrize("counts", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("strength", [3.0, 0.1, 0.003])
def test_logistic_regression_against_scipy(
    counts: tuple[int, ...], width: int, strength: float
) -> None:
    world, features, labels = arranged(counts, width)
    experts = Experts(features, labels, world.zero_shot)
    oracle = Oracle(features, labels, world.zero_shot)
    oracle.t = experts.scale
    weight, bias = oracle.logistic(strength)
    experts.logistic.fit(strength, iterations=100)
    assert_near(experts.logistic.weight, weight, 1e-2)
    assert_near(experts.logistic.bias, bias, 2e-2, absolute=5e-3)


@pytest.mark.parametrize("counts", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("distance", [0.001, 0.03, 3.0])
def test_gaussians_against_numpy(counts: tuple[int, ...], width: int, distance: float) -> None:
    world, features, labels = arranged(counts, width)
    experts = Experts(features, labels, world.zero_shot)
    oracle = Oracle(features, labels, world.zero_shot)
    oracle.t = experts.scale
    weight, bias = GaussianOracle(oracle).fit(distance, rounds=3)
    experts.gaussian.fit(distance, rounds=3)
    assert_near(experts.gaussian.weight, weight, 1e-4)
    assert_near(experts.gaussian.bias, bias, 1e-4, absolute=1e-4)
    assert experts.gaussian.weight.dtype == torch.float32


@pytest.mark.parametrize("counts", [(9, 2, 5, 1, 7, 3), (3, 0, 1, 6, 0, 4), (7, 5)])
def test_fits_go_on_where_the_last_ended(counts: tuple[int, ...]) -> None:
    """A sweep from strong to weak has one round each; the minimum does not remember it."""
    world, features, labels = arranged(counts, 12)
    experts = Experts(features, labels, world.zero_shot)
    oracle = Oracle(features, labels, world.zero_shot)
    oracle.t = experts.scale
    gaussians = GaussianOracle(oracle)
    for strength in (1.0, 0.3, 0.1):
        experts.fit(strength, iterations=100, rounds=1)
        assert_near(experts.logistic.weight, oracle.logistic(strength)[0], 5e-3)
        weight, bias = gaussians.fit(0.003 / strength, rounds=1)
        assert_near(experts.gaussian.weight, weight, 1e-4)
        assert_near(experts.gaussian.bias, bias, 1e-4)


def test_the_mean_of_both() -> None:
    world, features, labels = arranged((9, 2, 5, 1, 7, 3), 12)
    others, _ = world.draw((3,) * 6)
    experts = Experts(features, labels, world.zero_shot)
    for which in CHOICES:  # before any fit all are zero-shot
        for part, mean in zip(experts.layer(which), experts.layer("both"), strict=True):
            assert part.equal(mean)
    torch.testing.assert_close(
        experts.logits(others, "both"), experts.scale / 100 * world.zero_shot(others).detach()
    )
    experts.fit(0.1, iterations=100, rounds=3)
    one, two = experts.logistic, experts.gaussian
    first, second = (others @ part.weight.T + part.bias for part in (one, two))
    torch.testing.assert_close(experts.logits(others, "logistic"), first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(experts.logits(others, "gaussian"), second, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        experts.logits(others, "both"), (first + second) / 2, rtol=1e-4, atol=1e-4
    )
    alone = Experts(features, labels, world.zero_shot)
    alone.gaussian.fit(DISTANCE / 0.1, rounds=3)
    assert alone.gaussian.weight.equal(two.weight)


def test_many_rounds_change_little() -> None:
    world, features, labels = arranged((9, 2, 5, 1, 7, 3), 12)
    weights: list[Tensor] = []
    for rounds in (3, 30):
        experts = Experts(features, labels, world.zero_shot)
        experts.gaussian.fit(0.03, rounds)
        weights.append(experts.gaussian.weight)
    assert (weights[0] - weights[1]).abs().max() < 0.02 * weights[1].abs().max()


# The scale of texts


def test_the_prior_holds_the_scale() -> None:
    """One image that any factor explains the better the larger leaves the model's factor."""
    cosines = torch.tensor([[0.3, 0.2]])
    found = text_scale(cosines, torch.tensor([0]), usual=10.0)
    moved = math.log(found / 10)
    # The slope of log(1 + exp(-0.1 s)) + m^2 / 2 at s = 10 e^m is zero.
    assert moved == pytest.approx(0.1 * found / (1 + math.exp(0.1 * found)), rel=1e-3)
    many = text_scale(cosines.repeat(1000, 1), torch.zeros(1000, dtype=torch.int64), usual=10.0)
    assert many > 4 * found


def test_useless_texts_lose_their_scale() -> None:
    cosines = torch.tensor([[0.3, 0.2], [0.2, 0.3]] * 50)
    labels = torch.tensor([0, 0, 1, 1] * 25)
    assert text_scale(cosines, labels, usual=100.0) < 5


# Scatter


@pytest.mark.parametrize("count, width", [(2, 5), (5, 5), (9, 3), (4, 30), (200, 4)])
@pytest.mark.parametrize("uneven", [0.0, 3.0])
def test_shrinkage_against_sklearn(count: int, width: int, uneven: float) -> None:
    random = np.random.default_rng(count)
    rows = random.normal(size=(count, width)) * np.exp(uneven * np.linspace(0, 1, width))
    raw = rows.T @ rows / count
    share = shrinkage(torch.tensor(raw), width, count).item()
    expected = (1 - share) * raw + share * np.trace(raw) / width * np.eye(width)
    np.testing.assert_allclose(oas(rows), expected, rtol=1e-10, atol=1e-12)
    assert 0 < share <= 1


def test_shrinkage_knows_of_directions_without_data() -> None:
    raw = torch.diag(torch.tensor([3.0, 1.0]))
    wide = torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0, 0.0]))
    assert shrinkage(raw, 5, 9).item() == pytest.approx(shrinkage(wide, 5, 9).item())
    assert shrinkage(raw, 2, 9).item() != pytest.approx(shrinkage(raw, 5, 9).item(), rel=0.1)


@pytest.mark.parametrize("covariance", [torch.zeros(3, 3), torch.eye(3), 2 * torch.eye(1)])
def test_what_does_not_vary_or_varies_evenly_is_shrunk_whole(covariance: Tensor) -> None:
    assert shrinkage(covariance, len(covariance), 5).item() == 1


@pytest.mark.parametrize("count, width, expected", [(3, 8, 3), (8, 8, 8), (20, 8, 8)])
def test_span(count: int, width: int, expected: int) -> None:
    rows = torch.randn(count, width, dtype=torch.float64, generator=torch.Generator())
    rows[-1] = rows[0]  # a repeated image
    basis = span(rows)
    assert basis.shape == (width, expected)
    assert basis.dtype == torch.float64
    torch.testing.assert_close(basis.T @ basis, torch.eye(expected, dtype=torch.float64))
    torch.testing.assert_close(rows @ basis @ basis.T, rows)
