"""A calibration is saved with its classifier, and what is damaged is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import CLIP, ImageClassifier
from clipkit.classify import head_files
from clipkit.classify.calibration import Calibration, calibrate_several
from clipkit.classify.calibration_file import calibration_parts, read_calibration, take_calibration
from clipkit.classify.head_files import read_head_file, write_head_file
from clipkit.classify.saved_heads import load_head
from clipkit.errors import ConfigError, CorruptCheckpointError
from tests.helpers.held_out import held_out
from tests.helpers.toy_classifier import NAMES, head_logits

HEAD = "head.safetensors"


def calibrated(toy: CLIP) -> ImageClassifier:
    """Return a classifier that is calibrated for one label and for several."""
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    features, labels = held_out(classifier)
    truth = torch.nn.functional.one_hot(labels, 4).bool()
    return classifier.calibrate(features, truth).calibrate(features, labels, false_alarms=0.1)


def test_what_is_loaded_says_the_same(toy: CLIP, tmp_path: Path) -> None:
    classifier = calibrated(toy)
    classifier.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model", HEAD, "zero_shot.safetensors"}
    loaded = ImageClassifier.load(tmp_path, device="cpu")
    features, _ = held_out(classifier, seed=6)
    wanted: dict[str, Any] = {"coverage": 0.9, "reject": True, "several": True}
    found = loaded.predict(features, **wanted)
    expected = classifier.predict(features, **wanted)
    assert [one.to_dict() for one in found] == [one.to_dict() for one in expected]
    assert {one.rejected for one in found} == {True, False}
    assert loaded.calibration is not None
    assert classifier.calibration is not None
    assert repr(loaded.calibration) == repr(classifier.calibration)
    assert loaded.calibration.false_alarms == 0.1
    assert repr(loaded).count(", calibrated;") == 1
    table = loaded._repr_html_()
    assert "on 99 held-out images" in table
    assert "calibrated on 99 images" in table
    head, labels, _ = load_head(tmp_path / HEAD)  # the head by itself is the same
    assert labels == NAMES
    assert head(features).equal(head_logits(classifier, features))


@pytest.mark.parametrize("kind", ["one label", "several labels", "pessimistic"])
def test_each_part_is_kept(toy: CLIP, tmp_path: Path, kind: str) -> None:
    classifier = calibrated(toy)
    assert classifier.calibration is not None
    features, labels = held_out(classifier)
    several = calibrate_several(
        head_logits(classifier, features), torch.nn.functional.one_hot(labels, 4).bool()
    )
    whole = classifier.calibration
    classifier.calibration = {
        "one label": replace(whole, presence=None),
        "several labels": several,
        "pessimistic": replace(whole, source="cross-validation", pessimistic=True),
    }[kind]
    classifier.save(tmp_path)
    loaded = ImageClassifier.load(tmp_path, device="cpu").calibration
    assert loaded is not None
    assert repr(loaded) == repr(classifier.calibration)
    assert loaded.images == classifier.calibration.images
    assert loaded.temperature == classifier.calibration.temperature
    assert loaded.scores.equal(classifier.calibration.scores)
    assert loaded.confidences.equal(classifier.calibration.confidences)
    assert loaded.pessimistic == (kind == "pessimistic")
    assert (loaded.presence is None) == (kind == "one label")


def test_a_classifier_without_calibration_is_saved_as_before(toy: CLIP, tmp_path: Path) -> None:
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    classifier.save(tmp_path)
    assert ImageClassifier.load(tmp_path, device="cpu").calibration is None
    file = read_head_file(tmp_path / HEAD)
    assert set(file.tensors) == {"weight", "logit_scale"}


def test_the_head_of_another_calibration_is_a_mix(toy: CLIP, tmp_path: Path) -> None:
    """It is in the head's file, so that it cannot go with another head."""
    calibrated(toy).save(tmp_path / "first")
    other = ImageClassifier.zero_shot(toy, NAMES[::-1])
    other.save(tmp_path / "second")
    (tmp_path / "second" / HEAD).write_bytes((tmp_path / "first" / HEAD).read_bytes())
    with pytest.raises(CorruptCheckpointError, match="not of one classifier"):
        ImageClassifier.load(tmp_path / "second", device="cpu")


DAMAGED = [
    ({"temperature": 0}, {}, "its calibration's temperature is 0"),
    ({"temperature": float("nan")}, {}, "its calibration's temperature is nan"),
    ({"temperature": "hot"}, {}, "its calibration's temperature is 'hot'"),
    ({"false_alarms": True}, {}, "its calibration's false_alarms is True"),
    ({"source": "a guess"}, {}, "its calibration comes from 'a guess'"),
    ({"several": None}, {}, "its calibration has confidences, offsets, scores"),
    ({}, {"scores": torch.ones(99, 3)}, r"its calibration's scores is torch.float32 \(99, 3\)"),
    ({}, {"confidences": torch.ones(7)}, r"its calibration's confidences is torch.float32 \(7,\)"),
    ({}, {"slopes": torch.ones(5)}, r"its calibration's slopes is torch.float32 \(5,\)"),
    ({}, {"scores": torch.arange(99)}, r"its calibration's scores is torch.int64"),
    ({}, {"offsets": torch.full((4,), torch.nan)}, "its calibration's offsets"),
    ({}, {"more": torch.ones(1)}, "its calibration has .*more"),
]


@pytest.mark.parametrize(("values", "tensors", "message"), DAMAGED)
def test_damaged_calibrations_are_refused(
    toy: CLIP,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    tensors: dict[str, Any],
    message: str,
) -> None:
    calibrated(toy).save(tmp_path)
    file = read_head_file(tmp_path / HEAD)

    def damaged(calibration: Calibration) -> tuple[dict[str, Any], dict[str, Any]]:
        whole, about = calibration_parts(calibration)
        more = {f"calibration.{name}": tensor for name, tensor in tensors.items()}
        return whole | more, about | values

    monkeypatch.setattr(head_files, "calibration_parts", damaged)
    write_head_file(file, tmp_path / HEAD)
    with pytest.raises(CorruptCheckpointError, match=message):
        ImageClassifier.load(tmp_path, device="cpu")


def test_a_file_whose_json_says_nothing_of_its_calibration(toy: CLIP, tmp_path: Path) -> None:
    classifier = calibrated(toy)
    assert classifier.calibration is not None
    tensors, values = calibration_parts(classifier.calibration)
    file = read_head_file_of(classifier, tmp_path)
    write_head_file(
        replace(file, tensors={**file.tensors, **tensors}, calibration=None), tmp_path / HEAD
    )
    with pytest.raises(CorruptCheckpointError, match="calibration"):
        ImageClassifier.load(tmp_path, device="cpu")
    with pytest.raises(ValueError, match="its calibration has no tensors"):
        read_calibration({}, values | {"several": None}, 4)
    assert set(take_calibration({**tensors})) == {
        "scores",
        "confidences",
        "slopes",
        "offsets",
        "thresholds",
    }


def read_head_file_of(classifier: ImageClassifier, folder: Path) -> head_files.HeadFile:
    """Save a classifier, and return the file of its head."""
    classifier.save(folder)
    return read_head_file(folder / HEAD)


def test_a_calibration_that_holds_nothing_is_not_saved(toy: CLIP, tmp_path: Path) -> None:
    """It was saved, and refused as damaged when it was loaded."""
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    classifier.calibration = Calibration(temperature=2.0)
    with pytest.raises(ConfigError, match="calibration comes from no images, .* = None"):
        classifier.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
