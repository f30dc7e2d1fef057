"""Test when a batch is left as it is: where it shows no groups, and where all are seen already."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import ImageClassifier
from clipkit.classify.adapt import is_worth_adapting_to
from tests.classify.test_adapt import unit_rows

CLASSES, IMAGES = 8, 20


def groups(spread: float) -> tuple[Tensor, Tensor]:
    """Return features (160, 64) around the centers of 8 classes, and their classes."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, 64, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES)
    noise = torch.randn(len(labels), 64, generator=generator)
    return F.normalize(centers[labels] + spread * noise, dim=1), labels


def guesses(labels: Tensor, right: float, sure: float) -> Tensor:
    """Return probabilities (N, C) that are as sure in each row, and right in a part of them."""
    generator = torch.Generator().manual_seed(1)
    other = torch.randint(1, CLASSES, (len(labels),), generator=generator)
    is_right = torch.rand(len(labels), generator=generator) < right
    likeliest = torch.where(is_right, labels, (labels + other) % CLASSES)
    rest = (1 - sure) / (CLASSES - 1)
    return F.one_hot(likeliest, CLASSES) * (sure - rest) + rest


def test_groups_that_are_partly_seen_are_worth_it() -> None:
    features, labels = groups(spread=0.3)
    assert is_worth_adapting_to(features, guesses(labels, right=0.7, sure=0.7))


def test_images_that_do_not_lie_by_class_are_not() -> None:
    features, labels = groups(spread=0.3)
    scattered = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(2))]
    assert not is_worth_adapting_to(scattered, guesses(labels, right=0.7, sure=0.7))


def test_a_start_that_is_unsure_asks_for_less() -> None:
    """Neighbors agree in 0.17 of cases, which one that is sure of itself should not take."""
    features, labels = groups(spread=0.3)
    assert is_worth_adapting_to(features, guesses(labels, right=0.35, sure=0.35))
    assert not is_worth_adapting_to(features, guesses(labels, right=0.35, sure=0.95))


def test_groups_that_are_seen_already_are_not() -> None:
    features, labels = groups(spread=0.3)
    assert not is_worth_adapting_to(features, guesses(labels, right=0.99, sure=0.9))


def test_one_image_is_no_group() -> None:
    assert not is_worth_adapting_to(torch.eye(4)[:1], torch.full((1, 3), 1 / 3))


def test_the_classifier_says_that_nothing_is_adapted(
    classifier: ImageClassifier, caplog: pytest.LogCaptureFixture
) -> None:
    features = unit_rows(1, classifier.head.width)
    same, predictions = classifier.adapt(features)
    assert "nothing is adapted" in caplog.text
    assert "adapted" not in same.provenance
    assert same is not classifier
    expected = classifier.probabilities(features)
    torch.testing.assert_close(same.probabilities(features), expected)
    torch.testing.assert_close(predictions[0].probabilities, expected[0])
    assert same.head.to_linear().scale == classifier.head.to_linear().scale


def test_a_calibration_is_kept_where_nothing_is_adapted(
    classifier: ImageClassifier, few: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """It was dropped in silence, so that predictions differed from the classifier's own."""
    classifier.calibrate(*few)
    features = unit_rows(1, classifier.head.width)
    same, predictions = classifier.adapt(features)
    assert same.calibration is classifier.calibration
    expected = classifier.probabilities(features)
    torch.testing.assert_close(same.probabilities(features), expected)
    torch.testing.assert_close(predictions[0].probabilities, expected[0])
    assert "calibration" not in caplog.text
    adapted, _ = classifier.adapt(unit_rows(20, classifier.head.width), guard=False)
    assert adapted.calibration is None
    assert "head was adapted, so the calibration is dropped" in caplog.text
    assert classifier.calibration is same.calibration
