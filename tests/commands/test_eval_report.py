"""`clipkit eval --html` and `--suspects`, and the estimate of `clipkit fit`."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from clipkit import ImageClassifier, read_folder
from clipkit.cli import main
from clipkit.commands import fit as fit_command
from tests.helpers.toy_data import color_folders

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def fitted(toy: Path, start: list[str], capsys: Captured) -> list[str]:
    """Fit a classifier on 20 images of four colors, and return the options that name it."""
    arguments = ["fit", str(toy / "images"), "-o", str(toy / "out"), "--no-estimate", *start]
    assert main(arguments) == 0
    assert "accuracy" not in capsys.readouterr().out
    return ["--classifier", str(toy / "out"), "--device", "cpu"]


def test_a_page_is_written(toy: Path, fitted: list[str], capsys: Captured) -> None:
    page = toy / "pages" / "report.html"
    unseen = color_folders(toy / "unseen", each=2, seed=900)
    assert main(["eval", str(unseen), *fitted, "--html", str(page)]) == 0
    out, err = capsys.readouterr()
    assert f"The page is in {page}." in err
    assert out.startswith("8 images, 4 classes\nHeld out: ")
    text = page.read_text("utf-8")
    assert "<title>unseen: how good the classifier is</title>" in text
    assert (
        "Held out: measured on 8 images that the classifier is not known to be fitted on." in text
    )


def test_images_of_the_fit_are_cross_validated(
    toy: Path, fitted: list[str], capsys: Captured
) -> None:
    assert main(["eval", str(toy / "images"), *fitted, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    pairs = read_folder(toy / "images")
    report = ImageClassifier.load(toy / "out", device="cpu").report(pairs)
    assert figures["estimate"]["folds"] == 4
    assert figures["estimate"]["sentence"].startswith("cross-validated in 4 folds")
    assert figures["images"] == 20
    assert figures["top-1"] == report.accuracy
    assert "suspects" not in figures


def test_a_page_that_cannot_be_written_is_told_before_the_work(
    toy: Path, fitted: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.commands.evaluate.embed_labelled", lambda *_: pytest.fail("work"))
    assert main(["eval", str(toy / "images"), *fitted, "--html", str(toy)]) == 2
    assert "a folder of that name is in the way" in capsys.readouterr().err
    assert main(["eval", str(toy / "images"), *fitted, "--html", str(toy / "page.pdf")]) == 2
    assert "its file ends in .html, not 'page.pdf'" in capsys.readouterr().err


@pytest.fixture
def mislaid(toy: Path, fitted: list[str]) -> tuple[list[str], str]:
    """Lay one green image among the white ones, fit anew, and return the options and its path."""
    moved = toy / "images" / "white" / "moved.png"
    shutil.move(toy / "images" / "green" / "00.png", moved)
    options = ["--model", str(toy / "start"), "--device", "cpu", "--no-estimate"]
    assert main(["fit", str(toy / "images"), "-o", str(toy / "out"), *options]) == 0
    return fitted, str(moved)


def test_suspects_are_listed(toy: Path, mislaid: tuple[list[str], str], capsys: Captured) -> None:
    fitted, moved = mislaid
    capsys.readouterr()
    assert main(["eval", str(toy / "images"), *fitted, "--suspects", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("labels that may be wrong"))
    assert re.fullmatch(r"labels that may be wrong \(\d of \d\)", lines[place])
    pattern = rf"  {re.escape(moved)}  white [\d.]+%  likelier green [\d.]+%"
    assert re.fullmatch(pattern, lines[place + 1])

    assert main(["eval", str(toy / "images"), *fitted, "--suspects", "1", "--json"]) == 0
    (suspect,) = json.loads(capsys.readouterr().out)["suspects"]
    assert (suspect["path"], suspect["label"], suspect["likelier"]) == (moved, "white", "green")


def test_no_suspects_are_told(toy: Path, fitted: list[str], capsys: Captured) -> None:
    assert main(["eval", str(toy / "images"), *fitted, "--suspects", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no image whose own label is unlikely"
    assert main(["eval", str(toy / "images"), *fitted, "--suspects", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["suspects"] == []
    assert main(["eval", str(toy / "images"), *fitted, "--suspects", "0"]) == 2
    assert "--suspects must be at least 1, not 0" in capsys.readouterr().err


def fit_and_read_accuracy(toy: Path, capsys: Captured, *options: str) -> str:
    capsys.readouterr()
    arguments = ["fit", str(toy / "images"), "-o", str(toy / "out"), *options]
    assert main([*arguments, "--model", str(toy / "start"), "--device", "cpu"]) == 0
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("accuracy ")]
    return line.split(maxsplit=1)[1]


def test_fit_tells_the_cross_validated_accuracy(toy: Path, capsys: Captured) -> None:
    said = fit_and_read_accuracy(toy, capsys, "--seed", "3")
    classifier = ImageClassifier.load(toy / "out", device="cpu")
    report = classifier.report(read_folder(toy / "images"), seed=3)
    low, high = report.interval
    expected = f"{report.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})"
    assert said == f"{expected}, cross-validated in 4 folds"


def test_an_estimate_from_single_images_is_called_pessimistic(toy: Path, capsys: Captured) -> None:
    said = fit_and_read_accuracy(toy, capsys, "--shots", "1")
    assert said.endswith(", pessimistic since each class has a single image")


def test_a_fit_that_cannot_be_estimated_is_saved(toy: Path, capsys: Captured) -> None:
    said = fit_and_read_accuracy(toy, capsys, "--shots", "1", "--method", "linear_probe")
    assert said.startswith("not estimated: each class has a single image")
    assert ImageClassifier.load(toy / "out", device="cpu").provenance["method"] == "linear_probe"


def test_a_long_fit_is_not_done_again_unasked(
    toy: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_command, "_LONG", -1)
    said = fit_and_read_accuracy(toy, capsys)
    assert re.match(r"not estimated, which would take about four times the \d+ s of a fit: ", said)
    assert said.endswith(f"clipkit eval {toy / 'images'} --classifier {toy / 'out'}")


class Clock:
    """Tell the time of a machine on which a fit takes 40 s, and to save takes 90."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_the_time_of_a_fit_is_that_of_one_fit(
    toy: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was that of the five of a calibration, and of saving."""
    clock = Clock()
    fit, save = ImageClassifier.fit, ImageClassifier.save

    def slow_fit(self: ImageClassifier, *given: Any, **options: Any) -> ImageClassifier:
        clock.now += 200 if options.get("calibrate") else 40
        return fit(self, *given, **options)

    def slow_save(self: ImageClassifier, folder: Path) -> None:
        clock.now += 90
        save(self, folder)

    monkeypatch.setattr(fit_command, "time", clock)
    monkeypatch.setattr(ImageClassifier, "fit", slow_fit)
    monkeypatch.setattr(ImageClassifier, "save", slow_save)
    assert "cross-validated in 4 folds" in fit_and_read_accuracy(toy, capsys)
    assert "cross-validated in 4 folds" in fit_and_read_accuracy(toy, capsys, "--calibrate")
    monkeypatch.setattr(fit_command, "_LONG", 39)
    for options in ([], ["--calibrate"]):
        said = fit_and_read_accuracy(toy, capsys, *options)
        assert said.startswith("not estimated, which would take about four times the 40 s of a fit")
