"""Sets of labels: the quantile beside exact arithmetic, and coverage in a simulation."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit.classify.conformal import (
    check_share,
    conformal_quantile,
    label_sets,
    nonconformity,
)
from clipkit.classify.suspects import check_cut
from clipkit.errors import ConfigError

COVERAGES = [0.01, 0.07, 0.1, 0.29, 0.5, 0.55, 0.57, 0.7, 0.8, 0.9, 0.95]


def quantile_by_fractions(scores: Tensor, coverage: float) -> float:
    """Return the k-th lowest score, k = ceil((n + 1) coverage), without rounding anywhere."""
    exact = Fraction(str(coverage)) * (len(scores) + 1)
    return sorted(scores.tolist())[math.ceil(exact) - 1]


@pytest.mark.parametrize("coverage", COVERAGES)
def test_the_quantile_is_that_of_exact_arithmetic(coverage: float) -> None:
    for count in (19, 20, 28, 29, 99, 100, 199, 1000):
        scores = torch.rand(count, generator=torch.Generator().manual_seed(count)).sort().values
        expected = quantile_by_fractions(scores, coverage)
        assert conformal_quantile(scores, coverage) == expected
        # NumPy's quantile at ceil((n + 1) coverage) / n, as papers write it.
        level = math.ceil(Fraction(str(coverage)) * (count + 1)) / count - 1e-12
        rows = scores.double().numpy()
        by_numpy = np.quantile(rows, level, method="inverted_cdf")
        assert conformal_quantile(scores, coverage) == by_numpy


def test_a_coverage_needs_enough_images() -> None:
    scores = torch.arange(19.0)
    assert conformal_quantile(scores, 0.95) == 18
    with pytest.raises(ConfigError, match="0.95 needs 19 calibration images at least, and there"):
        conformal_quantile(scores[:18], 0.95)
    with pytest.raises(ConfigError, match="coverage of at most 0.947, or calibrate on more"):
        conformal_quantile(scores[:18], 0.95)
    assert conformal_quantile(scores[:18], 0.947) == 17
    with pytest.raises(ConfigError, match="0.99 needs 99 calibration images at least"):
        conformal_quantile(scores, 0.99)
    assert conformal_quantile(torch.arange(99.0), 0.99) == 98


@pytest.mark.parametrize("coverage", [0, 1, -0.1, 1.5, math.nan, "0.9", None])
def test_coverage_is_between_0_and_1(coverage: Any) -> None:
    with pytest.raises(ConfigError, match="coverage must be a number between 0 and 1, not"):
        conformal_quantile(torch.arange(99.0), coverage)


def test_nonconformity_is_the_negative_logarithm_of_softmax() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 10
    rows = logits.double().numpy()
    shares = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
    expected = torch.from_numpy(-np.log(shares)).float()
    torch.testing.assert_close(nonconformity(logits), expected, rtol=1e-5, atol=1e-5)


def test_sets_have_what_is_no_less_probable_and_are_never_empty() -> None:
    scores = torch.tensor([[0.1, 2.0, 3.0], [1.5, 0.5, 1.0], [4.0, 3.0, 5.0]])
    assert label_sets(scores, 1.0).tolist() == [
        [True, False, False],
        [False, True, True],
        [False, True, False],  # the best of three that are all too improbable
    ]
    assert label_sets(scores, 5.0).all()


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_coverage_in_a_simulation(coverage: float) -> None:
    """Over many draws it is between the nominal one and 1 / (n + 1) more, for any classifier."""
    random = torch.Generator().manual_seed(1)
    hits: list[float] = []
    for _ in range(400):
        labels = torch.randint(0, 8, (60,), generator=random)
        logits = torch.randn(60, 8, generator=random)
        logits += torch.nn.functional.one_hot(labels, 8)  # right in about a quarter of the cases
        scores = nonconformity(logits)
        own = scores.gather(1, labels[:, None])[:, 0]
        quantile = conformal_quantile(own[:30].sort().values, coverage)
        members = label_sets(scores[30:], quantile)
        hits.append(members.gather(1, labels[30:, None]).float().mean().item())
    share = float(np.mean(hits))
    error = float(np.std(hits)) / len(hits) ** 0.5
    exact = math.ceil(31 * coverage) / 31  # what the k-th of 30 scores is worth on average
    assert abs(share - exact) < 4 * error + 0.003
    assert share > coverage - 4 * error
    assert error < 0.006  # else this would prove little


def test_shares_may_be_numbers_of_numpy() -> None:
    shares: list[Any] = [np.float32(0.5), np.float64(0.5)]
    for share in shares:
        check_share("coverage", share)
        check_cut(share)
    refused: list[Any] = [True, np.True_, "0.5", None, np.float32(0), float("nan")]
    for wrong in refused:
        with pytest.raises(ConfigError, match="coverage must be a number between 0 and 1, not "):
            check_share("coverage", wrong)
