"""clipkit.classify.metrics against plain NumPy, SciPy and scikit-learn."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from clipkit.classify.metrics import (
    accuracy,
    confusion_matrix,
    expected_calibration_error,
    fit_temperature,
    mean_per_class,
    most_confused,
    recall_at_k,
    top_k_accuracy,
)
from clipkit.errors import ConfigError


def oracle(queries: np.ndarray, keys: np.ndarray, k: int) -> float:
    """One query after the other; all that is as similar as the own key comes before it."""
    hits = 0
    for i, query in enumerate(queries):
        similarity = [float(query @ key) for key in keys]
        rank = sum(value >= similarity[i] for j, value in enumerate(similarity) if j != i)
        hits += rank < k
    return hits / len(queries)


@pytest.mark.parametrize("k", [1, 2, 5, 40, 100])
def test_against_numpy_with_many_ties(k: int) -> None:
    """Small integers, so that products are exact and every other similarity is shared."""
    random = np.random.default_rng(0)
    queries, keys = random.integers(-2, 3, (40, 4)), random.integers(-2, 3, (40, 4))
    for a, b in ((queries, keys), (keys, queries), (queries, queries)):
        result = recall_at_k(torch.tensor(a).float(), torch.tensor(b).float(), k)
        assert result == pytest.approx(oracle(a, b, k), abs=1e-12)


def test_random_features_against_numpy() -> None:
    random = np.random.default_rng(1)
    queries = random.normal(size=(60, 8))
    keys = queries + 1.5 * random.normal(size=(60, 8))
    ranks = (1, 2, 3, 5, 10, 20)
    expected = [oracle(queries, keys, k) for k in ranks]
    assert [
        recall_at_k(torch.tensor(queries), torch.tensor(keys), k) for k in ranks
    ] == pytest.approx(expected)
    assert expected != pytest.approx(
        [oracle(keys, queries, k) for k in ranks]
    )  # so a transpose would show


def test_known_answers() -> None:
    unit = torch.eye(4)
    assert recall_at_k(unit, unit) == 1 and isinstance(recall_at_k(unit, unit), float)
    assert recall_at_k(unit, unit.roll(1, 0)) == 0
    assert (
        recall_at_k(unit[[0, 0, 2, 3]], unit[[0, 0, 2, 3]]) == 0.5
    )  # two keys alike: neither query finds its own
    assert (
        recall_at_k(torch.ones(4, 2), torch.ones(4, 2), 3) == 0
    )  # a collapsed model finds nothing


@pytest.mark.parametrize("k", [3, 4, 9])
def test_nothing_is_found_among_nan(k: int) -> None:
    assert recall_at_k(torch.full((4, 2), torch.nan), torch.full((4, 2), torch.nan), k) == 0


@pytest.mark.parametrize(
    ("queries", "keys", "k", "message"),
    [
        ((3, 2), (4, 2), 1, r"not \(3, 2\), \(4, 2\) and k=1"),
        ((3,), (3,), 1, r"not \(3,\), \(3,\)"),
        ((0, 2), (0, 2), 1, r"not \(0, 2\)"),
        ((3, 2), (3, 2), 0, "k=0"),
    ],
)
def test_refuses_other_shapes(queries, keys, k: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recall_at_k(torch.ones(queries), torch.ones(keys), k)


def predictions(seed: int, count: int = 300, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes and labels, right in half of the cases; class 2 is never a label, class 4 never predicted."""
    random = np.random.default_rng(seed)
    labels = random.choice([c for c in range(classes) if c != 2], count)
    guesses = random.choice([c for c in range(classes) if c != 4], count)
    return np.where((random.random(count) < 0.5) & (labels != 4), labels, guesses), labels


def top_k_oracle(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Sort each row with the right class put last of its equals, and NaN put first of all."""
    hits = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda c: (not math.isnan(row[c]), -row[c], c == label))  # noqa: B023
        hits += label in order[:k] and not math.isnan(row[label])
    return hits / len(labels)


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
    assert top_k_accuracy(torch.eye(3), labels) == 1 and isinstance(
        top_k_accuracy(torch.eye(3), labels), float
    )
    assert [top_k_accuracy(torch.zeros(3, 3), labels, k) for k in (1, 2, 3)] == [
        0,
        0,
        1,
    ]  # a collapsed model
    assert top_k_accuracy(torch.full((3, 3), torch.nan), labels, 3) == 0
    assert (
        top_k_accuracy(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)) == 1
    )  # a single class
    assert top_k_accuracy(torch.eye(3, requires_grad=True), labels) == 1


@pytest.mark.parametrize("classes", [None, 7, 50])
def test_mean_per_class_against_numpy_and_sklearn(classes: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        predicted, labels = predictions(seed)
        assert accuracy(torch.tensor(predicted), torch.tensor(labels)) == np.mean(
            predicted == labels
        )
        result = mean_per_class(torch.tensor(predicted), torch.tensor(labels), classes)
        present = np.unique(labels)
        assert len(present) == 6
        assert result == pytest.approx(
            np.mean([np.mean(predicted[labels == c] == c) for c in present]), abs=1e-12
        )
        assert result == pytest.approx(
            metrics.recall_score(labels, predicted, labels=present, average="macro")
        )
        labels[labels == 4], predicted[predicted == 2] = (
            3,
            3,
        )  # the same classes in both, as scikit-learn wants them
        result = mean_per_class(torch.tensor(predicted), torch.tensor(labels), classes)
        assert result == pytest.approx(
            metrics.balanced_accuracy_score(labels, predicted), abs=1e-12
        )


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
        assert result.dtype == torch.int64 and result.shape == (classes, classes)
        expected = metrics.confusion_matrix(labels, predicted, labels=range(classes))
        np.testing.assert_array_equal(result.numpy(), expected)
        assert (expected != expected.T).any()  # so a transpose would show


def test_confusion_matrix_of_small_integers() -> None:
    """200 x 200 + 200 does not fit the labels' own dtype."""
    labels = torch.arange(200, dtype=torch.uint8)
    assert confusion_matrix(labels.flip(0), labels, 200).equal(
        torch.eye(200, dtype=torch.int64).flip(1)
    )
    assert confusion_matrix(
        torch.zeros(3, dtype=torch.uint16), torch.zeros(3, dtype=torch.int32), 1
    ).tolist() == [[3]]


def most_confused_oracle(matrix: np.ndarray) -> list[tuple[int, int, float]]:
    pairs = []
    for i in range(len(matrix)):
        for j in range(i + 1, len(matrix)):
            wrong, pictures = matrix[i, j] + matrix[j, i], sum(matrix[i]) + sum(matrix[j])
            if wrong:
                pairs.append((i, j, float(wrong / pictures)))
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


@pytest.mark.parametrize("k", [1, 4, 10, 1000])
def test_most_confused_against_numpy_with_ties(k: int) -> None:
    random = np.random.default_rng(7)
    for high in (2, 3, 40):
        matrix = random.integers(0, high, (12, 12)) * random.integers(0, 2, (12, 12))
        matrix[5] = matrix[:, 5] = 0  # a class without pictures
        assert most_confused(torch.tensor(matrix), k) == most_confused_oracle(matrix)[:k]
        assert most_confused(torch.tensor(matrix).float(), k) == most_confused_oracle(matrix)[:k]


def test_most_confused_known_answers() -> None:
    """Of 10 pictures of class 0 three are called 1, of 5 of class 2 one; ten of another class halve a share."""
    matrix = torch.tensor([[7, 3, 0, 0], [0, 5, 0, 0], [0, 0, 4, 1], [0, 0, 0, 0]])
    assert most_confused(matrix) == [(0, 1, 3 / 15), (2, 3, 1 / 5)]  # equal: by index
    assert most_confused(matrix.T) == [(0, 1, 3 / 15), (2, 3, 1 / 5)]  # 3 / (7 + 8), 1 / (4 + 1)
    assert most_confused(matrix + torch.diag(torch.tensor([0, 15, 0, 0]))) == [
        (2, 3, 1 / 5),
        (0, 1, 3 / 30),
    ]
    assert most_confused(torch.eye(3)) == [] and most_confused(torch.ones(1, 1)) == []


def calibration_oracle(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """One bin after the other; its edges in the dtype of the probabilities."""
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for b in range(bins):
        inside = (sure > probabilities.dtype.type(b / bins)) & (
            sure <= probabilities.dtype.type((b + 1) / bins)
        )
        if inside.any():
            total += inside.mean() * abs(
                right[inside].mean() - sure[inside].astype(np.float64).mean()
            )
    return total


@pytest.mark.parametrize("bins", [1, 2, 10, 15, 100])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_calibration_error_against_numpy(bins, dtype: torch.dtype) -> None:
    random = np.random.default_rng(8)
    for classes in (2, 5):
        probabilities = random.dirichlet(np.full(classes, 0.6), 300).astype(dtype)
        labels = random.integers(0, classes, 300)
        labels[::2] = probabilities[::2].argmax(axis=1)
        result = expected_calibration_error(torch.tensor(probabilities), torch.tensor(labels), bins)
        assert (
            result == pytest.approx(calibration_oracle(probabilities, labels, bins), abs=1e-9)
            and result > 0.01
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_calibration_error_on_the_edges_of_the_bins(dtype: torch.dtype) -> None:
    """Each top probability is an edge, and belongs to the bin below; each bin has one accuracy of its own."""
    tenths = torch.arange(5, 11).repeat_interleave(2)
    sure = (tenths.double() / 10).to(dtype)
    labels = torch.tensor([0, 1] * 6)  # half are right; of the even row class 0 comes first
    result = expected_calibration_error(torch.stack((sure, 1 - sure), dim=1), labels, bins=10)
    assert result == pytest.approx(np.mean([0, 0.1, 0.2, 0.3, 0.4, 0.5]), abs=1e-6)
    pair = torch.tensor(
        [[0.6, 0.4], [0.61, 0.39]], dtype=dtype
    )  # two bins, whose gaps do not cancel
    assert expected_calibration_error(pair, torch.tensor([0, 1]), bins=10) == pytest.approx(
        (0.4 + 0.61) / 2, abs=1e-6
    )
    pair = torch.tensor([[0.6, 0.4], [0.59, 0.41]], dtype=dtype)  # one bin, where they do
    assert expected_calibration_error(pair, torch.tensor([0, 1]), bins=10) == pytest.approx(
        0.19 / 2, abs=1e-6
    )


def test_calibration_error_known_answers() -> None:
    assert expected_calibration_error(torch.eye(3), torch.arange(3)) == 0
    assert expected_calibration_error(torch.eye(3), torch.tensor([1, 2, 0])) == 1
    assert (
        expected_calibration_error(torch.ones(4, 1), torch.zeros(4, dtype=torch.long)) == 0
    )  # a single class
    assert (
        expected_calibration_error(torch.full((4, 4), 0.25), torch.arange(4)) == 0
    )  # the first of equals
    half = (
        torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)).bfloat16().softmax(dim=1)
    )
    assert (
        0 <= expected_calibration_error(half, torch.arange(50)) <= 1
    )  # rounded sums of 1 are accepted


def scores(seed: int, count: int = 120, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Random logits, and labels that they favour but not always."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, classes))
    return logits, (logits + random.normal(size=logits.shape)).argmax(axis=1)


def curves(logits: np.ndarray, labels: np.ndarray):
    """The mean cross-entropy and its slope, as functions of the logarithm of the factor."""
    special = pytest.importorskip("scipy.special")
    lead = logits - logits[np.arange(len(labels)), labels][:, None]
    loss = lambda x: np.mean(special.logsumexp(np.exp(x) * lead, axis=1))  # noqa: E731
    slope = lambda x: np.mean((special.softmax(np.exp(x) * lead, axis=1) * lead).sum(axis=1))  # noqa: E731
    return loss, slope


ENDS = math.log(1e-4), math.log(1e4)


@pytest.mark.parametrize("size", [0.003, 0.2, 1, 30, 3000])
def test_temperature_against_scipy(size: Any) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(3):
        logits, labels = scores(seed)
        loss, slope = curves(size * logits, labels)
        result = fit_temperature(torch.tensor(size * logits), torch.tensor(labels))
        smallest = optimize.minimize_scalar(
            loss, bounds=ENDS, method="bounded", options={"xatol": 1e-10}
        )
        assert isinstance(result, float) and 1e-4 < result < 1e4
        assert result == pytest.approx(math.exp(smallest.x), rel=1e-6)
        assert result == pytest.approx(
            math.exp(optimize.brentq(slope, *ENDS, xtol=1e-14)), rel=1e-10
        )


def test_temperature_of_rows_of_very_different_sizes() -> None:
    """Some rows saturate long before others matter, so that Newton steps alone would leave the range."""
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(30):
        random = np.random.default_rng(seed)
        logits = random.normal(size=(20, 4)) * 10.0 ** random.uniform(-3, 4, (20, 1))
        labels = logits.argmax(axis=1)
        labels[0] = logits[0].argmin()
        logits[0] *= 1e-3 / np.abs(logits[0]).max()
        slope = curves(logits, labels)[1]
        expected = (
            1e4 if slope(ENDS[1]) <= 0 else math.exp(optimize.brentq(slope, *ENDS, xtol=1e-14))
        )
        assert fit_temperature(torch.tensor(logits), torch.tensor(labels)) == pytest.approx(
            expected, rel=1e-9
        )


def test_temperature_undoes_a_factor() -> None:
    logits, labels = (torch.tensor(x) for x in scores(9))
    best = fit_temperature(logits, labels)
    assert fit_temperature(logits * best, labels) == pytest.approx(1, rel=1e-9)
    assert fit_temperature(logits + torch.arange(120)[:, None], labels) == pytest.approx(
        best, rel=1e-9
    )
    assert fit_temperature(logits.float().requires_grad_(), labels.int()) == pytest.approx(
        best, rel=1e-6
    )
    # Two scores, right in three of four rows: sigmoid(s) = 3 / 4.
    two = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    assert fit_temperature(two, torch.tensor([0, 0, 1, 0])) == pytest.approx(math.log(3), rel=1e-12)


def test_temperature_at_its_ends() -> None:
    labels = torch.arange(4)
    assert fit_temperature(torch.eye(4), labels) == 1e4  # always right
    assert fit_temperature(torch.eye(4) * 1e6, labels) == 1e4
    assert fit_temperature(-torch.eye(4), labels) == 1e-4  # always wrong
    assert fit_temperature(torch.eye(4).roll(1, 0), labels) == 1e-4
    assert fit_temperature(torch.eye(4).roll(1, 0) * 1e6, labels) == 1e-4
    for constant in (torch.zeros(4, 4), torch.arange(4.0)[:, None].expand(4, 4)):
        assert fit_temperature(constant, labels) == 1
    assert (
        fit_temperature(torch.rand(4, 1), torch.zeros(4, dtype=torch.long)) == 1
    )  # a single class


SCORED = [top_k_accuracy, expected_calibration_error, fit_temperature]
COUNTED = [mean_per_class, confusion_matrix]


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
    metric, shape: Any, labels: Any, message: str
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
def test_refuses_other_vectors(metric, predicted, labels: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        metric(torch.tensor(predicted), torch.tensor(labels), *[3] * (metric in COUNTED))


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
def test_refuses_what_is_no_class(metric, swap, wrong: Any, message: str) -> None:
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
        (lambda: top_k_accuracy(torch.ones(1, 3), ONE, 1.5), "k as an integer of 1 to 3, not 1.5"),
        (lambda: confusion_matrix(ONE, ONE, 0), "classes as an integer of 1 to inf, not 0"),
        (lambda: confusion_matrix(ONE, ONE, 2.0), "classes as an integer of 1 to inf, not 2.0"),
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
def test_refuses_other_values(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_accuracy_takes_classes_alone() -> None:
    with pytest.raises(ConfigError, match="accuracy needs classes as integers, not torch.float32"):
        accuracy(torch.ones(2), torch.ones(2, dtype=torch.long))


@pytest.mark.parametrize("measure", [accuracy, top_k_accuracy, mean_per_class])
def test_lists_are_no_tensors(measure) -> None:
    with pytest.raises(
        ConfigError, match=rf"{measure.__name__} needs tensors, not list and Tensor"
    ):
        measure([0, 1], torch.tensor([0, 1]))
