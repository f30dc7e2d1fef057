"""Test calibration error and temperature against plain NumPy and SciPy."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from clipkit.classify.metrics import (
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
    wilson_interval,
)
from clipkit.errors import ConfigError

Array = npt.NDArray[Any]


# Calibration error


def calibration_oracle(probabilities: Array, labels: Array, bins: int) -> float:
    """Take one bin after the other, with edges in the dtype of the probabilities."""
    number = probabilities.dtype.type
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for b in range(bins):
        inside = (sure > number(b / bins)) & (sure <= number((b + 1) / bins))
        if inside.any():
            gap = right[inside].mean() - sure[inside].astype(np.float64).mean()
            total += inside.mean() * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 2, 10, 15, 100])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_calibration_error_against_numpy(bins: int, dtype: npt.DTypeLike) -> None:
    random = np.random.default_rng(8)
    for classes in (2, 5):
        probabilities = random.dirichlet(np.full(classes, 0.6), 300).astype(dtype)
        labels = random.integers(0, classes, 300)
        labels[::2] = probabilities[::2].argmax(axis=1)
        result = expected_calibration_error(torch.tensor(probabilities), torch.tensor(labels), bins)
        expected = calibration_oracle(probabilities, labels, bins)
        assert result == pytest.approx(expected, abs=1e-9)
        assert result > 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_calibration_error_on_the_edges_of_the_bins(dtype: torch.dtype) -> None:
    """Each top probability is an edge and belongs to the bin below; bins differ in accuracy."""
    tenths = torch.arange(5, 11).repeat_interleave(2)
    sure = (tenths.double() / 10).to(dtype)
    labels = torch.tensor([0, 1] * 6)  # half are right; of the even row class 0 comes first
    result = expected_calibration_error(torch.stack((sure, 1 - sure), dim=1), labels, bins=10)
    assert result == pytest.approx(np.mean([0, 0.1, 0.2, 0.3, 0.4, 0.5]), abs=1e-6)
    labels = torch.tensor([0, 1])
    two_bins = torch.tensor([[0.6, 0.4], [0.61, 0.39]], dtype=dtype)  # gaps do not cancel
    found = expected_calibration_error(two_bins, labels, bins=10)
    assert found == pytest.approx((0.4 + 0.61) / 2, abs=1e-6)
    one_bin = torch.tensor([[0.6, 0.4], [0.59, 0.41]], dtype=dtype)  # gaps cancel
    found = expected_calibration_error(one_bin, labels, bins=10)
    assert found == pytest.approx(0.19 / 2, abs=1e-6)


def test_calibration_error_known_answers() -> None:
    assert expected_calibration_error(torch.eye(3), torch.arange(3)) == 0
    assert expected_calibration_error(torch.eye(3), torch.tensor([1, 2, 0])) == 1
    single_class = torch.ones(4, 1)
    assert expected_calibration_error(single_class, torch.zeros(4, dtype=torch.long)) == 0
    equal = torch.full((4, 4), 0.25)  # the first class is predicted
    assert expected_calibration_error(equal, torch.arange(4)) == 0


def test_calibration_error_accepts_rounded_sums() -> None:
    logits = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    half = logits.bfloat16().softmax(dim=1)
    assert 0 <= expected_calibration_error(half, torch.arange(50)) <= 1


# The best temperature


def scores(seed: int, count: int = 120, classes: int = 5) -> tuple[Array, Array]:
    """Return random logits, and labels that they favor but not always."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, classes))
    return logits, (logits + random.normal(size=logits.shape)).argmax(axis=1)


Curve = Callable[[float], float]


def curves(logits: Array, labels: Array) -> tuple[Curve, Curve]:
    """Return mean cross-entropy and its slope, as functions of the logarithm of the factor."""
    special = pytest.importorskip("scipy.special")
    lead = logits - logits[np.arange(len(labels)), labels][:, None]

    def loss(x: float) -> float:
        return np.mean(special.logsumexp(np.exp(x) * lead, axis=1)).item()

    def slope(x: float) -> float:
        weight = special.softmax(np.exp(x) * lead, axis=1)
        return np.mean((weight * lead).sum(axis=1)).item()

    return loss, slope


ENDS = math.log(1e-4), math.log(1e4)


@pytest.mark.parametrize("size", [0.003, 0.2, 1, 30, 3000])
def test_temperature_against_scipy(size: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(3):
        logits, labels = scores(seed)
        loss, slope = curves(size * logits, labels)
        result = fit_temperature(torch.tensor(size * logits), torch.tensor(labels))
        smallest = optimize.minimize_scalar(
            loss, bounds=ENDS, method="bounded", options={"xatol": 1e-10}
        )
        assert isinstance(result, float)
        assert 1e-4 < result < 1e4
        assert result == pytest.approx(math.exp(smallest.x), rel=1e-6)
        flat = optimize.brentq(slope, *ENDS, xtol=1e-14)
        assert result == pytest.approx(math.exp(flat), rel=1e-10)


def test_temperature_of_rows_of_very_different_sizes() -> None:
    """Some rows saturate before others matter, so that Newton steps alone would leave the range."""
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(30):
        random = np.random.default_rng(seed)
        logits = random.normal(size=(20, 4)) * 10.0 ** random.uniform(-3, 4, (20, 1))
        labels = logits.argmax(axis=1)
        labels[0] = logits[0].argmin()
        logits[0] *= 1e-3 / np.abs(logits[0]).max()
        _, slope = curves(logits, labels)
        if slope(ENDS[1]) <= 0:
            expected = 1e4
        else:
            expected = math.exp(optimize.brentq(slope, *ENDS, xtol=1e-14))
        result = fit_temperature(torch.tensor(logits), torch.tensor(labels))
        assert result == pytest.approx(expected, rel=1e-9)


def test_temperature_undoes_a_factor() -> None:
    logits, labels = (torch.tensor(x) for x in scores(9))
    best = fit_temperature(logits, labels)
    assert fit_temperature(logits * best, labels) == pytest.approx(1, rel=1e-9)
    shifted = logits + torch.arange(120)[:, None]
    assert fit_temperature(shifted, labels) == pytest.approx(best, rel=1e-9)
    single = logits.float().requires_grad_()
    assert fit_temperature(single, labels.int()) == pytest.approx(best, rel=1e-6)


def test_temperature_of_a_known_answer() -> None:
    """Two scores, right in three of four rows: sigmoid(s) = 3 / 4."""
    two = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    assert fit_temperature(two, torch.tensor([0, 0, 1, 0])) == pytest.approx(math.log(3), rel=1e-12)


def test_temperature_at_its_ends() -> None:
    labels = torch.arange(4)
    assert fit_temperature(torch.eye(4), labels) == 1e4  # always right
    assert fit_temperature(torch.eye(4) * 1e6, labels) == 1e4
    assert fit_temperature(-torch.eye(4), labels) == 1e-4  # always wrong
    assert fit_temperature(torch.eye(4).roll(1, 0), labels) == 1e-4
    assert fit_temperature(torch.eye(4).roll(1, 0) * 1e6, labels) == 1e-4
    for constant in (torch.zeros(4, 4), torch.arange(4.0)[:, None].expand(4, 4)):
        assert fit_temperature(constant, labels) == 1
    single_class = torch.rand(4, 1)
    assert fit_temperature(single_class, torch.zeros(4, dtype=torch.long)) == 1


# Bins


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_bins_have_what_the_calibration_error_is_made_of(bins: int) -> None:
    random = np.random.default_rng(9)
    probabilities = random.dirichlet(np.full(4, 0.5), 400)
    labels = random.integers(0, 4, 400)
    labels[::2] = probabilities[::2].argmax(axis=1)
    found = reliability_bins(probabilities, labels, bins)
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected: list[tuple[float, ...]] = []
    for b in range(bins):
        inside = (sure > b / bins) & (sure <= (b + 1) / bins)
        if inside.any():
            means = sure[inside].mean(), right[inside].mean()
            expected.append((b / bins, (b + 1) / bins, inside.sum(), *means))
    assert len(found) == len(expected)
    for part, row in zip(found, expected, strict=True):
        assert tuple(part) == pytest.approx(row, abs=1e-12)
    gap = sum(part.images * abs(part.confidence - part.accuracy) for part in found) / 400
    assert gap == pytest.approx(expected_calibration_error(probabilities, labels, bins), abs=1e-12)


# The interval


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("images", [1, 2, 7, 100, 123456])
def test_the_interval_is_scipys(images: int, level: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    for hits in {0, 1, images // 3, images - 1, images}:
        low, high = wilson_interval(hits, images, level)
        expected = stats.binomtest(hits, images).proportion_ci(level, method="wilson")
        assert low == pytest.approx(expected.low, abs=1e-12)
        assert high == pytest.approx(expected.high, abs=1e-12)
    assert wilson_interval(0, images)[0] == 0.0
    assert wilson_interval(images, images)[1] == 1.0


@pytest.mark.parametrize(
    ("hits", "images", "level", "message"),
    [
        (0, 0, 0.95, "images as an integer of 1 to inf, not 0"),
        (-1, 5, 0.95, "hits of 0 to 5, not -1"),
        (6, 5, 0.95, "hits of 0 to 5, not 6"),
        (1.5, 5, 0.95, "hits of 0 to 5, not 1.5"),
        (1, 5, 1.0, "a level between 0 and 1, not 1.0"),
        (1, 5, 0.0, "a level between 0 and 1, not 0.0"),
        (1, 5, math.nan, "a level between 0 and 1, not nan"),
    ],
)
def test_impossible_intervals_are_refused(
    hits: int, images: int, level: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        wilson_interval(hits, images, level)


def test_intervals_take_numbers_of_numpy() -> None:
    counts: list[Any] = [np.int64(5), np.int64(9)]
    found = wilson_interval(*counts)
    assert found == wilson_interval(5, 9)
    assert type(found[0]) is float
    assert wilson_interval(5, 9, np.float64(0.9)) == wilson_interval(5, 9, 0.9)
    wrong: list[Any] = ["x", True, None]
    for level in wrong:
        with pytest.raises(ConfigError, match="needs a level between 0 and 1, not "):
            wilson_interval(5, 9, level)
