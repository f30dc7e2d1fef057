"""Test metrics of retrieval against plain NumPy, scikit-learn and CLIP_benchmark's definition."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify import retrieval
from clipkit.classify.metrics import mean_average_precision, recall_at_k
from clipkit.errors import ConfigError

Array = npt.NDArray[Any]


# Pairs


def recall_oracle(queries: Array, keys: Array, k: int) -> float:
    """Take one query after the other; all that is as similar as the own key comes before it."""
    hits = 0
    for i, query in enumerate(queries):
        similarity = [float(query @ key) for key in keys]
        rank = sum(value >= similarity[i] for j, value in enumerate(similarity) if j != i)
        hits += rank < k
    return hits / len(queries)


@pytest.mark.parametrize("k", [1, 2, 5, 40, 100])
def test_recall_against_numpy_with_many_ties(k: int) -> None:
    """Small integers make products exact, and every other similarity a tie."""
    random = np.random.default_rng(0)
    queries, keys = random.integers(-2, 3, (40, 4)), random.integers(-2, 3, (40, 4))
    for a, b in ((queries, keys), (keys, queries), (queries, queries)):
        result = recall_at_k(torch.tensor(a).float(), torch.tensor(b).float(), k)
        assert result == pytest.approx(recall_oracle(a, b, k), abs=1e-12)


def test_recall_of_random_features_against_numpy() -> None:
    random = np.random.default_rng(1)
    queries = random.normal(size=(60, 8))
    keys = queries + 1.5 * random.normal(size=(60, 8))
    ranks = (1, 2, 3, 5, 10, 20)
    expected = [recall_oracle(queries, keys, k) for k in ranks]
    found = [recall_at_k(torch.tensor(queries), torch.tensor(keys), k) for k in ranks]
    assert found == pytest.approx(expected)
    transposed = [recall_oracle(keys, queries, k) for k in ranks]
    assert expected != pytest.approx(transposed)  # so a transpose would show


def test_recall_of_known_answers() -> None:
    unit = torch.eye(4)
    assert isinstance(recall_at_k(unit, unit), float)
    assert recall_at_k(unit, unit) == 1
    assert recall_at_k(unit, unit.roll(1, 0)) == 0
    # Two keys are the same, so neither query finds its own.
    assert recall_at_k(unit[[0, 0, 2, 3]], unit[[0, 0, 2, 3]]) == 0.5
    # A collapsed model finds nothing.
    assert recall_at_k(torch.ones(4, 2), torch.ones(4, 2), 3) == 0


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
        ((3, 2), (3, 2), 1.5, "k=1.5"),
        ((3, 2), (3, 2), True, "k=True"),
        ((3, 2), (4, 2), 1, "say by query_labels or key_labels which keys are right"),
    ],
)
def test_recall_refuses_other_shapes(
    queries: tuple[int, ...], keys: tuple[int, ...], k: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        recall_at_k(torch.ones(queries), torch.ones(keys), k)


# Several right keys


@dataclass(frozen=True)
class Captioned:
    """Hold features of images (N, D) and captions (M, D), and the image of each caption (M,)."""

    images: Array
    captions: Array
    image_of_caption: Array


def captioned(seed: int, *, ties: bool, images: int = 23, captions: int = 90) -> Captioned:
    """Return captions near their images, some images with many of them and some with none.

    Small integers make similarities exact, so that many are equal.
    """
    random = np.random.default_rng(seed)
    owners = random.integers(0, images, captions)
    owners[owners == 4] = 5
    features = random.normal(size=(images, 6))
    texts = features[owners] + random.normal(size=(captions, 6))
    if ties:
        features, texts = features.round(), texts.round()
    return Captioned(features, texts, owners)


def best_rank(scores: Array, is_right: Array) -> float:
    """Return how many wrong keys are at least as similar as the best right one."""
    right, wrong = scores[is_right], scores[~is_right]
    return float((wrong >= right.max()).sum()) if len(right) else np.inf


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 3, 10, 22, 90, 1000])
def test_recall_of_several_captions_against_numpy(k: int, ties: bool) -> None:
    data = captioned(0, ties=ties)
    owners = data.image_of_caption
    scores = data.images @ data.captions.T  # (N, M)
    is_right = np.arange(len(scores))[:, None] == owners
    image_ranks = [best_rank(*row) for row in zip(scores, is_right, strict=True)]
    found = recall_at_k(data.images, data.captions, k, key_labels=owners)
    assert found == np.mean(np.array(image_ranks) < k)
    text_ranks = [best_rank(*row) for row in zip(scores.T, is_right.T, strict=True)]
    found = recall_at_k(data.captions, data.images, k, query_labels=owners)
    assert found == np.mean(np.array(text_ranks) < k)


def clip_benchmark_recalls(data: Captioned, k: int) -> tuple[float, float]:
    """Return image to text and text to image as CLIP_benchmark defines them.

    A query counts where any of its top k is positive; a query without positives never does.
    """
    scores = torch.tensor(data.captions @ data.images.T)
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), torch.tensor(data.image_of_caption)] = True
    results: list[float] = []
    for ours, theirs in ((scores.T, positive.T), (scores, positive)):
        among = theirs.gather(1, ours.topk(min(k, ours.shape[1]), dim=1).indices)
        results.append(among.any(dim=1).double().mean().item())
    return results[0], results[1]


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize("seed", range(20))
def test_recall_is_that_of_clip_benchmark(seed: int, k: int) -> None:
    data = captioned(seed, ties=False)
    owners = data.image_of_caption
    found = (
        recall_at_k(data.images, data.captions, k, key_labels=owners),
        recall_at_k(data.captions, data.images, k, query_labels=owners),
    )
    assert found == clip_benchmark_recalls(data, k)


@pytest.mark.parametrize("ties", [False, True])
def test_mean_average_precision_against_sklearn(ties: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    data = captioned(1, ties=ties)
    owners = data.image_of_caption
    scores = data.images @ data.captions.T  # (N, M)
    is_right = np.arange(len(scores))[:, None] == owners
    assert 0 < is_right.any(axis=1).sum() < len(scores)
    precisions = [
        metrics.average_precision_score(right, row) if right.any() else 0.0
        for right, row in zip(is_right, scores, strict=True)
    ]
    found = mean_average_precision(data.images, data.captions, key_labels=owners)
    assert found == pytest.approx(np.mean(precisions), abs=1e-12)
    precisions = [
        metrics.average_precision_score(right, row)
        for right, row in zip(is_right.T, scores.T, strict=True)
    ]
    found = mean_average_precision(data.captions, data.images, query_labels=owners)
    assert found == pytest.approx(np.mean(precisions), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_mean_average_precision_of_classes_against_sklearn(ties: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    data = captioned(2, ties=ties)
    random = np.random.default_rng(2)
    of_queries, of_keys = random.integers(0, 4, 23) * 1000, random.integers(0, 4, 90) * 1000
    precisions = [
        metrics.average_precision_score(of_keys == label, row)
        for label, row in zip(of_queries, data.images @ data.captions.T, strict=True)
    ]
    found = mean_average_precision(
        data.images, data.captions, query_labels=of_queries, key_labels=of_keys
    )
    assert found == pytest.approx(np.mean(precisions), abs=1e-12)


def test_average_precision_of_one_right_key_is_one_over_its_rank() -> None:
    random = np.random.default_rng(3)
    queries, keys = random.normal(size=(2, 30, 4))
    scores = queries @ keys.T
    ranks = (scores >= scores.diagonal()[:, None]).sum(axis=1)
    found = mean_average_precision(queries, keys)
    assert found == pytest.approx(np.mean(1 / ranks), abs=1e-12)


def test_retrieval_of_known_answers() -> None:
    images = torch.eye(2)
    captions = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    owners = torch.tensor([0, 0, 1, 0], dtype=torch.uint8)
    # The first image finds its captions at 1, 2 and 4; the second its own at 2.
    first, second = (1 + 1 + 3 / 4) / 3, 1 / 2
    found = mean_average_precision(images, captions, key_labels=owners)
    assert found == pytest.approx((first + second) / 2, abs=1e-12)
    assert recall_at_k(images, captions, 1, key_labels=owners) == 0.5
    assert recall_at_k(images, captions, 2, key_labels=owners) == 1
    # Caption 1 is nearer to the other image, and so is caption 2.
    assert recall_at_k(captions, images, 1, query_labels=owners) == 0.5
    assert mean_average_precision(captions, images, query_labels=owners) == 0.75


def test_equal_keys_are_found_together() -> None:
    """A collapsed model has the share of right keys as its average precision, and no recall."""
    labels = {"query_labels": [7], "key_labels": [7, 7, 7, 2]}
    assert mean_average_precision(torch.ones(1, 2), torch.ones(4, 2), **labels) == 0.75
    assert recall_at_k(torch.ones(1, 2), torch.ones(4, 2), 1, **labels) == 0
    assert recall_at_k(torch.ones(1, 2), torch.ones(4, 2), 2, **labels) == 1


def test_right_keys_that_are_nan_find_nothing_and_take_a_place() -> None:
    keys = torch.tensor([[torch.nan], [3], [2], [1]])
    one, labels = torch.ones(1, 1), [0, 1, 0, 1]
    recalls = [recall_at_k(one, keys, k, query_labels=[0], key_labels=labels) for k in (2, 3)]
    assert recalls == [0, 1]
    found = mean_average_precision(one, keys, query_labels=[0], key_labels=labels)
    assert found == pytest.approx((0 + 1 / 3) / 2)
    alone = mean_average_precision(one, keys, query_labels=[0], key_labels=[0, 1, 1, 1])
    assert alone == 0


@pytest.mark.parametrize("metric", [recall_at_k, mean_average_precision])
def test_a_query_without_a_right_key_scores_nothing(metric: Callable[..., float]) -> None:
    unit = torch.eye(4)
    assert metric(unit, unit[[0, 1, 1, 1]], key_labels=[0, 1, 1, 1]) == 0.5
    assert metric(unit, unit[:2], query_labels=[0, 1, 5, 6], key_labels=[0, 1]) == 0.5


# Features and tiles


@pytest.mark.parametrize("metric", [recall_at_k, mean_average_precision])
@pytest.mark.parametrize("tile", [1, 100, 1000])
def test_tiles_change_nothing(
    metric: Callable[..., float], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = captioned(4, ties=True)
    images, captions = torch.tensor(data.images), torch.tensor(data.captions)
    owners = torch.tensor(data.image_of_caption)
    whole = metric(images, captions, key_labels=owners)
    assert 0.1 < whole < 0.9
    monkeypatch.setattr(retrieval, "TILE", tile)
    assert metric(images, captions, key_labels=owners) == pytest.approx(whole, abs=1e-12)


def test_no_more_similarities_are_held_than_fit_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "TILE", 1000)
    sizes: list[int] = []
    find = retrieval._are_found

    def watched(scores: Tensor, is_right: Tensor, k: int) -> Tensor:
        sizes.append(scores.numel())
        return find(scores, is_right, k)

    monkeypatch.setattr(retrieval, "_are_found", watched)
    recall_at_k(torch.eye(90), torch.eye(90))
    assert max(sizes) == 990
    assert sum(sizes) == 90**2


# Prints the MiB that a metric of 40,000 queries adds at its peak. All similarities at once would be
# 458 MiB. A small tensor that is kept of each tile can lie where the next tile would.
MEASURE_MEMORY = """
import resource, sys, torch
from clipkit.classify import metrics
queries, keys = torch.randn(40000, 8), torch.randn(3000, 8)
metric = getattr(metrics, sys.argv[1])
metric(queries[:10], keys[:10])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
metric(queries, keys, key_labels=torch.arange(3000))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs")
@pytest.mark.parametrize(
    "metric", ["recall_at_k", pytest.param("mean_average_precision", marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_queries(metric: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", MEASURE_MEMORY, metric]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 110


@pytest.mark.parametrize("metric", [recall_at_k, mean_average_precision])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64])
def test_features_of_any_dtype_are_taken(metric: Callable[..., float], dtype: torch.dtype) -> None:
    data = captioned(5, ties=True)
    images, captions = torch.tensor(data.images), torch.tensor(data.captions)
    owners = torch.tensor(data.image_of_caption)
    expected = metric(images, captions, key_labels=owners)
    assert metric(images.to(dtype), captions, key_labels=owners.to(torch.int16)) == expected
    assert metric(images, captions.to(dtype), key_labels=owners.tolist()) == expected


# Bad input


@pytest.mark.parametrize("metric", [recall_at_k, mean_average_precision])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"key_labels": [0, 1, 2, 3, 0]}, "key_labels of 0 to 2, not 3"),
        ({"key_labels": [0, 1, 2, -1, 0]}, "key_labels of 0 to 2, not -1"),
        ({"key_labels": [0, 1, 2]}, r"key_labels of shape \(5,\), not \(3,\)"),
        ({"key_labels": [[0], [1], [2], [0], [1]]}, r"of shape \(5,\), not \(5, 1\)"),
        ({"key_labels": [0.0] * 5}, r"key_labels as integers, not torch\.float64"),
        ({"key_labels": [True] * 5}, r"key_labels as integers, not torch\.bool"),
        ({"key_labels": ["a"] * 5}, "a tensor, an array or a list of numbers, not .'a'"),
        ({"query_labels": [0, 1, 5]}, "query_labels of 0 to 4, not 5"),
        ({"query_labels": [0, 1]}, r"query_labels of shape \(3,\), not \(2,\)"),
        (
            {"query_labels": [0, 1, -5], "key_labels": [0] * 5},
            "query_labels of 0 to inf, not -5",
        ),
        (
            {"query_labels": [3, 1, 2], "key_labels": [9, 7, 8, 9, 9]},
            r"no label of the queries \(1 to 3\) is one of the keys \(7 to 9\)",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    metric: Callable[..., float], labels: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{metric.__name__} needs .*{message}"):
        metric(torch.ones(3, 2), torch.ones(5, 2), **labels)


@pytest.mark.parametrize("metric", [recall_at_k, mean_average_precision])
@pytest.mark.parametrize(
    ("queries", "keys", "message"),
    [
        (torch.ones(3, 2), torch.ones(3, 4), r"not \(3, 2\), \(3, 4\)"),
        (torch.ones(3, 2), torch.ones(3), r"not \(3, 2\), \(3,\)"),
        (torch.ones(3, 2), torch.ones(0, 2), r"not \(3, 2\), \(0, 2\)"),
        (torch.ones(0, 2), torch.ones(3, 2), r"not \(0, 2\), \(3, 2\)"),
        (torch.ones(3, 2), torch.ones(3, 2) * 1j, r"real numbers, not torch\.complex64"),
    ],
)
def test_features_that_do_not_fit_are_refused(
    metric: Callable[..., float], queries: Tensor, keys: Tensor, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{metric.__name__} needs .*{message}$"):
        metric(queries, keys, key_labels=[0, 0, 0])


def test_average_precision_of_what_is_no_pair_is_refused() -> None:
    message = r"one shape \(N, D\), not \(3, 2\), \(4, 2\); say by query_labels or key_labels"
    with pytest.raises(ConfigError, match=message):
        mean_average_precision(torch.ones(3, 2), torch.ones(4, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_features_are_compared_in_float32(dtype: torch.dtype) -> None:
    """Under autocast too: neighbors would become equal, and a tie counts as a miss."""
    random = torch.Generator().manual_seed(0)
    base = torch.randn(64, generator=random)
    rows = F.normalize(base + 0.05 * torch.randn(300, 64, generator=random), dim=1)
    whole = rows.to(dtype).float()
    for queries, keys in ((rows.to(dtype), rows.to(dtype)), (rows.to(dtype), whole)):
        assert recall_at_k(queries, keys) == recall_at_k(whole, whole) > 0.9
    with torch.autocast("cpu", torch.bfloat16):
        assert recall_at_k(whole, whole) > 0.9
        assert mean_average_precision(whole, whole) > 0.9
