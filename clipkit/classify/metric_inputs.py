"""Read what metrics take: tensors, arrays or lists become tensors, and bad ones are refused."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipkit.errors import ConfigError

# (N,) classes, or rows of numbers (N, C).
Numbers = Tensor | npt.NDArray[Any] | Sequence[float] | Sequence[Sequence[float]]

Classes = Numbers | Sequence[str]  # (N,) classes, by their numbers or by their names


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


def check_seed(name: str, seed: object) -> None:
    """Raise `ConfigError` unless a seed is one that NumPy takes."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"{name} needs a seed, an integer of at least 0, not {seed!r:.60}")


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


def number_names(
    name: str, predicted: Classes, labels: Classes, class_names: Sequence[str] | None = None
) -> tuple[Numbers, Numbers, list[str] | None]:
    """Return predicted classes and labels as numbers, and the names of these if they were names.

    Args:
        name: of the metric, for messages.
        predicted, labels: (N,) classes, both as numbers or both as names; with `class_names` also
            one as numbers and the other as names.
        class_names: C names in the order of the numbers; those that occur, sorted, if not given.

    Raises:
        ConfigError: for names beside numbers, or a name that is none of the classes.
    """
    given = {"predicted": predicted, "labels": labels}
    named = {what: found for what, value in given.items() if (found := _names_in(value))}
    if len(named) == 1 and class_names is None:
        raise ConfigError(
            f"{name} needs classes of one kind, and {next(iter(named))} are names where the others "
            "are numbers: pass names of both, or numbers of both"
        )
    if class_names is None and named:
        class_names = sorted({one for names in named.values() for one in names})
    places = {one: place for place, one in enumerate(class_names or ())}
    numbers: dict[str, Any] = dict(given)
    for what, names in named.items():
        if unknown := [one for one in names if one not in places]:
            raise ConfigError(f"{name}: {unknown[0]!r:.60} is none of the {len(places)} classes")
        numbers[what] = [places[one] for one in names]
    return numbers["predicted"], numbers["labels"], None if class_names is None else [*places]


def _names_in(given: object) -> list[str]:
    """Return classes that are given by their names, in an array, a column or a list; else none."""
    if isinstance(given, Tensor | str) or not isinstance(given, Iterable):
        return []
    values = list(cast("Iterable[object]", given))
    if not all(isinstance(value, str) for value in values):
        return []
    return [str(value) for value in values]  # NumPy has a type of its own for texts


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
