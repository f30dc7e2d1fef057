"""A calibration: its temperature, scores and confidences beside NumPy, and what it refuses."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from clipkit.classify.calibration import (
    Calibration,
    calibrate_by_cross_validation,
    calibrate_labels,
    calibrate_several,
)
from clipkit.classify.cross_validation import CrossValidated
from clipkit.classify.metrics import expected_calibration_error
from clipkit.classify.presence import fit_presence
from clipkit.errors import ConfigError


def draw(count: int = 400, classes: int = 6, factor: float = 3.0) -> tuple[Tensor, Tensor]:
    """Return logits that are `factor` times too large for their labels, and the labels."""
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, classes, generator=random)
    labels = logits.softmax(dim=1).multinomial(1, generator=random)[:, 0]
    return factor * logits, labels


def test_the_temperature_has_the_lowest_loss() -> None:
    logits, labels = draw()
    found = calibrate_labels(logits, labels).temperature
    rows = logits.double().numpy()
    # Half a mistake is added: the mean of all sorted rows, with the second best for its label.
    typical = -np.sort(-rows, axis=1).mean(axis=0, keepdims=True)

    def loss(temperature: float) -> float:
        def losses(given: Any, own: Any) -> Any:
            scaled = given / temperature
            shift = scaled.max(axis=1)
            total = shift + np.log(np.exp(scaled - shift[:, None]).sum(axis=1))
            return total - scaled[np.arange(len(own)), own]

        return losses(rows, labels.numpy()).sum() + losses(typical, np.array([1])).sum() / 2

    best: Any = minimize_scalar(loss, bounds=(0.1, 30), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(best.x, rel=1e-5)
    assert found == pytest.approx(3, rel=0.15)


def test_probabilities_are_as_high_as_predictions_are_right() -> None:
    logits, labels = draw(3000)
    calibration = calibrate_labels(logits[:1500], labels[:1500])
    others, right = logits[1500:], labels[1500:]
    before = expected_calibration_error(others.softmax(dim=1), right)
    after = expected_calibration_error((others / calibration.temperature).softmax(dim=1), right)
    assert before > 0.1
    assert after < 0.035


def test_scores_and_confidences_are_those_of_the_images() -> None:
    logits, labels = draw(50)
    calibration = calibrate_labels(logits, labels, false_alarms=0.1)
    rows = logits.double().numpy() / calibration.temperature
    shares = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
    scores = np.sort(-np.log(shares[np.arange(50), labels.numpy()]))
    np.testing.assert_allclose(calibration.scores.numpy(), scores, rtol=1e-4, atol=1e-6)
    raw = logits.double().numpy()
    confidences = np.sort(raw.max(axis=1) - 0.75 * raw.mean(axis=1))
    np.testing.assert_allclose(calibration.confidences.numpy(), confidences, rtol=1e-5)
    assert calibration.images == 50
    assert calibration.quantile(0.9) == calibration.scores[45]
    assert calibration.threshold() == calibration.confidences[4]
    assert calibration.threshold(0.2) == calibration.confidences[9]
    assert calibration.source == "held-out images"
    assert not calibration.pessimistic


def test_another_rate_of_false_alarms_is_had_by_replacing_it() -> None:
    calibration = calibrate_labels(*draw(50))
    assert calibration.threshold() == calibration.confidences[1]
    changed = dataclasses.replace(calibration, false_alarms=0.2)
    assert changed.threshold() == calibration.confidences[9]


def test_a_classifier_without_mistakes_has_a_finite_temperature() -> None:
    labels = torch.arange(40) % 4
    logits = 8.0 * torch.nn.functional.one_hot(labels, 4)
    calibration = calibrate_labels(logits, labels)
    assert 0.5 < calibration.temperature < 5
    assert calibration.scores.isfinite().all()


def test_cross_validation_counts_what_was_held_out() -> None:
    logits, labels = draw(20)
    indices = torch.arange(0, 20, 2)
    found = CrossValidated(logits[indices], indices, folds=4, pessimistic=True)
    calibration = calibrate_by_cross_validation(found, labels)
    expected = calibrate_labels(logits[indices], labels[indices])
    assert calibration.scores.equal(expected.scores)
    assert calibration.temperature == expected.temperature
    assert calibration.source == "cross-validation"
    assert calibration.pessimistic
    assert not calibrate_by_cross_validation(
        dataclasses.replace(found, pessimistic=False), labels
    ).pessimistic


def test_several_labels_stand_beside_one_label() -> None:
    logits, labels = draw(50)
    truth = torch.nn.functional.one_hot(labels, 6).bool()
    alone = calibrate_several(logits, truth)
    assert alone.images == 0
    assert alone.temperature == 1
    assert alone.presence is not None
    assert alone.presence.thresholds.equal(fit_presence(logits, truth).thresholds)
    both = calibrate_several(logits, truth, calibrate_labels(logits, labels))
    assert both.images == 50
    assert both.temperature != 1
    assert both.presence is not None


@pytest.mark.parametrize("rate", [0, 1, 2, -0.05, math.nan])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="false_alarms must be a number between 0 and 1, not"):
        calibrate_labels(*draw(50), false_alarms=rate)


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is a single class"):
        calibrate_labels(torch.ones(5, 1), torch.zeros(5, dtype=torch.int64))


def test_it_says_what_it_comes_from() -> None:
    logits, labels = draw(50)
    shown = repr(calibrate_labels(logits, labels))
    assert shown.startswith("Calibration(50 held-out images; temperature 3.")
    by_folds = calibrate_labels(logits, labels, source="cross-validation")
    assert repr(by_folds).startswith("Calibration(50 images by cross-validation; temperature")
    truth = torch.zeros(50, 6, dtype=torch.bool)
    shown = repr(calibrate_several(logits, truth))
    assert shown == "Calibration(several labels from 50 images)"
    assert repr(Calibration()) == "Calibration()"
