"""Test metrics of predicted classes against plain NumPy and scikit-learn."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from clipkit.classify.metrics import (
    accuracy,
    confusion_matrix,
    mean_per_class,
    most_confused,
    top_k_accuracy,
)

Array = npt.NDArray[Any]


def predictions(seed: int, count: int = 300, classes: int = 7) -> tuple[Array, Array]:
    """Return predicted classes and labels, half of them right.

    Class 2 is never a label, and class 4 is never predicted.
    """
    random = np.random.default_rng(seed)
    labels = random.choice([c for c in range(classes) if c != 2], count)
    guesses = random.choice([c for c in range(classes) if c != 4], count)
    return np.where((random.random(count) < 0.5) & (labels != 4), labels, guesses), labels


def is_hit(scores: list[float], label: int, k: int) -> bool:
    """Sort the scores with the right class last of its equals, and NaN first of all."""

    def place(c: int) -> tuple[bool, float, bool]:
        return not math.isnan(scores[c]), -scores[c], c == label

    order = sorted(range(len(scores)), key=place)
    return label in order[:k] and not math.isnan(scores[label])


def top_k_oracle(logits: Array, labels: Array, k: int) -> float:
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    return sum(is_hit(row, label, k) for row, label in rows) / len(labels)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k_against_numpy_with_ties_nan_and_infinities(k: int) -> None:
    random = np.random.default_rng(2)
    logits = random.choice([0, 1, 2, 0, 1, 2, np.inf, -np.inf, np.nan], (200, 5))
    labels = random.integers(0, 5, 200)
    for dtype in (torch.float64, torch.float32, torch.float16):
        result = top_k_accuracy(torch.tensor(logits, dtype=dtype), torch.tensor(labels), k)
        assert result == pytest.approx(top_k_oracle(logits, labels, k), abs=1e-12)


def test_top_k_against_sklearn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(3)
    logits, labels = random.normal(size=(150, 6)), random.integers(0, 6, 150)
    results = [
        top_k_accuracy(torch.tensor(logits), torch.tensor(labels, dtype=torch.uint8), k)
        for k in range(1, 6)
    ]
    expected = [
        metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(6)) for k in range(1, 6)
    ]
    assert results == pytest.approx(expected, abs=1e-12)
    assert results[0] == accuracy(torch.tensor(logits).argmax(1), torch.tensor(labels))


def test_top_k_known_answers() -> None:
    labels = torch.arange(3)
    assert isinstance(top_k_accuracy(torch.eye(3), labels), float)
    assert top_k_accuracy(torch.eye(3), labels) == 1
    collapsed = torch.zeros(3, 3)
    assert [top_k_accuracy(collapsed, labels, k) for k in (1, 2, 3)] == [0, 0, 1]
    assert top_k_accuracy(torch.full((3, 3), torch.nan), labels, 3) == 0
    single_class = torch.zeros(3, 1)
    assert top_k_accuracy(single_class, torch.zeros(3, dtype=torch.long)) == 1
    assert top_k_accuracy(torch.eye(3, requires_grad=True), labels) == 1


@pytest.mark.parametrize("classes", [None, 7, 50])
@pytest.mark.parametrize("seed", range(5))
def test_mean_per_class_against_numpy_and_sklearn(seed: int, classes: int | None) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    predicted, labels = predictions(seed)
    share = accuracy(torch.tensor(predicted), torch.tensor(labels))
    assert share == np.mean(predicted == labels)
    result = mean_per_class(torch.tensor(predicted), torch.tensor(labels), classes)
    present = np.unique(labels)
    assert len(present) == 6
    recalls = [np.mean(predicted[labels == c] == c) for c in present]
    assert result == pytest.approx(np.mean(recalls), abs=1e-12)
    theirs = metrics.recall_score(labels, predicted, labels=present, average="macro")
    assert result == pytest.approx(theirs)


@pytest.mark.parametrize("seed", range(5))
def test_mean_per_class_is_balanced_accuracy(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    predicted, labels = predictions(seed)
    # scikit-learn wants the same classes in both.
    labels[labels == 4] = 3
    predicted[predicted == 2] = 3
    result = mean_per_class(torch.tensor(predicted), torch.tensor(labels))
    assert result == pytest.approx(metrics.balanced_accuracy_score(labels, predicted), abs=1e-12)


def test_mean_per_class_weighs_classes_alike() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    assert mean_per_class(torch.zeros(8, dtype=torch.int32), labels) == 0.5
    assert mean_per_class(torch.tensor([5, 5]), torch.tensor([5, 5])) == 1  # a single class
    assert mean_per_class(torch.tensor([3]), torch.tensor([5])) == 0


def test_confusion_matrix_against_sklearn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    predicted, labels = predictions(6)
    for classes in (7, 9):
        result = confusion_matrix(torch.tensor(predicted), torch.tensor(labels), classes)
        assert result.dtype == torch.int64
        assert result.shape == (classes, classes)
        expected = metrics.confusion_matrix(labels, predicted, labels=range(classes))
        np.testing.assert_array_equal(result.numpy(), expected)
        assert (expected != expected.T).any()  # so a transpose would show


def test_confusion_matrix_of_small_integers() -> None:
    """200 x 200 + 200 does not fit the dtype of the labels."""
    labels = torch.arange(200, dtype=torch.uint8)
    mirrored = torch.eye(200, dtype=torch.int64).flip(1)
    assert confusion_matrix(labels.flip(0), labels, 200).equal(mirrored)
    short, long = torch.zeros(3, dtype=torch.uint16), torch.zeros(3, dtype=torch.int32)
    assert confusion_matrix(short, long, 1).tolist() == [[3]]


def most_confused_oracle(matrix: Array) -> list[tuple[int, int, float]]:
    pairs: list[tuple[int, int, float]] = []
    for i in range(len(matrix)):
        for j in range(i + 1, len(matrix)):
            wrong = matrix[i, j] + matrix[j, i]
            images = sum(matrix[i]) + sum(matrix[j])
            if wrong:
                pairs.append((i, j, float(wrong / images)))
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


@pytest.mark.parametrize("k", [1, 4, 10, 1000])
def test_most_confused_against_numpy_with_ties(k: int) -> None:
    random = np.random.default_rng(7)
    for high in (2, 3, 40):
        matrix = random.integers(0, high, (12, 12)) * random.integers(0, 2, (12, 12))
        matrix[5] = matrix[:, 5] = 0  # a class without images
        assert most_confused(torch.tensor(matrix), k) == most_confused_oracle(matrix)[:k]
        assert most_confused(torch.tensor(matrix).float(), k) == most_confused_oracle(matrix)[:k]


def test_most_confused_known_answers() -> None:
    """Of 10 images of class 0 three are called 1; of 5 of class 2 one is called 3."""
    matrix = torch.tensor([[7, 3, 0, 0], [0, 5, 0, 0], [0, 0, 4, 1], [0, 0, 0, 0]])
    assert most_confused(matrix) == [(0, 1, 3 / 15), (2, 3, 1 / 5)]  # equal: by index
    assert most_confused(matrix.T) == [(0, 1, 3 / 15), (2, 3, 1 / 5)]  # 3 / (7 + 8), 1 / (4 + 1)
    more = matrix + torch.diag(torch.tensor([0, 15, 0, 0]))  # 15 images more halve a share
    assert most_confused(more) == [(2, 3, 1 / 5), (0, 1, 3 / 30)]
    assert most_confused(torch.eye(3)) == []
    assert most_confused(torch.ones(1, 1)) == []
