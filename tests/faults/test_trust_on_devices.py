"""Test that torch's default device does not reach what says how far to trust (kind J)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipkit import CLIP, ImageClassifier
from clipkit.classify.calibration import Calibration
from clipkit.classify.cross_validation import cross_validated
from clipkit.cli import main
from tests.faults.test_torch_default_device import default_device
from tests.helpers.held_out import held_out
from tests.helpers.support_sets import ZERO_SHOT, draw
from tests.helpers.toy_classifier import NAMES, toy_features
from tests.helpers.toy_data import color_folders


def numbers_of(calibration: Calibration | None) -> dict[str, Any]:
    """Return what a calibration holds, tensors as lists."""
    assert calibration is not None
    return {
        name: value.tolist() if isinstance(value, Tensor) else str(value)
        for name, value in vars(calibration).items()
        if name != "presence"
    }


def measures_of(model: CLIP) -> dict[str, Callable[[], Any]]:
    """Return what measures and calibrates a classifier, by name."""
    fitted = ImageClassifier.zero_shot(model, NAMES).fit(*toy_features(), "gaussian")
    features, labels = held_out(fitted)
    few, own = toy_features()
    mixed = torch.cat([features, few]), torch.cat([labels, own])
    several = [[NAMES[label]] for label in labels.tolist()]

    def fresh() -> ImageClassifier:
        return ImageClassifier.zero_shot(model, NAMES)

    return {
        "held out": lambda: fitted.report(features, labels).to_dict(),
        "mixed": lambda: fitted.report(*mixed).to_dict(),
        "folds": lambda: fitted.report(few, own).to_dict(),
        "suspects": lambda: fitted.suspects(*mixed, cut=1),
        "count": lambda: fitted.count_seen(mixed[0]),
        "calibrated": lambda: numbers_of(fresh().calibrate(features, labels).calibration),
        "by folds": lambda: numbers_of(
            fresh().fit(few, own, "gaussian", calibrate=True).calibration
        ),
        "several": lambda: fresh().calibrate(features, several).predict(features[:9], several=True),
    }


MEASURES = ["held out", "mixed", "folds", "suspects", "count", "calibrated", "by folds", "several"]


@pytest.mark.parametrize("name", MEASURES)
def test_nothing_is_measured_on_another_device(model: CLIP, name: str) -> None:
    measure = measures_of(model)[name]
    expected = repr(measure())
    with default_device("meta"):
        found = repr(measure())
    assert found == expected


def test_single_images_are_held_out_on_the_cpu() -> None:
    """They were not: two of five were, for the numbers of the folds came from nowhere."""
    features, labels = draw(1, 1, 1, 1, 1, 1)
    options = {"alpha": 1.0, "beta": 2.0}
    expected = cross_validated(features, labels, ZERO_SHOT, "cache", options)
    with default_device("meta"):
        found = cross_validated(features, labels, ZERO_SHOT, "cache", options)
    assert found.indices.tolist() == list(range(6))
    assert torch.equal(found.logits, expected.logits)


def test_the_command_counts_confusions_on_the_cpu(
    model: CLIP, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = color_folders(tmp_path / "images", each=2)
    labels = [NAMES[number] for number in (1, 2, 3, 0)]  # wrong ones, so that there are confusions
    swapped = ImageClassifier.zero_shot(model, dict(zip(NAMES, labels, strict=True)))
    swapped.save(tmp_path / "saved")
    arguments = ["eval", str(images), "--classifier", str(tmp_path / "saved"), "--device", "cpu"]
    assert main(arguments) == 0
    expected = capsys.readouterr().out
    assert "most often taken for another class" in expected
    with default_device("meta"):
        assert main(arguments) == 0
    assert capsys.readouterr().out == expected
