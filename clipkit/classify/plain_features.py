"""Classify rows of numbers of which nothing is known: no model, no class names, no unit length.

The head is the linear probe, the method of `fit_head` that needs no text: a logistic regression.
It is the same problem as scikit-learn's `LogisticRegression(C=...)`, with C chosen if not given.
"""

import warnings
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.classify.estimator_base import class_of_sklearn
from clipkit.classify.heads import CosineHead
from clipkit.classify.linear_probe import linear_probe
from clipkit.errors import DataError

Rows = NDArray[np.float64]
_RESHAPE = (
    "Reshape your data: array.reshape(1, -1) for one row, array.reshape(-1, 1) for one number"
)

_PLURALS = {"bool": "booleans", "int": "integers"}

_NEEDS_MODEL = "Images need a model: CLIPClassifier('tiny'), or another such as 'ViT-B/32'"


class _WrongTypeError(DataError, TypeError):
    """Report values that are no numbers. What converts numbers raises TypeError for them."""


@dataclass(frozen=True)
class PlainFit:
    """Hold a linear head in float64: logits = x weight^T + bias.

    Attributes:
        weight: (C, D).
        bias: (C,).
        strength: C of the logistic regression.
    """

    weight: Rows
    bias: Rows
    strength: float


def read_rows(given: object, caller: str, width: int | None = None) -> Rows:
    """Return rows of numbers (N, D) as finite float64, in memory of their own.

    Args:
        given: an array, a tensor, a table, or a list of lists.
        caller: the name of the estimator, for messages.
        width: D if it is known already.

    Raises:
        DataError: for any other shape, no rows or columns, complex, sparse or missing numbers, or
            another width.
    """
    rows = _as_numbers(given)
    if rows.ndim != 2:
        raise DataError(
            f"features must be rows of numbers (N, D), not of shape {rows.shape}. {_RESHAPE}. "
            f"{_NEEDS_MODEL}"
        )
    count, columns = rows.shape
    if count == 0:
        raise DataError(f"there are 0 sample(s) (shape={rows.shape}) while one is required")
    if columns == 0:
        raise DataError(f"0 feature(s) (shape={rows.shape}) while a minimum of 1 is required.")
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise DataError(
            f"features contain NaN or inf, first in row {row}: fill them, by "
            "sklearn.impute.SimpleImputer for instance"
        )
    if width is not None and columns != width:
        raise DataError(
            f"X has {columns} features, but {caller} is expecting {width} features as input"
        )
    return rows


def _as_numbers(given: Any) -> Rows:
    """Return anything that holds numbers as a float64 array of any shape."""
    if isinstance(given, Tensor):
        return np.array(given.detach().cpu().double().numpy())
    if hasattr(given, "toarray") and not isinstance(given, np.ndarray):
        raise _WrongTypeError(
            "sparse features are not supported: pass X.toarray() if they fit into memory"
        )
    try:
        array: NDArray[Any] = np.asarray(cast(Any, given))
    except ValueError as error:
        raise DataError(f"features must be rows of one length: {error}") from error
    if array.dtype.kind == "c":
        raise DataError("Complex data not supported: pass real and imaginary parts side by side")
    try:
        return np.array(array, dtype=np.float64)
    except TypeError as error:
        raise _WrongTypeError(f"features must be numbers: {error}. {_NEEDS_MODEL}") from error
    except ValueError as error:
        raise DataError(f"features must be numbers: {error}. {_NEEDS_MODEL}") from error


def read_classes(labels: object) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the classes that occur (C,), sorted, and each label's place among them (N,).

    Args:
        labels: N texts, integers, booleans or whole floats: a list, an array, a column of a table.

    Raises:
        DataError: if there are none, or they are no classes: missing values, fractions, a mix of
            types, several columns.
    """
    if labels is None:
        raise DataError("fit requires y to be passed, but the target y is None")
    if isinstance(labels, Tensor):
        labels = np.array(labels.detach().cpu().numpy())
    values = cast("Any", labels)
    array: NDArray[Any] = np.asarray(values)
    if array.dtype.kind == "U" and not isinstance(labels, np.ndarray):
        array = np.array(list(values), dtype=object)  # NumPy makes texts of numbers among them
    if array.ndim == 2 and array.shape[1] == 1:
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected: pass y.ravel()",
            class_of_sklearn("DataConversionWarning", UserWarning),
            stacklevel=4,  # at the call of `fit`
        )
        array = array.ravel()
    if array.ndim != 1:
        raise DataError(
            f"y must be one label for each row, not of shape {array.shape}: one-hot labels become "
            "integers by argmax(1)"
        )
    _check_labels(array)
    if array.dtype.kind == "O":
        array = array.astype(np.str_)
    classes, places = np.unique(array, return_inverse=True)
    return classes, places.astype(np.int64)


def _check_labels(array: NDArray[Any]) -> None:
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise DataError("y contains NaN or infinity: leave out rows without a label")
        if not (array == np.rint(array)).all():
            raise DataError(
                "Unknown label type: continuous. y must be classes: texts, integers or whole floats"
            )
    if array.dtype.kind in "OcSVmM":
        kinds = {type(value).__name__ for value in array}
        if not kinds <= {"str", "str_"}:
            kind = "bool" if kinds <= {"bool", "bool_"} else "int"
            raise DataError(
                f"Unknown label type: y holds {', '.join(sorted(kinds))}. Pass texts alone, or an "
                f"array of {_PLURALS[kind]}: y.astype({kind})"
            )


def check_count(rows: int, labels: int) -> None:
    """Raise `DataError` unless there is a label for each row."""
    if rows != labels:
        raise DataError(f"{rows} rows need as many labels, not {labels}")


def fit_rows(rows: Rows, places: NDArray[np.int64], strength: float | None, seed: int) -> PlainFit:
    """Fit a logistic regression: C times the summed cross-entropy plus half the squared weights.

    Rows are fitted around their mean and in units of their mean distance from it, which changes no
    solution, and lets C be looked for without knowing their scale.

    Args:
        rows: (N, D), any scale.
        places: (N,), the class of each row, from 0; every class occurs.
        strength: C. By default it is chosen, as `clipkit.classify.linear_probe` does.
        seed: of what is held out to choose it.

    Raises:
        DataError: if there is a single class.
    """
    classes = int(places.max()) + 1
    if classes < 2:
        raise DataError("y holds one class alone, so there is nothing to tell apart: add others")
    mean = rows.mean(axis=0)  # (D,)
    centered = rows - mean
    unit = float(np.sqrt(np.square(centered).sum(axis=1).mean()))
    unit = unit if 0 < unit < np.inf else 1.0
    scaled = torch.from_numpy(centered / unit)  # (N, D) float64
    start = CosineHead(
        torch.zeros(classes, rows.shape[1], device="cpu"), torch.tensor(0.0, device="cpu")
    )
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        head, chosen = linear_probe(
            scaled,
            torch.from_numpy(places),
            start,
            generator,
            C=None if strength is None else strength * unit**2,
        )
    state = head.state_dict()
    weight = state["weight"].double().numpy() / unit  # (C, D)
    bias = state["bias"].double().numpy() - weight @ mean  # (C,)
    return PlainFit(weight, bias, chosen["C"] / unit**2)
