"""Turn labels of every form into indices of classes, and check them before any work."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from difflib import get_close_matches
from numbers import Integral
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.errors import ClipkitError, DataError
from clipkit.plurals import number_of_classes
from clipkit.prompts import as_words

Labels: TypeAlias = Tensor | NDArray[Any] | Iterable[int] | Iterable[str]

_NEEDED = "labels must be a row of integers or of names, one for each image"
_SHOWN = 5  # names in a message


def read_labels(labels: object, *, error: type[ClipkitError] = DataError) -> Tensor | list[str]:
    """Return labels as integers (N,) int64 on the CPU, or as names.

    Args:
        labels: a tensor, an array, a column of a table, a list or any other row: N integers of any
            type, or N texts.
        error: what to raise.

    Raises:
        error: for rows and columns such as one-hot labels, for booleans, fractions, None, a mix of
            integers and names, a single text, and what has no order. The message says which.
    """
    if isinstance(labels, Tensor):
        return _check_tensor(labels, error)
    values = _values_of(labels, error)
    if values and all(isinstance(value, str) for value in values):
        return [str(value) for value in values]  # NumPy has a type of its own for texts
    integers: list[int] = []
    for place, value in enumerate(values):
        integer = _as_integer(value)
        if integer is None:
            raise error(f"{_NEEDED}, but {_describe(values, place)}")
        integers.append(integer)
    return torch.tensor(integers, dtype=torch.int64, device="cpu")


def class_indices(labels: object, class_names: Sequence[str]) -> Tensor:
    """Return labels as indices of classes (N,) int64 on the CPU.

    Args:
        labels: as in `read_labels`: indices, or names as `find_classes` takes them.
        class_names: C names.

    Raises:
        DataError: as `read_labels` and `find_classes`, or for an index beyond the classes.
    """
    found = read_labels(labels)
    if isinstance(found, Tensor):
        check_range(found, len(class_names))
        return found
    places = find_classes(list(dict.fromkeys(found)), class_names)
    return torch.tensor([places[name] for name in found], dtype=torch.int64, device="cpu")


def check_range(indices: Tensor, classes: int) -> None:
    """Raise `DataError` unless all indices (N,) are from 0 to classes - 1."""
    if len(indices) == 0:
        return
    lowest, highest = int(indices.min()), int(indices.max())
    if lowest < 0 or highest >= classes:
        raise DataError(
            f"labels must be integers from 0 to {classes - 1}, not from {lowest} to {highest}"
        )


def find_classes(names: Iterable[str], class_names: Sequence[str]) -> dict[str, int]:
    """Return the index among `class_names` of each name.

    "golden_retriever" and "golden retriever" are the same name, unless both are classes.

    Raises:
        DataError: if no class is called so, or several classes are. The message lists the names.

    Example:
        >>> find_classes(["red_car", "cat"], ["cat", "red car"])
        {'red_car': 1, 'cat': 0}
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(class_names):
        places.setdefault(as_words(name), []).append(place)
    exact = {name: place for place, name in enumerate(class_names)}
    found: dict[str, int] = {}
    unknown: list[str] = []
    for name in names:
        candidates = [exact[name]] if name in exact else places.get(as_words(name), [])
        if len(candidates) > 1:
            alike = [class_names[place] for place in candidates]
            raise DataError(f"{name!r} may be any of the classes {show(alike)}: spell it like one")
        if candidates:
            found[name] = candidates[0]
        else:
            unknown.append(name)
    if unknown:
        raise DataError(
            f"no class of this classifier is called {show(sorted(unknown))}; its classes are "
            f"{show(class_names)}{_nearest(unknown, class_names)}"
        )
    return found


def _nearest(unknown: Iterable[str], class_names: Sequence[str]) -> str:
    """Return the end of a message: the classes that are spelled most like unknown names, if any."""
    near = [
        one
        for name in sorted(unknown)[:_SHOWN]
        for one in get_close_matches(name, class_names, n=1)
    ]
    return f". Did you mean {show(list(dict.fromkeys(near)))}?" if near else ""


def show(names: Sequence[Any]) -> str:
    """Return labels for a message, names in quotes, with the number of those too many to show."""
    shown = ", ".join(f"{name!r:.60}" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


# Data sets that know names of their own


def translate(
    integers: Tensor, classes: Mapping[int, Sequence[str]], class_names: Sequence[str]
) -> Tensor:
    """Return a data set's integers (N,) as indices of a classifier's classes, found by name.

    Args:
        integers: as the data set gives them.
        classes: the data set's names of each integer.
        class_names: the classifier's.

    Raises:
        DataError: if an integer has no name, or the classifier has no class, or several, of that
            name. The message lists them.
    """
    if not classes:
        raise DataError("the joined data sets name their classes in different ways")
    occurring = cast("list[int]", integers.unique().tolist())
    if nameless := [integer for integer in occurring if integer not in classes]:
        raise DataError(
            f"the data set has names for {number_of_classes(len(classes))}, none for {nameless}"
        )
    places = match_classes({integer: classes[integer] for integer in occurring}, class_names)
    return torch.tensor(
        [places[integer] for integer in cast("list[int]", integers.tolist())],
        dtype=torch.int64,
        device="cpu",
    )


def match_classes(
    classes: Mapping[int, Sequence[str]], class_names: Sequence[str]
) -> dict[int, int]:
    """Return for each integer of a data set the index of the class that has one of its names.

    Raises:
        DataError: if the classifier has no class of that name, or one for two of the integers.
    """
    known = {as_words(name) for name in class_names}
    chosen = {
        integer: next((name for name in names if as_words(name) in known), None)
        for integer, names in classes.items()
    }
    unknown = [classes[integer][0] for integer, name in chosen.items() if name is None]
    if unknown:
        raise DataError(
            f"the data set has classes that the classifier has not: {show(unknown)}; its own are "
            f"{show(class_names)}. Pass labels, one for each image, to say what is meant"
        )
    found = find_classes([name for name in chosen.values() if name is not None], class_names)
    places = {integer: found[name] for integer, name in chosen.items() if name is not None}
    if len(set(places.values())) < len(places):
        raise DataError(
            "several classes of the data set are one class of the classifier: "
            f"{show([name for name in chosen.values() if name is not None])}"
        )
    return places


# Values


def _check_tensor(labels: Tensor, error: type[ClipkitError]) -> Tensor:
    _check_shape(labels.shape, error)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        _refuse_type(str(labels.dtype), len(labels), error)
    return labels.detach().cpu().long()


def _values_of(labels: object, error: type[ClipkitError]) -> list[Any]:
    """Return the single labels of anything but a tensor."""
    name_of_type = type(labels).__name__
    if isinstance(labels, np.ndarray):
        array = cast("NDArray[Any]", labels)
        _check_shape(array.shape, error)
        if array.dtype.kind in "bfc":
            _refuse_type(str(array.dtype), len(array), error)
        return array.tolist()
    if isinstance(labels, str | bytes):
        raise error(f"{_NEEDED}, not the single text {labels!r:.60}")
    if isinstance(labels, Mapping | AbstractSet) or hasattr(labels, "columns"):
        raise error(f"{_NEEDED}, not a {name_of_type}: pass a list in the order of the images")
    if not isinstance(labels, Iterable):
        raise error(f"{_NEEDED}, not {labels!r:.60}")
    return list(cast("Iterable[Any]", labels))


def _check_shape(shape: Sequence[int], error: type[ClipkitError]) -> None:
    if len(shape) != 1:
        raise error(
            f"{_NEEDED}, not of shape {tuple(shape)}: one-hot labels become integers by argmax(1)"
        )


def _refuse_type(dtype: str, count: int, error: type[ClipkitError]) -> None:
    if count:  # an empty list becomes floats
        raise error(f"{_NEEDED}, not {dtype}: cast them to int64 if that is what they mean")


def _as_integer(value: Any) -> int | None:
    """Return a whole number of any type as an int; None for anything else, True and 1.0 too."""
    if isinstance(value, Tensor):
        whole = value.ndim == 0 and not value.is_floating_point() and value.dtype != torch.bool
        return int(value) if whole and not value.is_complex() else None
    if isinstance(value, bool) or not isinstance(value, Integral):
        return None
    return int(value) if -(2**63) <= int(value) < 2**63 else None


def _describe(values: Sequence[Any], place: int) -> str:
    """Say which of the labels is no integer, and how the others differ if it is a name."""
    described = f"number {place} is {values[place]!r:.60}"
    if not isinstance(values[place], str):
        return described
    other = next(i for i, value in enumerate(values) if not isinstance(value, str))
    return f"{described} and number {other} is {values[other]!r:.60}"
