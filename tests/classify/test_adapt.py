"""StatA against its paper's equations in NumPy, image by image, and on designed batches."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from clipkit import ImageClassifier
from clipkit.classify.adapt import adapt_to
from clipkit.classify.heads import CosineHead
from clipkit.errors import ConfigError, DataError
from tests.helpers.support_sets import CLASSES, ZERO_SHOT, draw
from tests.helpers.toy_classifier import NAMES

Array = npt.NDArray[np.float64]


def softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def neighbors_of(x: Array) -> Array:
    """Return the matrix of cosines with the three nearest others, zero elsewhere, (N, N)."""
    cosines = x @ x.T
    graph = np.zeros_like(cosines)
    for row, values in enumerate(cosines):
        others = [i for i in np.argsort(-values, kind="stable") if i != row][:3]
        graph[row, others] = values[others]
    return graph


def stat_a(x: Array, start: Array, texts: Array, anchor: float) -> tuple[Array, Array, Array]:
    """Return assignments, means and variances by 2501.03729, with loops over classes."""
    classes = len(texts)
    spread = sum(
        start[i, c] * (x[i] - texts[c]) ** 2 for i in range(len(x)) for c in range(classes)
    ) / len(x)
    means, variances = texts.copy(), np.tile(spread, (classes, 1))
    graph, assigned = neighbors_of(x), start
    for iteration in range(11):
        density = np.stack(
            [
                -((x - means[c]) ** 2 / variances[c]).sum(axis=1) / 2
                - np.log(variances[c]).sum() / 2
                for c in range(classes)
            ],
            axis=1,
        )
        for _ in range(5):
            votes = 50 / 6 * (graph @ assigned + graph.T @ assigned)
            assigned = softmax(np.log(start) + (density + votes) / 50)
        if iteration == 10:
            return assigned, means, variances
        counts = np.bincount(assigned.argmax(axis=1), minlength=classes)
        for c in range(classes):
            share = counts[c] / (anchor + counts[c])
            own = assigned[:, c] / assigned[:, c].sum()
            mean = own @ x
            mixed = share * mean / np.linalg.norm(mean) + (1 - share) * texts[c]
            means[c] = mixed / np.linalg.norm(mixed)
            found = own @ (x - means[c]) ** 2
            held = spread + (texts[c] - means[c]) ** 2
            variances[c] = share * found + (1 - share) * held
    raise AssertionError


@pytest.mark.parametrize("anchor", [1.0, 0.1, 20.0])
@pytest.mark.parametrize("counts", [(5,) * 6, (12, 0, 3, 1, 0, 0)])
def test_stat_a_against_numpy(counts: tuple[int, ...], anchor: float) -> None:
    features, _ = draw(*counts, noise=1.5)
    texts = ZERO_SHOT.weight.detach()
    start = ZERO_SHOT(features).double().softmax(dim=1).detach()
    found = adapt_to(features, start, texts, anchor=anchor)
    expected = stat_a(
        features.double().numpy(), start.double().numpy(), texts.double().numpy(), anchor
    )
    for tensor, array in zip(
        (found.probabilities, found.means, found.variances), expected, strict=True
    ):
        np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-4, atol=1e-9)


def test_a_batch_helps_where_texts_are_poor() -> None:
    """Texts are off, images of a class lie close together: neighbors and means set it right."""
    random = torch.Generator().manual_seed(9)
    centers = F.normalize(torch.randn(CLASSES, 256, generator=random))
    labels = torch.arange(CLASSES).repeat(40)
    noise = F.normalize(torch.randn(len(labels), 256, generator=random))
    features = F.normalize(centers[labels] + noise)
    texts = F.normalize(centers + 8 * F.normalize(torch.randn(CLASSES, 256, generator=random)))
    head = CosineHead(texts, torch.tensor(3.0))
    start = head(features).softmax(dim=1).detach()
    found = adapt_to(features, start, texts).probabilities
    before = (start.argmax(dim=1) == labels).float().mean()
    after = (found.argmax(dim=1) == labels).float().mean()
    assert before < 0.9
    assert after > before + 0.05


def test_classes_that_do_not_occur_keep_their_texts() -> None:
    features, _ = draw(40, 40, 0, 0, 0, 0, noise=0.5)
    start = ZERO_SHOT(features).softmax(dim=1).detach()
    batch = adapt_to(features, start, ZERO_SHOT.weight.detach())
    assigned = batch.probabilities.argmax(dim=1)
    nobody = [label for label in range(CLASSES) if label not in assigned]
    assert (assigned < 2).float().mean() > 0.95
    assert len(nobody) > 2
    expected = ZERO_SHOT.weight.detach()[nobody]
    torch.testing.assert_close(batch.means[nobody].float(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_images_are_a_batch_too(count: int) -> None:
    features, _ = draw(count, 0, 0, 0, 0, 0)
    start = ZERO_SHOT(features).softmax(dim=1).detach()
    batch = adapt_to(features, start, ZERO_SHOT.weight.detach())
    assert batch.probabilities.isfinite().all()
    torch.testing.assert_close(batch.probabilities.sum(dim=1).float(), torch.ones(count))


# The classifier


def unit_rows(count: int, width: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(3)))


def test_a_new_classifier_comes_out_and_this_one_stays(
    classifier: ImageClassifier, tmp_path: Path
) -> None:
    features = unit_rows(20, classifier.head.width)
    before = classifier.probabilities(features)
    adapted, predictions = classifier.adapt(features, guard=False)
    assert torch.equal(classifier.probabilities(features), before)
    assert [prediction.path for prediction in predictions] == [None] * 20
    assert predictions[0].labels == NAMES
    after = adapted.probabilities(features)
    assert not torch.equal(after, before)
    assert adapted.provenance["adapted"] == {"images": 20, "anchor": 1.0}
    assert "adapted" not in classifier.provenance
    adapted.save(tmp_path / "adapted")
    loaded = ImageClassifier.load(tmp_path / "adapted", device="cpu")
    assert torch.equal(loaded.probabilities(features), after)


def test_predictions_are_those_of_the_paper(classifier: ImageClassifier) -> None:
    features = unit_rows(20, classifier.head.width)
    start = classifier.probabilities(features)
    _, predictions = classifier.adapt(features, anchor=2.5, guard=False)
    texts = classifier.zero_shot_head.weight.detach()
    expected = adapt_to(features, start, texts, anchor=2.5).probabilities.float()
    for prediction, row in zip(predictions, expected, strict=True):
        torch.testing.assert_close(prediction.probabilities, row, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("anchor", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_impossible_anchors_are_refused(classifier: ImageClassifier, anchor: Any) -> None:
    with pytest.raises(ConfigError, match="anchor must be a number above 0, not "):
        classifier.adapt(unit_rows(3, classifier.head.width), anchor=anchor)


def test_no_images_are_refused(classifier: ImageClassifier) -> None:
    with pytest.raises(DataError, match="no image"):
        classifier.adapt(unit_rows(0, classifier.head.width))


def test_heads_that_are_not_linear_are_refused(classifier: ImageClassifier) -> None:
    features = unit_rows(12, classifier.head.width)
    adapted, _ = classifier.adapt(features, guard=False)
    with pytest.raises(ConfigError, match="AdaptedHead is not linear"):
        adapted.adapt(features)
    classifier.fit(features, [index % len(NAMES) for index in range(12)], "cache")
    with pytest.raises(ConfigError, match="CacheHead is not linear"):
        classifier.adapt(features, guard=False)


def test_an_adapted_classifier_says_so(classifier: ImageClassifier) -> None:
    adapted, _ = classifier.adapt(
        unit_rows(20, classifier.head.width), anchor=float(2), guard=False
    )
    assert "zero shot, adapted" in repr(adapted)
    with pytest.raises(ConfigError, match="adapted to a batch has logits of a scale of its own"):
        adapted.add_classes(["purple"])
