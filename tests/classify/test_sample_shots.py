"""Test that balanced draws are balanced, follow their seed, and refuse what they cannot draw."""

from typing import Any

import numpy as np
import pytest
import torch

from clipkit.classify.few_shot import sample_shots
from clipkit.errors import ConfigError


def test_samples_are_balanced() -> None:
    labels = torch.randint(0, 7, (400,), generator=torch.Generator().manual_seed(0))
    for shots in (1, 2, 16):
        chosen = sample_shots(labels, shots, seed=3)
        assert labels[chosen].bincount(minlength=7).tolist() == [shots] * 7
        assert len(chosen.unique()) == len(chosen)
        assert chosen.dtype == torch.int64
        assert labels[chosen].equal(labels[chosen].sort().values)  # class after class


def test_ragged_samples() -> None:
    labels = torch.tensor([5, 0, 5, 2, 5, 2, 5, 5])
    chosen = sample_shots(labels, 3)
    assert labels[chosen].tolist() == [0, 2, 2, 5, 5, 5]
    assert len(chosen.unique()) == 6
    assert sample_shots(labels, 100).sort().values.equal(torch.arange(8))


def test_samples_follow_the_seed() -> None:
    labels = torch.arange(10).repeat(30)
    before = torch.get_rng_state()
    draws = [sample_shots(labels, 5, seed=seed) for seed in (0, 0, *range(1, 200))]
    assert torch.get_rng_state().equal(before)
    assert draws[0].equal(draws[1])
    assert len({tuple(one.tolist()) for one in draws}) == 200
    assert torch.cat(draws).bincount(minlength=300).min() > 10  # each is drawn about 33 times


@pytest.mark.parametrize(
    "labels, shots",
    [
        (torch.tensor([]), 1),
        (torch.tensor([0, 1]), 0),
        (torch.tensor([0]), -1),
        ([0, 1], 2.0),
        ([0, 1], True),
    ],
)
def test_impossible_samples(labels: Any, shots: Any) -> None:
    with pytest.raises(ConfigError, match=f"at least one shot, not {len(labels)} and {shots}"):
        sample_shots(labels, shots)


def test_labels_with_rows_and_columns_are_refused() -> None:
    """One-hot labels gave row and column numbers mixed."""
    with pytest.raises(ConfigError, match=r"labels must be a row of .*, not of shape \(3, 3\)"):
        sample_shots(torch.eye(3).long(), 1)


@pytest.mark.parametrize("labels", [[0, None, 1], [0, "cat"], [[0], [1]], np.eye(3)])
def test_labels_that_cannot_be_put_in_order_are_refused(labels: Any) -> None:
    with pytest.raises(ConfigError, match="a row of integers or of names, one for each image"):
        sample_shots(labels, 1)


def test_shots_of_names_are_those_of_numbers() -> None:
    names = ["dog", "cat", "dog", "cat", "cat", "eel"]
    numbers = [1, 0, 1, 0, 0, 2]
    expected = sample_shots(torch.tensor(numbers), 2, seed=3)
    assert len(expected) == 5
    for labels in (names, numbers, np.array(names), np.array(numbers)):
        assert sample_shots(labels, 2, seed=3).equal(expected)


def test_samples_do_not_follow_torchs_default_dtype() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert sample_shots(["a", "b"], 1).dtype == torch.int64
    finally:
        torch.set_default_dtype(before)
