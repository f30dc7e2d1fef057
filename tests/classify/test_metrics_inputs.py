"""Test what metrics take, and that they say what is wrong with anything else."""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch

from clipkit.classify.metrics import (
    accuracy,
    confusion_matrix,
    expected_calibration_error,
    fit_temperature,
    mean_average_precision,
    mean_per_class,
    most_confused,
    recall_at_k,
    top_k_accuracy,
)
from clipkit.errors import ConfigError

Metric = Callable[..., Any]
SCORED: list[Metric] = [top_k_accuracy, expected_calibration_error, fit_temperature]
COUNTED: list[Metric] = [mean_per_class, confusion_matrix]


@pytest.mark.parametrize("metric", SCORED)
@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((3,), [0, 1, 0], r"\(N, C\) and labels \(N,\), not empty, not \(3,\), \(3,\)"),
        ((3, 2), [0, 1], r"not \(3, 2\), \(2,\)"),
        ((3, 2), [[0], [1], [0]], r"not \(3, 2\), \(3, 1\)"),
        ((0, 2), [], r"not \(0, 2\), \(0,\)"),
        ((3, 0), [0, 0, 0], r"not \(3, 0\), \(3,\)"),
        ((3, 2), [0, 1, 2], "classes of 0 to 1, not 2"),
        ((3, 2), [0, -1, 1], "classes of 0 to 1, not -1"),
        ((3, 2), [0.0, 1.0, 1.0], r"classes as integers, not torch\.float32"),
        ((3, 2), [True, False, True], r"classes as integers, not torch\.bool"),
    ],
)
def test_refuses_scores_and_labels_that_do_not_fit(
    metric: Metric, shape: tuple[int, ...], labels: list[Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{metric.__name__} needs .*{message}$"):
        metric(torch.full(shape, 0.5), torch.tensor(labels))


@pytest.mark.parametrize("metric", [accuracy, *COUNTED])
@pytest.mark.parametrize(
    ("predicted", "labels", "message"),
    [
        ([0, 1, 0], [0, 1], r"needs two vectors of one length, not empty, not \(3,\), \(2,\)"),
        ([[0, 1]], [[0, 1]], r"not \(1, 2\), \(1, 2\)"),
        ([], [], r"not \(0,\), \(0,\)"),
    ],
)
def test_refuses_other_vectors(
    metric: Metric, predicted: list[Any], labels: list[Any], message: str
) -> None:
    classes = {"classes": 3} if metric in COUNTED else {}
    with pytest.raises(ConfigError, match=message):
        metric(torch.tensor(predicted), torch.tensor(labels), **classes)


@pytest.mark.parametrize("metric", COUNTED)
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([0, 3], "of 0 to 2, not 3"),
        ([0, -2], "of 0 to 2, not -2"),
        ([0.0, 1.0], r"as integers, not torch\.float32"),
        ([True, False], r"as integers, not torch\.bool"),
    ],
)
def test_refuses_what_is_no_class(
    metric: Metric, swap: bool, wrong: list[Any], message: str
) -> None:
    pair = torch.tensor(wrong), torch.tensor([0, 1])
    with pytest.raises(ConfigError, match=f"^{metric.__name__} needs classes {message}$"):
        metric(*reversed(pair) if swap else pair, classes=3)


def calibration(*row: float) -> float:
    return expected_calibration_error(torch.tensor([[0.5, 0.5], row]), torch.tensor([0, 1]))


ONE = torch.zeros(1, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_k_accuracy(torch.ones(1, 3), ONE, 0), "k as an integer of 1 to 3, not 0"),
        (lambda: top_k_accuracy(torch.ones(1, 3), ONE, 4), "k as an integer of 1 to 3, not 4"),
        (
            lambda: top_k_accuracy(torch.ones(1, 3), ONE, cast(Any, 1.5)),
            "integer of 1 to 3, not 1.5",
        ),
        (lambda: top_k_accuracy(torch.ones(1, 3), ONE, True), "integer of 1 to 3, not True"),
        (lambda: confusion_matrix(ONE, ONE, 0), "classes as an integer of 1 to inf, not 0"),
        (lambda: confusion_matrix(ONE, ONE, cast(Any, 2.0)), "as an integer of 1 to inf, not 2.0"),
        (lambda: mean_per_class(ONE, ONE, 0), "classes of 0 to -1, not 0"),
        (lambda: most_confused(torch.ones(2, 2), 0), "k as an integer of 1 to inf, not 0"),
        (lambda: most_confused(torch.ones(2, 3)), r"square matrix, not empty, not \(2, 3\)"),
        (lambda: most_confused(torch.ones(4)), r"square matrix, not empty, not \(4,\)"),
        (lambda: most_confused(torch.ones(0, 0)), r"square matrix, not empty, not \(0, 0\)"),
        (lambda: most_confused(torch.tensor([[1, 2], [-3, 4]])), "at least 0, not -3"),
        (lambda: most_confused(torch.tensor([[1, math.nan], [3, 4]])), "at least 0, not nan"),
        (lambda: most_confused(torch.tensor([[1, math.inf], [3, 4]])), "at least 0, not inf"),
        (
            lambda: expected_calibration_error(torch.ones(1, 1), ONE, 0),
            "bins as an integer of 1 to inf, not 0",
        ),
        (lambda: calibration(3, -2), "probabilities, .* not a row with the sum 1 and lowest -2"),
        (lambda: calibration(0.2, 0.3), "probabilities, .* sum 0.5 and lowest 0.2"),  # as cosines
        (lambda: calibration(0.9, 0.8), "probabilities, .* sum 1.7 and lowest 0.8"),
        (lambda: calibration(math.nan, 0.5), "probabilities, .* sum nan"),
        (lambda: calibration(math.inf, 0), "probabilities, .* sum inf"),
        (lambda: fit_temperature(torch.tensor([[0, math.nan]]), ONE), "finite logits, not nan"),
        (lambda: fit_temperature(torch.tensor([[0, -math.inf]]), ONE), "finite logits, not -inf"),
    ],
)
def test_refuses_other_values(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_accuracy_takes_classes_alone() -> None:
    with pytest.raises(ConfigError, match="accuracy needs classes as integers, not torch.float32"):
        accuracy(torch.ones(2), torch.ones(2, dtype=torch.long))


# Arrays and lists

PREDICTED, LABELS = [0, 1, 1, 2], [0, 1, 2, 2]
ROWS = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]
CASES: list[tuple[Metric, tuple[Any, ...]]] = [
    (accuracy, (PREDICTED, LABELS)),
    (mean_per_class, (PREDICTED, LABELS)),
    (top_k_accuracy, (ROWS, LABELS)),
    (expected_calibration_error, (ROWS, LABELS)),
    (fit_temperature, (ROWS, LABELS)),
    (recall_at_k, (ROWS, ROWS)),
    (mean_average_precision, (ROWS, ROWS)),
    (most_confused, ([[3, 1], [2, 4]],)),
]


def as_read_only(values: Any) -> Any:
    array = np.array(values)
    array.setflags(write=False)
    return array


def as_reversed_view(values: Any) -> Any:
    return np.array(values[::-1])[::-1]


def as_tuples(values: Any) -> Any:
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


@pytest.mark.parametrize("convert", [list, as_tuples, np.array, as_read_only, as_reversed_view])
@pytest.mark.parametrize(("metric", "arguments"), CASES)
def test_arrays_and_lists_are_taken(
    metric: Metric, arguments: tuple[Any, ...], convert: Callable[[Any], Any]
) -> None:
    expected = metric(*(torch.from_numpy(np.array(values)) for values in arguments))
    assert metric(*(convert(values) for values in arguments)) == expected


def test_a_confusion_matrix_of_lists() -> None:
    assert confusion_matrix(PREDICTED, np.array(LABELS), 3).tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 1, 1],
    ]


@pytest.mark.parametrize("wrong", [["cat", 0], [0, None], [[0], [1, 2]], {0, 1}, None, "01"])
@pytest.mark.parametrize(("metric", "arguments"), CASES)
def test_anything_else_is_refused(metric: Metric, arguments: tuple[Any, ...], wrong: Any) -> None:
    message = f"^{metric.__name__} needs a tensor, an array or a list of numbers, not "
    with pytest.raises(ConfigError, match=message):
        metric(wrong, *arguments[1:])


def test_arrays_are_left_alone() -> None:
    array = np.array(ROWS)
    before = array.copy()
    fit_temperature(array, np.array(LABELS))
    assert (array == before).all()


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("metric", "arguments"), CASES)
def test_metrics_do_not_follow_torchs_default_dtype(
    metric: Metric, arguments: tuple[Any, ...], default: torch.dtype
) -> None:
    tensors = [torch.tensor(values) for values in arguments]
    expected = metric(*tensors)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        assert metric(*tensors) == expected
    finally:
        torch.set_default_dtype(before)


def test_names_of_classes_count_as_classes() -> None:
    predicted, labels = ["cat", "dog", "dog", "cat"], ["cat", "dog", "cat", "cat"]
    assert accuracy(predicted, labels) == 0.75
    assert accuracy(np.array(predicted), labels) == 0.75
    assert mean_per_class(predicted, labels) == pytest.approx((2 / 3 + 1) / 2)
    with pytest.raises(ConfigError, match="accuracy needs classes of one kind, and predicted are"):
        accuracy(predicted, [0, 1, 1, 0])
    with pytest.raises(
        ConfigError, match=r"two vectors of one length, not empty, not \(4,\), \(3,"
    ):
        accuracy(predicted, labels[:3])
