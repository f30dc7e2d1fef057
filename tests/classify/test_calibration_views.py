"""A calibration holds for images that are seen as often as its own, so later ones are as well."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import CLIP, ImageClassifier, fit_head
from clipkit.classify.calibration import Calibration
from clipkit.cli import main
from clipkit.errors import ConfigError, CorruptCheckpointError
from tests.helpers.toy_classifier import NAMES, assert_close
from tests.helpers.toy_data import COLORS, two_colors

LABELS = [place % 4 for place in range(24)]
SEVERAL = [[NAMES[label]] if label else [] for label in LABELS]


def draw(seed: int) -> list[Image.Image]:
    """Return images with sides that differ, a part of which can be told apart."""
    random = np.random.default_rng(seed)
    others = random.integers(0, 256, (24, 3)).tolist()
    return [
        two_colors(COLORS[NAMES[label]], tuple(other), seed + place)
        for place, (label, other) in enumerate(zip(LABELS, others, strict=True))
    ]


IMAGES = draw(0)


@pytest.fixture
def classifier(toy: CLIP) -> ImageClassifier:
    found = ImageClassifier.zero_shot(toy, NAMES)
    features, labels = found.embed(draw(100)), torch.tensor(LABELS)
    found.head, _ = fit_head(features, labels, found.zero_shot_head, "gaussian")
    assert 0.3 < found.report(IMAGES, LABELS).accuracy < 1
    return found


def calibration_of(classifier: ImageClassifier) -> Calibration:
    assert classifier.calibration is not None
    return classifier.calibration


@pytest.mark.parametrize("views", [1, 2, 10])
def test_a_calibration_sees_images_so_often(classifier: ImageClassifier, views: int) -> None:
    features = classifier.embed(IMAGES, views=views)
    by_features = calibration_of(classifier.calibrate(features, LABELS))
    classifier.calibration = None
    found = calibration_of(classifier.calibrate(IMAGES, LABELS, views=views))
    assert (found.views, by_features.views) == (views, None)
    assert found.temperature == pytest.approx(by_features.temperature, rel=1e-4)
    assert_close(found.scores, by_features.scores, atol=1e-4)
    assert_close(found.confidences, by_features.confidences, atol=1e-4)
    assert classifier.views == views


def test_views_are_once_by_default(classifier: ImageClassifier) -> None:
    assert classifier.views == 1
    assert calibration_of(classifier.calibrate(IMAGES, LABELS)).views == 1
    assert calibration_of(classifier.fit(IMAGES, LABELS, "gaussian", calibrate=True)).views == 1
    features = classifier.embed(IMAGES)
    fitted = classifier.fit(features, LABELS, "gaussian", calibrate=True)
    assert calibration_of(fitted).views is None


def test_images_are_seen_as_often_from_then_on(classifier: ImageClassifier) -> None:
    classifier.calibrate(IMAGES, LABELS, views=10)
    assert_close(
        classifier.probabilities(IMAGES),
        classifier.probabilities(classifier.embed(IMAGES, views=10)),
    )
    once = classifier.probabilities(classifier.embed(IMAGES))
    assert (classifier.probabilities(IMAGES) - once).abs().max() > 1e-3
    (prediction,) = classifier.predict(IMAGES[:1], coverage=0.5, reject=True, views=10)
    assert_close(prediction.probabilities, classifier.probabilities(IMAGES[:1])[0])
    expected = make_report(classifier, views=10)
    assert classifier.report(IMAGES, LABELS).to_dict()["accuracy"] == expected["accuracy"]
    found = classifier.report(IMAGES, LABELS).calibration_error
    assert found == pytest.approx(expected["calibration_error"], abs=1e-5)
    assert found != pytest.approx(make_report(classifier, views=1)["calibration_error"], abs=1e-4)


def make_report(classifier: ImageClassifier, views: int) -> dict[str, Any]:
    return classifier.report(classifier.embed(IMAGES, views=views), LABELS).to_dict()


VERBS: list[Callable[[ImageClassifier], object]] = [
    lambda one: one.predict(IMAGES, views=2),
    lambda one: one.predict(IMAGES[0], views=1, reject=True),
    lambda one: one.probabilities(IMAGES, views=1),
]


@pytest.mark.parametrize("verb", VERBS)
def test_other_views_are_refused_before_the_work(
    classifier: ImageClassifier, monkeypatch: pytest.MonkeyPatch, verb: Any
) -> None:
    classifier.calibrate(IMAGES, LABELS, views=10)
    with monkeypatch.context() as patch:
        patch.setattr("clipkit.classify.inputs.stream_features", lambda *_, **__: pytest.fail())
        with pytest.raises(
            ConfigError, match=r"views=\d is not .* calibrated for, .* views=10: leave"
        ):
            verb(classifier)
    classifier.calibration = replace(calibration_of(classifier), views=None)
    verb(classifier)


@pytest.mark.parametrize("first_several", [False, True])
def test_both_kinds_of_labels_are_seen_alike(
    classifier: ImageClassifier, first_several: bool
) -> None:
    kinds: list[Any] = [SEVERAL, LABELS] if first_several else [LABELS, SEVERAL]
    classifier.calibrate(IMAGES, kinds[0], views=2)
    before = classifier.calibration
    with pytest.raises(ConfigError, match=r"views=10 is not .* which is views=2: .*= None"):
        classifier.calibrate(IMAGES, kinds[1], views=10)
    assert classifier.calibration is before
    assert calibration_of(classifier.calibrate(IMAGES, kinds[0], views=10)).views == 10
    assert calibration_of(classifier.calibrate(IMAGES, kinds[1])).views == 10
    features = classifier.embed(IMAGES, views=10)
    assert calibration_of(classifier.calibrate(features, kinds[0])).views == 10
    assert calibration_of(classifier).presence is not None
    assert calibration_of(classifier).images == 24


@pytest.mark.parametrize("views", [0, 3, True, "2"])
def test_impossible_views_leave_the_classifier_as_it_was(
    classifier: ImageClassifier, views: Any
) -> None:
    with pytest.raises(ConfigError, match="views must be 1 .*, 2 .*, or 10"):
        classifier.calibrate(IMAGES, LABELS, views=views)
    with pytest.raises(ConfigError, match="views=2 would be ignored, for features are"):
        classifier.calibrate(classifier.embed(IMAGES), LABELS, views=2)
    assert classifier.calibration is None


def test_views_are_saved(classifier: ImageClassifier, tmp_path: Path) -> None:
    classifier.calibrate(IMAGES, LABELS, views=2).save(tmp_path / "saved")
    loaded = ImageClassifier.load(tmp_path / "saved", device="cpu")
    assert loaded.views == 2
    assert_close(loaded.probabilities(IMAGES), classifier.probabilities(IMAGES))
    classifier.calibrate(classifier.embed(IMAGES), LABELS).save(tmp_path / "unknown")
    assert calibration_of(ImageClassifier.load(tmp_path / "unknown", device="cpu")).views is None
    classifier.calibration = replace(calibration_of(classifier), views=7)
    classifier.save(tmp_path / "wrong")
    with pytest.raises(CorruptCheckpointError, match="no head that clipkit saved"):
        ImageClassifier.load(tmp_path / "wrong")


def test_an_exported_file_sees_images_once(classifier: ImageClassifier, tmp_path: Path) -> None:
    classifier.calibrate(IMAGES, LABELS, views=2)
    with pytest.raises(ConfigError, match=r"with views=2, .* each image once: .* views=1, or set"):
        classifier.export(tmp_path / "pets.pt2")
    assert not list(tmp_path.iterdir())


def test_the_commands_see_images_as_often(
    classifier: ImageClassifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier.calibrate(IMAGES, LABELS, views=10).save(tmp_path / "saved")
    for place, image in enumerate(IMAGES):
        file = tmp_path / "images" / NAMES[LABELS[place]] / f"{place:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    options = ["--classifier", str(tmp_path / "saved"), "--device", "cpu", "--json"]
    files = sorted((tmp_path / "images").rglob("*.png"))
    assert main(["classify", *map(str, files[:2]), *options]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    predictions = classifier.predict([Image.open(file) for file in files[:2]])
    for row, expected in zip(rows, predictions, strict=True):
        highest = expected.probabilities.max().item()
        assert row["labels"][0]["probability"] == pytest.approx(highest, abs=1e-4)
    assert main(["eval", str(tmp_path / "images"), *options]) == 0
    found = json.loads(capsys.readouterr().out)["calibration error"]
    assert found == pytest.approx(make_report(classifier, views=10)["calibration_error"], abs=1e-4)
