"""How far logits stand out, and the threshold below which an image is of none of the classes."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from clipkit.classify.contrast import confidence, contrast
from clipkit.classify.rejection import rejection_threshold
from clipkit.errors import ConfigError


def test_contrast_is_the_distance_from_three_quarters_of_the_mean() -> None:
    logits = torch.tensor([[4.0, 8.0, 0.0], [1.0, 1.0, 1.0]])
    assert contrast(logits).tolist() == [[1.0, 5.0, -3.0], [0.25, 0.25, 0.25]]
    assert confidence(logits).tolist() == [5.0, 0.25]


def test_confidence_beside_numpy() -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)) * 20
    rows = logits.double().numpy()
    expected = rows.max(axis=1) - 0.75 * rows.mean(axis=1)
    np.testing.assert_allclose(confidence(logits).numpy(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.29, 0.57, 0.7])
def test_the_threshold_is_that_of_exact_arithmetic(rate: float) -> None:
    for count in (99, 100, 199, 1000):
        rows = torch.rand(count, generator=torch.Generator().manual_seed(count)).sort().values
        place = math.floor(Fraction(str(rate)) * (count + 1))
        assert rejection_threshold(rows, rate) == rows[place - 1].item()


def test_a_rate_needs_enough_images() -> None:
    rows = torch.arange(19.0)
    assert rejection_threshold(rows, 0.05) == 0.0
    with pytest.raises(ConfigError, match="0.05 need 19 calibration images at least, and there"):
        rejection_threshold(rows[:18], 0.05)
    with pytest.raises(ConfigError, match="false_alarms of at least 0.053"):
        rejection_threshold(rows[:18], 0.05)
    assert rejection_threshold(rows[:18], 0.053) == 0.0
    with pytest.raises(ConfigError, match="0.01 need 99 calibration images at least"):
        rejection_threshold(rows, 0.01)


def test_the_highest_rate_rejects_what_is_below_the_highest() -> None:
    assert rejection_threshold(torch.arange(9.0), 0.99) == 8.0
    assert rejection_threshold(torch.arange(9.0), 1 - 1e-12) == 8.0


@pytest.mark.parametrize("rate", [0, 1, -1, math.inf, "1 %", None])
def test_the_rate_is_between_0_and_1(rate: Any) -> None:
    with pytest.raises(ConfigError, match="false_alarms must be a number between 0 and 1, not"):
        rejection_threshold(torch.arange(99.0), rate)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_false_alarms_in_a_simulation(rate: float) -> None:
    random = torch.Generator().manual_seed(2)
    shares: list[float] = []
    for _ in range(400):
        rows = confidence(torch.randn(79, 5, generator=random))
        threshold = rejection_threshold(rows[:39].sort().values, rate)
        shares.append((rows[39:] < threshold).float().mean().item())
    error = float(np.std(shares)) / len(shares) ** 0.5
    assert abs(float(np.mean(shares)) - rate) < 4 * error
    assert error < 0.005
