"""Read what metrics take: tensors, arrays or lists become tensors, and bad ones are refused."""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipkit.errors import ConfigError

# (N,) classes, or rows of numbers (N, C).
Numbers = Tensor | npt.NDArray[Any] | Sequence[float] | Sequence[Sequence[float]]


def as_tensor(name: str, given: Numbers) -> Tensor:
    """Return a tensor, an array or a list as a tensor without gradient."""
    if isinstance(given, Tensor):
        return given.detach()
    try:
        array = np.array(given)  # a copy, since tensors cannot share what is read-only or reversed
        return torch.from_numpy(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{name} needs a tensor, an array or a list of numbers, not {given!r:.60}"
        ) from error


def is_number(value: object) -> bool:
    """Return whether `value` is a number of Python's or NumPy's, and no bool."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    """Return whether `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return cast("int", value) >= 1


def check_count(name: str, what: str, value: int, most: float = math.inf) -> None:
    """Raise `ConfigError` unless `value` is an integer of 1 to `most`."""
    if not is_count(value) or value > most:
        raise ConfigError(f"{name} needs {what} as an integer of 1 to {most}, not {value!r}")


def check_indices(name: str, what: str, indices: Tensor, count: float) -> None:
    """Raise `ConfigError` unless `indices` are integers of 0 to count - 1."""
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ConfigError(f"{name} needs {what} as integers, not {indices.dtype}")
    indices = indices.long()  # not all integer dtypes can be compared
    wrong = indices[(indices < 0) | (indices >= count)]
    if wrong.numel():
        raise ConfigError(f"{name} needs {what} of 0 to {count - 1}, not {wrong[0].item()}")


def read_classes(
    name: str, predicted: Numbers, labels: Numbers, classes: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Return predicted classes and labels, each (N,) int64, on the device of the former.

    They become int64, because products of small integers would overflow.
    """
    predicted, labels = as_tensor(name, predicted), as_tensor(name, labels)
    if predicted.ndim != 1 or predicted.shape != labels.shape or len(predicted) == 0:
        raise ConfigError(
            f"{name} needs two vectors of one length, not empty, not {tuple(predicted.shape)}, "
            f"{tuple(labels.shape)}"
        )
    check_indices(name, "classes", labels, classes)
    check_indices(name, "classes", predicted, classes)
    return predicted.long(), labels.to(predicted.device).long()


def read_scores(name: str, scores: Numbers, labels: Numbers) -> tuple[Tensor, Tensor]:
    """Return scores (N, C), and labels (N,) int64 on their device."""
    scores, labels = as_tensor(name, scores), as_tensor(name, labels)
    if scores.ndim != 2 or labels.ndim != 1 or len(scores) != len(labels) or scores.numel() == 0:
        raise ConfigError(
            f"{name} needs (N, C) and labels (N,), not empty, not {tuple(scores.shape)}, "
            f"{tuple(labels.shape)}"
        )
    check_indices(name, "classes", labels, scores.shape[1])
    return scores, labels.to(scores.device).long()
