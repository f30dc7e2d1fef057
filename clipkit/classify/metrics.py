"""How good predictions are.

A class is its index, 0 to C - 1, in any integer dtype. Results are Python floats from float64 sums, unless stated
otherwise. Empty input, and what does not fit by shape, dtype or class, raise `ConfigError`.
"""

import math

import torch
from torch import Tensor

from clipkit.errors import ConfigError


def _check_rows(name: str, given: Tensor, labels: Tensor, ndim: int) -> None:
    if not (isinstance(given, Tensor) and isinstance(labels, Tensor)):
        raise ConfigError(
            f"{name} needs tensors, not {type(given).__name__} and {type(labels).__name__}"
        )
    if given.ndim != ndim or labels.ndim != 1 or len(given) != len(labels) or given.numel() == 0:
        needed = "two vectors of one length" if ndim == 1 else "(N, C) and labels (N,)"
        raise ConfigError(
            f"{name} needs {needed}, not empty, not {tuple(given.shape)}, {tuple(labels.shape)}"
        )


def _check_count(name: str, what: str, value: int, most: float = math.inf) -> None:
    if not isinstance(value, int) or not 1 <= value <= most:
        raise ConfigError(f"{name} needs {what} as an integer of 1 to {most}, not {value!r}")


def _checked(
    name: str, given: Tensor, labels: Tensor, ndim: int, classes: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Scores (N, C) without gradient, or predicted classes (N,) below `classes`; and labels (N,) on the same device.

    Classes become int64, since products of small integers would overflow.
    """
    _check_rows(name, given, labels, ndim)
    given, labels, limit = (
        given.detach(),
        labels.to(given.device),
        given.shape[1] if ndim == 2 else classes,
    )
    for indices in (labels,) if ndim == 2 else (labels, given):
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise ConfigError(f"{name} needs classes as integers, not {indices.dtype}")
        indices = indices.long()
        if (wrong := indices[(indices < 0) | (indices >= limit)]).numel():
            raise ConfigError(f"{name} needs classes of 0 to {limit - 1}, not {wrong[0].item()}")
    return given if ndim == 2 else given.long(), labels.long()


def _among_top(scores: Tensor, own: Tensor, k: int) -> Tensor:
    """Whether the own score (N,), one of its row in scores (N, M), is among the k highest. Ties and NaN come first."""
    ahead = (~(scores < own[:, None])).sum(dim=1) - 1  # without itself
    return (ahead < k) & ~own.isnan()


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of predictions (N,) that equal their labels (N,), 0 to 1. Raises `ConfigError` for other shapes."""
    predicted, labels = _checked("accuracy", predicted, labels, 1)
    return (predicted == labels).double().mean().item()


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share of rows whose right class is among the k highest scores, 0 to 1.

    Args:
        logits: (N, C) scores of any kind. A class that scores as high as the right one, or NaN, comes before it; a
            right class that scores NaN is never a hit. So a constant output scores 0 for every k below C.
        labels: (N,) right classes.
        k: 1 to C; another one raises `ConfigError`.
    """
    logits, labels = _checked("top_k_accuracy", logits, labels, 2)
    _check_count("top_k_accuracy", "k", k, most=logits.shape[1])
    return _among_top(logits, logits.gather(1, labels[:, None])[:, 0], k).double().mean().item()


def mean_per_class(predicted: Tensor, labels: Tensor, classes: int | None = None) -> float:
    """Mean over the classes that occur in the labels of the share that was found (recall), 0 to 1.

    The CLIP paper reports it for Aircraft, Pets, Caltech-101 and Flowers (2103.00020, table 9).

    Args:
        predicted, labels: (N,) classes. One that is only predicted has no recall, and is not counted.
        classes: C, to have every class checked against it.
    """
    predicted, labels = _checked(
        "mean_per_class", predicted, labels, 1, math.inf if classes is None else classes
    )
    _, place, counts = labels.unique(return_inverse=True, return_counts=True)
    hits = place[predicted == labels].bincount(minlength=len(counts))
    return (hits.double() / counts).mean().item()


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts (C, C), int64: row i, column j says how often class i was called j. Takes classes (N,), (N,), and C."""
    _check_count("confusion_matrix", "classes", classes)
    predicted, labels = _checked("confusion_matrix", predicted, labels, 1, classes)
    return (
        (labels * classes + predicted).bincount(minlength=classes**2).view(classes, classes)
    )  # (C * C,) -> (C, C)


def most_confused(matrix: Tensor, k: int = 10) -> list[tuple[int, int, float]]:
    """The pairs of classes that are most often taken for one another, as the Skoltech report on CLIP ranks them.

    Args:
        matrix: (C, C) counts, rows are the labels, as from `confusion_matrix`. Raises `ConfigError` for negative ones.
        k: how many pairs at most, at least 1.

    Returns:
        (i, j, IoU) with i < j and IoU = (m_ij + m_ji) / (n_i + n_j), where n_i is the number of pictures of class i,
        the sum of row i. The highest comes first, of equals the lower i, then j. Pairs never confused are left out.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) == 0:
        raise ConfigError(
            f"most_confused needs a square matrix, not empty, not {tuple(matrix.shape)}"
        )
    _check_count("most_confused", "k", k)
    matrix = matrix.detach().double()
    if (wrong := matrix[~((matrix >= 0) & matrix.isfinite())]).numel():
        raise ConfigError(f"most_confused needs counts of at least 0, not {wrong[0].item():g}")
    pictures, both = matrix.sum(dim=1), (matrix + matrix.T).triu(diagonal=1)
    i, j = both.nonzero(
        as_tuple=True
    )  # in order of i, then j, which the stable sort keeps among equals
    iou = both[i, j] / (pictures[i] + pictures[j])
    order = iou.argsort(descending=True, stable=True)[:k]
    return list(zip(i[order].tolist(), j[order].tolist(), iou[order].tolist(), strict=True))


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean gap between how sure the predictions are and how many are right, 0 (calibrated) to 1.

    The highest probability of each row falls into one of equal bins (l, r] of 0 to 1; the gap between mean
    probability and accuracy of each bin is weighted with its share of rows (Guo et al., 1706.04599, equation 3).

    Args:
        probabilities: (N, C), each row at least 0 with the sum 1, to 0.01; logits or NaN raise `ConfigError`. Of
            classes with equal probability the first is predicted.
        labels: (N,) right classes.
        bins: at least 1.
    """
    name = "expected_calibration_error"
    _check_count(name, "bins", bins)
    probabilities, labels = _checked(name, probabilities, labels, 2)
    lowest, sums = probabilities.amin(dim=1), probabilities.sum(dim=1, dtype=torch.float64)
    wrong = ~((lowest >= 0) & ((sums - 1).abs() <= 0.01))  # so that NaN is wrong
    if wrong.any():
        found = (
            f"a row with the sum {sums[wrong][0].item():g} and lowest {lowest[wrong][0].item():g}"
        )
        raise ConfigError(
            f"{name} needs probabilities, at least 0 with the sum 1, as from softmax, not {found}"
        )
    sure, predicted = probabilities.max(dim=1)
    # In the dtype of the input: a float32 of 0.2 belongs to (0.0, 0.2], though it lies above the float64 of 0.2.
    edges = (torch.arange(1, bins, dtype=torch.float64) / bins).to(sure)
    place = torch.bucketize(sure, edges)  # edges[i - 1] < sure <= edges[i]
    gaps = torch.bincount(
        place, weights=(predicted == labels).double() - sure.double(), minlength=bins
    )
    return gaps.abs().sum().item() / len(labels)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The factor s that minimises the mean cross-entropy of s * logits, an inverse temperature.

    It multiplies as exp(logit_scale) does, and changes no prediction (temperature scaling: Guo et al., 1706.04599).
    The cross-entropy is convex in s: Newton steps in float64 find where its slope is zero, and halve a bracket, in
    logarithms, where they would leave it. Exact to 1e-9 or better, relative.

    Args:
        logits: (N, C), finite, or else `ConfigError` is raised.
        labels: (N,) right classes.

    Returns:
        s, 1e-4 to 1e4. An end stands for all beyond it: the upper one where no class ever scores above the right one,
        the lower one where the right class scores, on average, no higher than the mean of its row. 1.0 where
        all scores of each row are the same, as with a single class: no factor is better than another.
    """
    logits, labels = _checked("fit_temperature", logits.double(), labels, 2)
    if (wrong := logits[~logits.isfinite()]).numel():
        raise ConfigError(f"fit_temperature needs finite logits, not {wrong[0].item()}")
    lead = logits - logits.gather(
        1, labels[:, None]
    )  # (N, C); the loss of a row is logsumexp(s * lead)

    def slopes(scale: float) -> tuple[float, float]:
        """First and second derivative: mean and variance of the lead under softmax, averaged over the rows."""
        weight = (scale * lead).softmax(dim=1)
        mean = (weight * lead).sum(dim=1, keepdim=True)
        return mean.mean().item(), (weight * (lead - mean).square()).sum(dim=1).mean().item()

    low, high, scale = 1e-4, 1e4, 1.0
    if not lead.any():
        return 1.0
    if slopes(low)[0] >= 0:
        return low
    if slopes(high)[0] <= 0:
        return high
    for _ in range(
        200
    ):  # about ten do; 33 were the most in trials with scores of very different sizes
        slope, curvature = slopes(scale)
        low, high = (scale, high) if slope < 0 else (low, scale)
        step = slope / curvature if curvature > 0 else math.inf
        if abs(step) <= 1e-9 * scale:
            return scale - step
        scale = scale - step if low < scale - step < high else math.sqrt(low * high)
    return scale


def recall_at_k(queries: Tensor, keys: Tensor, k: int = 1) -> float:
    """Share of queries whose own key, the one of the same row, is among the k most similar ones.

    Args:
        queries, keys: (N, D) features, normalised. A key that is as similar as the own one counts before it.
        k: at least 1; more than N is as good as N. Another k or other shapes raise `ConfigError`.
    """
    if queries.ndim != 2 or queries.shape != keys.shape or len(queries) == 0 or k < 1:
        raise ConfigError(
            f"recall_at_k needs queries and keys of one shape (N, D) and k of at least 1, not {tuple(queries.shape)}, "
            f"{tuple(keys.shape)} and k={k}"
        )
    similarity = queries @ keys.T  # (N, N)
    return _among_top(similarity, similarity.diagonal(), k).double().mean().item()
