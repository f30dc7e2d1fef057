"""`clipkit fit --calibrate`, and what `clipkit classify` then says with --coverage and --reject."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clipkit import ImageClassifier
from clipkit.classify.contrast import confidence
from clipkit.cli import main
from tests.helpers.toy_data import color_folders


@pytest.fixture
def fitted(toy: Path, start: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the folder of a calibrated classifier of four colors."""
    out = str(toy / "out")
    assert (
        main(["fit", str(toy / "images"), "-o", out, "--calibrate", "--no-estimate", *start]) == 0
    )
    rows = dict(row.split(maxsplit=1) for row in capsys.readouterr().out.splitlines()[:-1])
    assert rows["calibration"] == "by cross-validation of 20 images"
    return out


def test_sets_and_rejected_images_are_shown(
    toy: Path, fitted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = ImageClassifier.load(fitted, device="cpu")
    others = color_folders(toy / "others", each=3, seed=90)
    with torch.no_grad():
        logits = classifier.head(classifier.embed(others))
    assert classifier.calibration is not None
    classifier.calibration = replace(
        classifier.calibration,
        confidences=confidence(logits).median().repeat(99),
        scores=(-logits.log_softmax(dim=1)).median().repeat(99),
    )
    classifier.save(fitted)
    found = classifier.predict(others, coverage=0.9, reject=True)
    assert {one.rejected for one in found} == {True, False}
    assert max(len(one.set or []) for one in found) > 1
    options = ["--classifier", fitted, "--device", "cpu", "--coverage", "0.9", "--reject"]
    assert main(["classify", str(others), *options, "--json"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    for row, prediction in zip(rows, found, strict=True):
        assert list(row) == ["image", "labels", "set", "rejected"]
        assert row["set"] == prediction.set
        assert row["rejected"] == prediction.rejected


def test_text_has_a_line_for_the_set_and_one_for_none_of_these(
    toy: Path, fitted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = ImageClassifier.load(fitted, device="cpu")
    assert classifier.calibration is not None
    high = classifier.calibration.confidences + 1000
    classifier.calibration = replace(classifier.calibration, confidences=high)
    classifier.save(fitted)
    image = next((toy / "images" / "blue").iterdir())
    options = ["--classifier", fitted, "--device", "cpu", "--top", "1"]
    assert main(["classify", str(image), *options, "--coverage", "0.9", "--reject"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (prediction,) = classifier.predict([image], coverage=0.9)
    assert lines[2:] == [f"  set: {', '.join(prediction.set or [])}", "  none of these"]
    assert main(["classify", str(image), *options, "--coverage", "0.9"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["classify", str(image), *options]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["classify", str(image), *options, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["image", "labels"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reject"], "--reject needs a calibrated classifier: make one by clipkit fit FOLDERS"),
        (
            ["--coverage", "0.9"],
            "--coverage 0.9 needs a calibrated classifier: make one by clipkit",
        ),
        (["--coverage", "90"], "--coverage must be a number between 0 and 1, not 90"),
    ],
)
def test_what_a_classifier_cannot_say_is_refused(
    toy: Path,
    start: list[str],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    out = str(toy / "out")
    assert main(["fit", str(toy / "images"), "-o", out, "--no-estimate", *start]) == 0
    assert "calibration" not in capsys.readouterr().out
    image = str(next((toy / "images" / "blue").iterdir()))
    assert main(["classify", image, "--classifier", out, "--device", "cpu", *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "classifier.calibrate" not in said


def test_too_few_images_are_told(
    toy: Path, fitted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(next((toy / "images" / "blue").iterdir()))
    options = ["--classifier", fitted, "--device", "cpu", "--coverage", "0.99"]
    assert main(["classify", image, *options]) == 2
    assert "coverage of 0.99 needs 99 calibration images" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--reject"], ["--coverage", "0.9"]])
def test_labels_alone_are_not_calibrated(
    capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main(["classify", "nowhere.jpg", "--labels", "cat", "dog", *options]) == 2
    said = capsys.readouterr().err
    assert f"{options[0]} needs a calibrated classifier, which labels alone do not make" in said
    assert "clipkit fit FOLDERS --out DIR --calibrate" in said
