"""`classifier.calibrate`, `fit(calibrate=True)` and what `predict` then says of images."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipkit import CLIP, ImageClassifier, Prediction
from clipkit.classify.calibration import calibrate_by_cross_validation, calibrate_labels
from clipkit.classify.cross_validation import cross_validated
from clipkit.errors import ConfigError, DataError
from tests.helpers.held_out import held_out
from tests.helpers.toy_classifier import NAMES, head_logits, state_of

pytestmark = pytest.mark.usefixtures("quick_fits")

Few = tuple[Tensor, Tensor]
ALL: dict[str, Any] = {"coverage": 0.9, "reject": True, "several": True}


def several(labels: Tensor) -> list[list[str]]:
    """Return one or two names for each label."""
    return [[NAMES[int(one)], "white"] if one < 2 else [NAMES[int(one)]] for one in labels]


def test_calibrated_probabilities_have_the_temperature(classifier: ImageClassifier) -> None:
    features, labels = held_out(classifier)
    before = classifier.probabilities(features)
    assert before.equal(head_logits(classifier, features).softmax(dim=-1))  # the same bits
    assert classifier.calibration is None
    assert classifier.calibrate(features, labels) is classifier
    calibration = classifier.calibration
    assert calibration is not None
    logits = head_logits(classifier, features)
    assert calibration.temperature == calibrate_labels(logits, labels).temperature
    assert abs(calibration.temperature - 1) > 0.1
    expected = (logits / calibration.temperature).softmax(dim=-1)
    torch.testing.assert_close(classifier.probabilities(features), expected)
    rows = torch.stack([one.probabilities for one in classifier.predict(features)])
    assert rows.equal(classifier.probabilities(features))


def test_labels_come_in_every_form(classifier: ImageClassifier, color_folder: Path) -> None:
    features, labels = held_out(classifier)
    first = classifier.calibrate(features, labels).calibration
    names = classifier.calibrate(features, [NAMES[int(one)] for one in labels]).calibration
    assert first is not None
    assert names is not None
    assert first.scores.equal(names.scores)
    paths = sorted(color_folder.glob("*/*.*"))
    by_path = classifier.calibrate(paths, [path.parent.name for path in paths]).calibration
    assert by_path is not None
    assert by_path.images == 8


def test_sets_hold_what_the_quantile_allows(classifier: ImageClassifier) -> None:
    features, labels = held_out(classifier)
    classifier.calibrate(features, labels)
    calibration = classifier.calibration
    assert calibration is not None
    sizes: list[int] = []
    for coverage in (0.5, 0.9, 0.99):
        quantile = calibration.quantile(coverage)
        predictions = classifier.predict(features, coverage=coverage)
        for prediction in predictions:
            found = prediction.set or []
            assert found == [label for label, _ in prediction.top(len(found))]
            own = {NAMES[int(i)] for i in (-prediction.probabilities.log() <= quantile).nonzero()}
            assert set(found) == own | {prediction.label}
        hits = [
            NAMES[int(one)] in (p.set or []) for p, one in zip(predictions, labels, strict=True)
        ]
        assert sum(hits) / len(hits) >= coverage
        sizes.append(sum(len(prediction.set or []) for prediction in predictions))
    assert sizes[0] < sizes[1] < sizes[2]


def test_far_images_are_rejected(classifier: ImageClassifier) -> None:
    features, labels = held_out(classifier, noise=0.5)
    classifier.calibrate(features, labels, false_alarms=0.1)
    known = classifier.predict(features, reject=True)
    assert sum(bool(one.rejected) for one in known) == 9  # below the tenth of 99
    opposite = -classifier.zero_shot_head.weight.detach()
    assert [one.rejected for one in classifier.predict(opposite, reject=True)] == [True] * 4


def test_several_labels_are_present(classifier: ImageClassifier) -> None:
    features, labels = held_out(classifier, noise=0.3)
    classifier.calibrate(features, labels).calibrate(features, several(labels))
    assert classifier.calibration is not None
    assert abs(classifier.calibration.temperature - 1) > 0.1  # it has no part in this
    presence = classifier.calibration.presence
    assert presence is not None
    shares = presence.probabilities(head_logits(classifier, features))
    for row, prediction in enumerate(classifier.predict(features, several=True)):
        assert prediction.presence is not None
        torch.testing.assert_close(prediction.presence, shares[row])
        there = {NAMES[int(i)] for i in (shares[row] > presence.thresholds).nonzero()}
        assert set(prediction.present or []) == there
        ranks = [float(shares[row][NAMES.index(label)]) for label in prediction.present or []]
        assert ranks == sorted(ranks, reverse=True)
        assert prediction.set is None
        assert prediction.rejected is None


def test_each_kind_of_labels_leaves_the_other(classifier: ImageClassifier) -> None:
    features, labels = held_out(classifier)
    classifier.calibrate(features, several(labels)).calibrate(features, labels)
    first = classifier.calibration
    assert first is not None
    assert first.presence is not None
    assert first.images == 99
    classifier.calibrate(features[:50], several(labels[:50]))
    second = classifier.calibration
    assert second is not None
    assert second.presence is not None
    assert second.presence.images == 50
    assert second.images == 99
    assert len(classifier.predict(features, **ALL)) == 99


def test_fit_calibrates_by_cross_validation(classifier: ImageClassifier, few: Few) -> None:
    classifier.fit(*few, strength=1.0, seed=3, calibrate=True)
    options = {"strength": 1.0}
    start, head = classifier.zero_shot_head, classifier.head
    found = cross_validated(*few, start, "anchored", options, seed=3, like=head)
    expected = calibrate_by_cross_validation(found, few[1])
    assert classifier.calibration is not None
    assert classifier.calibration.scores.equal(expected.scores)
    assert classifier.calibration.temperature == expected.temperature
    assert classifier.calibration.source == "cross-validation"
    assert not classifier.calibration.pessimistic
    single = [int((few[1] == label).nonzero()[0]) for label in range(4)]
    classifier.fit(few[0][single], few[1][single], calibrate=True)
    assert classifier.calibration.pessimistic


def test_prompt_weights_are_calibrated_with_their_captions(
    classifier: ImageClassifier, few: Few
) -> None:
    classifier.fit(*few, "prompt_weights", calibrate=True)
    assert classifier.calibration is not None
    assert classifier.calibration.images == 22


def test_what_changes_the_head_drops_the_calibration(
    toy: CLIP, few: Few, caplog: pytest.LogCaptureFixture
) -> None:
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    with caplog.at_level(logging.WARNING, "clipkit"):
        classifier.fit(*few)
    assert "calibration" not in caplog.text
    classifier.calibrate(*held_out(classifier))
    kept = classifier.calibration
    adapted, _ = classifier.adapt(few[0], guard=False)
    assert adapted.calibration is None
    assert classifier.calibration is kept
    for change, reason in (
        (lambda: classifier.fit(*few), "the head was fitted anew"),
        (lambda: classifier.add_classes(["yellow"]), "classes were added"),
    ):
        classifier.calibration = kept
        with caplog.at_level(logging.WARNING, "clipkit"):
            change()
        assert classifier.calibration is None
        assert f"{reason}, so the calibration is dropped: calibrate again" in caplog.text


def test_errors_leave_a_classifier_as_it_was(classifier: ImageClassifier, few: Few) -> None:
    classifier.fit(*few, calibrate=True)
    kept, before = classifier.calibration, state_of(classifier)
    with pytest.raises(DataError, match="was fitted on 22 of these 22 images"):
        classifier.calibrate(*few)
    with pytest.raises(DataError, match=r"on those of the fit by cross-validation, fit\(\.\.\., c"):
        classifier.calibrate(few[0][:3], [["white"]] * 3)
    with pytest.raises(DataError, match="there is no image to calibrate on"):
        classifier.calibrate(few[0][:0], [])
    features, labels = held_out(classifier)
    with pytest.raises(ConfigError, match="false_alarms must be a number between 0 and 1"):
        classifier.calibrate(features, labels, false_alarms=2)
    with pytest.raises(ConfigError, match="false_alarms=0.1 would be ignored"):
        classifier.calibrate(features, several(labels), false_alarms=0.1)
    with pytest.raises(DataError, match="a label for each image, not 98 for 99"):
        classifier.calibrate(features, several(labels)[1:])
    with pytest.raises(DataError, match="a label for each image, not 99 for 98"):
        classifier.calibrate(features[1:], labels)
    with pytest.raises(DataError, match="knows nothing of a class without images"):
        classifier.fit(few[0][:4], few[1][:4], "linear_probe", calibrate=True)
    assert classifier.calibration is kept
    assert state_of(classifier) == before


def test_what_is_not_calibrated_is_refused_before_any_image_is_read(
    classifier: ImageClassifier,
) -> None:
    remedy = r"classifier.calibrate\(images, labels\) with images that it was not fitted on, or fit"
    one: list[dict[str, Any]] = [{"coverage": 0.9}, {"reject": True}]
    for asked in one:
        with pytest.raises(ConfigError, match=f"needs a calibrated classifier: call {remedy}"):
            classifier.predict("nowhere.jpg", **asked)
    with pytest.raises(ConfigError, match="several=True needs .* a list of names for each image"):
        classifier.predict("nowhere.jpg", several=True)
    features, labels = held_out(classifier, 9)
    classifier.calibrate(features, several(labels))
    with pytest.raises(ConfigError, match="reject=True needs a calibrated classifier"):
        classifier.predict("nowhere.jpg", reject=True)
    classifier.calibrate(features, labels)
    with pytest.raises(ConfigError, match="coverage of 0.95 needs 19 calibration images"):
        classifier.predict("nowhere.jpg", coverage=0.95)
    with pytest.raises(ConfigError, match="false_alarms of 0.05 need 19 calibration images"):
        classifier.predict("nowhere.jpg", reject=True)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"coverage": 90}, "coverage must be a number between 0 and 1, not 90"),
        ({"reject": 0.1}, "reject must be True or False, not 0.1"),
        ({"several": "yes"}, "several must be True or False, not 'yes'"),
    ],
)
def test_impossible_wishes_are_refused(
    classifier: ImageClassifier, asked: dict[str, Any], message: str
) -> None:
    classifier.calibrate(*held_out(classifier))
    with pytest.raises(ConfigError, match=message):
        classifier.predict("nowhere.jpg", **asked)


def test_unreadable_images_are_left_out_with_their_labels(
    classifier: ImageClassifier, color_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    paths = sorted(color_folder.glob("*/*.*"))
    rows = [[path.parent.name] for path in paths]
    with pytest.warns(UserWarning, match="1 of 9 images cannot be read"):
        classifier.calibrate([broken, *paths], [["white"], *rows])
    with_broken = classifier.calibration
    without = classifier.calibrate(paths, rows).calibration
    assert with_broken is not None
    assert with_broken.presence is not None
    assert without is not None
    assert without.presence is not None
    assert with_broken.presence.thresholds.equal(without.presence.thresholds)


def test_predictions_show_what_was_asked_for() -> None:
    prediction = Prediction(["cat", "dog"], torch.tensor([0.25, 0.75]), "a.jpg")
    assert list(prediction.to_dict()) == ["label", "probability", "top", "path"]
    assert repr(prediction) == "Prediction(dog 0.75, cat 0.25; a.jpg)"
    prediction.set, prediction.rejected = ["dog", "cat"], True
    prediction.presence, prediction.present = torch.tensor([0.5, 0.125]), ["cat"]
    values = prediction.to_dict()
    assert values["set"] == ["dog", "cat"]
    assert values["rejected"] is True
    assert values["present"] == [{"label": "cat", "probability": 0.5}]
    verdicts = "none of these; set: dog, cat; present: cat 0.50"
    assert repr(prediction) == f"Prediction(dog 0.75, cat 0.25; {verdicts}; a.jpg)"
    for verdict in verdicts.split("; "):
        assert f">{verdict}<" in prediction._repr_html_()
    prediction.rejected, prediction.present = False, []
    prediction.set = [str(number) for number in range(8)]
    verdicts = "set: 0, 1, 2, 3, 4 and 3 more; present: nothing"
    assert repr(prediction) == f"Prediction(dog 0.75, cat 0.25; {verdicts}; a.jpg)"
    assert prediction.to_dict()["rejected"] is False
    assert prediction.to_dict()["present"] == []
