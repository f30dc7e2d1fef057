"""Read labels of images that can have several each."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.classify.labels import find_classes
from clipkit.errors import DataError

SeveralLabels: TypeAlias = Tensor | NDArray[np.bool_] | Sequence[Iterable[str]]


def has_several(labels: object) -> bool:
    """Return whether labels are a matrix, or a list of lists, not one label for each image."""
    if isinstance(labels, Tensor | np.ndarray):
        return cast(Any, labels).ndim == 2
    if not isinstance(labels, list | tuple) or not labels:
        return False
    first = cast("Sequence[Any]", labels)[0]
    return isinstance(first, list | tuple | set | frozenset)


def read_several(labels: object, class_names: Sequence[str]) -> Tensor:
    """Return which labels each image has, (N, C) bool on the CPU.

    Args:
        labels: a tensor or an array of booleans (N, C), or for each image a list of names, which
            may be empty. Names are found as `find_classes` finds them.
        class_names: C names.

    Raises:
        DataError: for numbers, for another shape, or for a name that no class has.

    Example:
        >>> read_several([["cat"], [], ["dog", "cat"]], ["cat", "dog"]).tolist()
        [[True, False], [False, False], [True, True]]
    """
    if isinstance(labels, Tensor | np.ndarray):
        return _read_matrix(cast(Any, labels), len(class_names))
    rows = [_read_row(row) for row in cast("Sequence[Any]", labels)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    places = find_classes(names, class_names)
    truth = torch.zeros(len(rows), len(class_names), dtype=torch.bool, device="cpu")
    for own, row in zip(truth, rows, strict=True):
        own[[places[name] for name in row]] = True
    return truth


def _read_matrix(matrix: Any, classes: int) -> Tensor:
    """Return a tensor or an array of booleans (N, C) as a tensor on the CPU."""
    if str(matrix.dtype) not in ("torch.bool", "bool"):
        raise DataError(
            f"labels of several classes at once must be booleans (N, {classes}), not "
            f"{matrix.dtype}: cast numbers by labels > 0, and pass names as a list of lists, one "
            "for each image"
        )
    if matrix.shape[1] != classes:
        raise DataError(
            f"labels must have a column for each of the {classes} classes, not shape "
            f"{tuple(matrix.shape)}"
        )
    if isinstance(matrix, Tensor):
        return matrix.detach().cpu()
    return torch.from_numpy(np.array(matrix))  # a copy, since some arrays cannot be shared


def _read_row(row: Any) -> list[str]:
    is_row = isinstance(row, list | tuple | set | frozenset)
    names = list(cast("Iterable[Any]", row)) if is_row else []
    if not is_row or not all(isinstance(name, str) for name in names):
        raise DataError(
            "each image needs a list of names of its classes, which may be empty, not "
            f"{row!r:.60}: or pass booleans (N, C)"
        )
    return names
