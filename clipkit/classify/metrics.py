"""Measure how good predictions are, and how well queries find what belongs to them.

Every function takes tensors, NumPy arrays or lists of numbers. A class is its index, 0 to C - 1, in
any integer dtype; `accuracy`, `mean_per_class` and `by_group` take names of classes too. Results
are Python floats from float64 sums, unless stated otherwise. Empty input, and input of a wrong
type, shape, dtype or class, raise `ConfigError`.

Example:
    >>> accuracy([0, 1, 1, 2], [0, 1, 2, 2])
    0.75
"""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from clipkit.classify.groups import by_group
from clipkit.classify.intervals import wilson_interval
from clipkit.classify.metric_inputs import (
    Classes,
    Numbers,
    as_tensor,
    check_count,
    number_names,
    read_classes,
    read_scores,
)
from clipkit.classify.precision import as_float64, restored
from clipkit.classify.retrieval import mean_average_precision, recall_at_k
from clipkit.classify.shifts import effective_robustness
from clipkit.errors import ConfigError

__all__ = [
    "Classes",
    "Numbers",
    "ReliabilityBin",
    "accuracy",
    "by_group",
    "confusion_matrix",
    "effective_robustness",
    "expected_calibration_error",
    "fit_temperature",
    "mean_average_precision",
    "mean_per_class",
    "most_confused",
    "recall_at_k",
    "reliability_bins",
    "top_k_accuracy",
    "wilson_interval",
]


def accuracy(predicted: Classes, labels: Classes) -> float:
    """Return the share of predictions that equal their labels, 0 to 1.

    Args:
        predicted, labels: (N,) classes, by their numbers or by their names.

    Example:
        >>> accuracy(["cat", "dog"], ["cat", "cat"])
        0.5
    """
    found, right, _ = number_names("accuracy", predicted, labels)
    found, right = read_classes("accuracy", found, right)
    return _share(found == right)


def top_k_accuracy(logits: Numbers, labels: Numbers, k: int = 1) -> float:
    """Return the share of rows in which the right class is among the k highest scores, 0 to 1.

    Args:
        logits: (N, C) scores of any kind. A class with the score of the right one, or NaN, comes
            before it; a right class that scores NaN is never a hit. So a constant output scores 0
            for every k below C.
        labels: (N,) right classes.
        k: 1 to C.

    Example:
        >>> logits = [[0.1, 0.9, 0.5], [0.8, 0.1, 0.3]]
        >>> top_k_accuracy(logits, [2, 0]), top_k_accuracy(logits, [2, 0], k=2)
        (0.5, 1.0)
    """
    logits, labels = read_scores("top_k_accuracy", logits, labels)
    check_count("top_k_accuracy", "k", k, most=logits.shape[1])
    own = logits.gather(1, labels[:, None])[:, 0]  # (N, C) -> (N, 1) -> (N,)
    return _share(_among_top(logits, own, k))


def mean_per_class(predicted: Classes, labels: Classes, classes: int | None = None) -> float:
    """Return the share of each class that was found (recall), averaged over the classes, 0 to 1.

    The CLIP paper reports it for Aircraft, Pets, Caltech-101 and Flowers (2103.00020, table 9).

    Args:
        predicted, labels: (N,) classes, by their numbers or by their names. A class that is only
            predicted has no recall, and is not counted.
        classes: C. If it is given, every class is checked against it.

    Example:
        >>> mean_per_class([0, 0, 0, 1], [0, 0, 1, 1])  # (1 + 1/2) / 2
        0.75
    """
    limit = math.inf if classes is None else classes
    found, right, _ = number_names("mean_per_class", predicted, labels)
    found, right = read_classes("mean_per_class", found, right, limit)
    # The place of each label among the classes that occur (N,), and the count of each class (P,).
    _, place, counts = cast(
        "tuple[Tensor, Tensor, Tensor]", right.unique(return_inverse=True, return_counts=True)
    )
    hits = place[found == right].bincount(minlength=len(counts))
    return (as_float64(hits) / as_float64(counts)).mean().item()


def confusion_matrix(predicted: Numbers, labels: Numbers, classes: int) -> Tensor:
    """Count how often each class was taken for each other.

    Args:
        predicted, labels: (N,) classes.
        classes: C, at least 1.

    Returns:
        (C, C) int64. Row i, column j says how often an image of class i was called j.

    Example:
        >>> confusion_matrix([0, 0, 1], [0, 1, 1], classes=2).tolist()
        [[1, 0], [1, 1]]
    """
    check_count("confusion_matrix", "classes", classes)
    predicted, labels = read_classes("confusion_matrix", predicted, labels, classes)
    cells = (labels * classes + predicted).bincount(minlength=classes**2)
    return cells.view(classes, classes)  # (C * C,) -> (C, C)


def most_confused(matrix: Numbers, k: int = 10) -> list[tuple[int, int, float]]:
    """Return the pairs of classes that are most often taken for one another.

    The ranking is that of the Skoltech report on CLIP.

    Args:
        matrix: (C, C) counts, rows are the labels, as from `confusion_matrix`.
        k: how many pairs at most, at least 1.

    Returns:
        (i, j, IoU) with i < j and IoU = (m_ij + m_ji) / (n_i + n_j), where n_i is the number of
        images of class i, the sum of row i. The highest comes first; of equals the lower i, then
        the lower j. Pairs that were never confused are left out.

    Raises:
        ConfigError: if the matrix is not square, or holds anything but counts.

    Example:
        >>> most_confused([[3, 1], [0, 4]])  # 1 / (4 + 4)
        [(0, 1, 0.125)]
    """
    counts = as_tensor("most_confused", matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or len(counts) == 0:
        raise ConfigError(
            f"most_confused needs a square matrix, not empty, not {tuple(counts.shape)}"
        )
    check_count("most_confused", "k", k)
    counts = as_float64(counts.detach())
    if (wrong := counts[~((counts >= 0) & counts.isfinite())]).numel():
        raise ConfigError(f"most_confused needs counts of at least 0, not {wrong[0].item():g}")
    images = counts.sum(dim=1)  # (C,)
    either_way = (counts + counts.T).triu(diagonal=1)  # (C, C)
    # In order of i, then of j. The stable sort keeps that order among equals.
    i, j = either_way.nonzero(as_tuple=True)
    overlap = either_way[i, j] / (images[i] + images[j])
    order = overlap.argsort(descending=True, stable=True)[:k]
    columns: list[list[Any]] = [column[order].tolist() for column in (i, j, overlap)]
    return list(zip(*columns, strict=True))


def expected_calibration_error(probabilities: Numbers, labels: Numbers, bins: int = 15) -> float:
    """Return the mean gap between how sure predictions are and how many are right, 0 to 1.

    0 is calibrated. The highest probability of each row falls into one of equal bins (l, r] of 0 to
    1. The gap between mean probability and accuracy of each bin is weighted with its share of rows
    (Guo et al., 1706.04599, equation 3).

    Args:
        probabilities: (N, C), each row at least 0 with the sum 1, to 0.01; logits and NaN raise
            `ConfigError`. Of classes with equal probability the first is predicted.
        labels: (N,) right classes.
        bins: at least 1.

    Example:
        >>> expected_calibration_error([[0.75, 0.25], [0.25, 0.75]], [0, 1])  # right more often
        0.25
    """
    counts, sums, hits = _binned("expected_calibration_error", probabilities, labels, bins)
    return ((hits - sums).abs().sum() / counts.sum()).item()


class ReliabilityBin(NamedTuple):
    """Hold what is said and what is right among the predictions of one range of probabilities.

    Attributes:
        low, high: the range, from above `low` to `high`.
        images: how many predictions fall into it.
        confidence: their mean probability.
        accuracy: the share of them that is right.

    Example:
        for one in reliability_bins(probabilities, labels):
            print(one.confidence, one.accuracy)
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def reliability_bins(
    probabilities: Numbers, labels: Numbers, bins: int = 15
) -> list[ReliabilityBin]:
    """Return for each range of probabilities how sure predictions are and how many are right.

    The mean gap between the two, weighted with the images, is `expected_calibration_error`.

    Args:
        probabilities, labels, bins: as there: (N, C) and (N,).

    Returns:
        The bins that hold an image, in rising order.

    Raises:
        ConfigError: as `expected_calibration_error`.

    Example:
        >>> (one,) = reliability_bins([[0.75, 0.25], [0.25, 0.75]], [0, 0], bins=2)
        >>> one.images, one.confidence, one.accuracy
        (2, 0.75, 0.5)
    """
    columns = _binned("reliability_bins", probabilities, labels, bins)
    counts, sums, hits = (cast("list[float]", column.tolist()) for column in columns)
    return [
        ReliabilityBin(i / bins, (i + 1) / bins, int(count), total / count, right / count)
        for i, (count, total, right) in enumerate(zip(counts, sums, hits, strict=True))
        if count
    ]


def _binned(
    name: str, probabilities: Numbers, labels: Numbers, bins: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each bin its images, the sum of their top probabilities, and how many are right.

    Each is (bins,) float64.
    """
    check_count(name, "bins", bins)
    probabilities, labels = read_scores(name, probabilities, labels)
    _check_probabilities(name, probabilities)
    confidence, predicted = probabilities.max(dim=1)
    # The edges have the dtype of the input: a float32 of 0.2 belongs to (0.0, 0.2], though it lies
    # above the float64 of 0.2.
    edges = torch.arange(1, bins, dtype=torch.float64, device="cpu") / bins  # (bins - 1,)
    place = torch.bucketize(confidence, restored(edges, confidence))  # edges[i - 1] < c <= edges[i]
    sure, right = as_float64(confidence), as_float64(predicted == labels)  # (N,)
    place = place.to(sure.device)
    return (
        as_float64(torch.bincount(place, minlength=bins)),
        torch.bincount(place, weights=sure, minlength=bins),
        torch.bincount(place, weights=right, minlength=bins),
    )


def fit_temperature(logits: Numbers, labels: Numbers) -> float:
    """Return the factor s with the lowest mean cross-entropy of s * logits, an inverse temperature.

    It multiplies as exp(logit_scale) does, and changes no prediction (temperature scaling: Guo et
    al., 1706.04599). The cross-entropy is convex in s. So Newton steps in float64 find where its
    slope is zero; where they would leave a bracket around that place, the bracket is halved, in
    logarithms. The result is exact to 1e-9 or better, relative.

    Args:
        logits: (N, C), finite.
        labels: (N,) right classes.

    Returns:
        s, 1e-4 to 1e4. An end stands for all beyond it: the upper one where no class ever scores
        above the right one, the lower one where the right class scores, on average, no higher than
        the mean of its row. 1.0 where all scores of each row are the same, as with a single class:
        no factor is better than another.

    Raises:
        ConfigError: if a logit is not finite, or labels do not fit.

    Example:
        >>> logits = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
        >>> round(fit_temperature(logits, [0, 0, 0, 1]), 4)  # so that 3 of 4 are right: log(3)
        1.0986
    """
    logits, labels = read_scores("fit_temperature", logits, labels)
    logits = as_float64(logits)
    if (wrong := logits[~logits.isfinite()]).numel():
        raise ConfigError(f"fit_temperature needs finite logits, not {wrong[0].item()}")
    own = logits.gather(1, labels.to(logits.device)[:, None])  # (N, 1)
    lead = logits - own  # (N, C); the loss of a row is logsumexp(s * lead)
    low, high = 1e-4, 1e4
    if not lead.any():
        return 1.0
    if _slopes(lead, low)[0] >= 0:
        return low
    if _slopes(lead, high)[0] <= 0:
        return high
    return _newton(lead, low, high)


def _slopes(lead: Tensor, scale: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean loss.

    They are the mean and variance of the lead (N, C) under softmax, averaged over the rows.
    """
    weight = (scale * lead).softmax(dim=1)
    mean = (weight * lead).sum(dim=1, keepdim=True)
    variance = (weight * (lead - mean).square()).sum(dim=1)
    return mean.mean().item(), variance.mean().item()


def _newton(lead: Tensor, low: float, high: float) -> float:
    """Return the factor between `low` and `high` at which the loss has no slope."""
    scale = 1.0
    # About ten steps do; 33 were the most in trials with scores of very different sizes.
    for _ in range(200):
        slope, curvature = _slopes(lead, scale)
        if slope < 0:
            low = scale
        else:
            high = scale
        step = slope / curvature if curvature > 0 else math.inf
        if abs(step) <= 1e-9 * scale:
            return scale - step
        inside = low < scale - step < high
        scale = scale - step if inside else math.sqrt(low * high)
    return scale


def _share(hits: Tensor) -> float:
    """Return the share of True in (N,)."""
    return as_float64(hits).mean().item()


def _among_top(scores: Tensor, own: Tensor, k: int) -> Tensor:
    """Return whether the own score of each row is among the k highest. Ties and NaN come first.

    Args:
        scores: (N, M).
        own: (N,), one of the scores of each row.
    """
    ahead = (~(scores < own[:, None])).sum(dim=1) - 1  # the own score is not ahead of itself
    return (ahead < k) & ~own.isnan()


def _check_probabilities(name: str, probabilities: Tensor) -> None:
    """Raise `ConfigError` unless each row (N, C) is at least 0 with the sum 1, to 0.01."""
    lowest = probabilities.amin(dim=1)  # (N,)
    sums = as_float64(probabilities).sum(dim=1)  # (N,)
    near_one = ((sums - 1).abs() <= 0.01).to(lowest.device)
    wrong = ~((lowest >= 0) & near_one)  # written so that NaN is wrong
    if wrong.any():
        total = sums[wrong.to(sums.device)][0].item()
        raise ConfigError(
            f"{name} needs probabilities, at least 0 with the sum 1, as from softmax, not a row "
            f"with the sum {total:g} and lowest {lowest[wrong][0].item():g}"
        )
