"""`clipkit eval`: its figures, as JSON and as a table, are those of `clipkit.classify.metrics`."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torch import Tensor

from clipkit import CLIP, ImageClassifier, Pairs, read_folder
from clipkit.classify import metrics
from clipkit.cli import main
from clipkit.commands.evaluate import _places
from tests.helpers.toy_data import color_folders


def zero_shot(toy: Path, names: list[str] | None) -> ImageClassifier:
    assert names
    return ImageClassifier.zero_shot(CLIP.from_pretrained(toy / "start", device="cpu"), names)


def labels_of(pairs: Pairs) -> list[int]:
    assert pairs.labels is not None
    return pairs.labels


def run_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def expected_figures(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the figures of images of 4 classes, as many of each in turn."""
    right = (probabilities.argmax(dim=1) == labels).double()
    assert 0 < right.mean() < 1
    return {
        "top-1": right.mean().item(),
        "mean per class": right.view(4, -1).mean().item(),  # (classes, images of each)
        "calibration error": metrics.expected_calibration_error(probabilities, labels),
    }


def expected_confusions(
    classifier: ImageClassifier, probabilities: Tensor, labels: Tensor
) -> list[dict[str, Any]]:
    """Return cells of the confusion matrix, row by row, the fullest first."""
    matrix: Any = sklearn.confusion_matrix(labels, probabilities.argmax(dim=1), labels=range(4))
    names, cells = classifier.labels, np.argwhere(matrix * (1 - np.eye(4)) > 0).tolist()
    assert any(matrix[i, j] != matrix[j, i] for i, j in cells)  # so that a direction can be wrong
    return [
        {
            "true": names[i],
            "predicted": names[j],
            "count": matrix[i, j],
            "share": matrix[i, j] / matrix[i].sum(),
        }
        for i, j in sorted(cells, key=lambda cell: -matrix[tuple(cell)])
    ]


def expected_lines(
    figures: dict[str, float], interval: str, confusions: list[dict[str, Any]]
) -> list[str]:
    rows = [f"{name} {value:.2%}" for name, value in figures.items()]
    rows.insert(1, interval)
    rows.append("most often taken for another class")
    rows.append("true class predicted class images of the true class")
    return rows + [
        f"{row['true']} {row['predicted']} {row['count']} {row['share']:.1%}" for row in confusions
    ]


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell images of one color apart, which models of random weights hardly do."""
    monkeypatch.setattr("clipkit.classify.seen._NEAR", 0.005)


@pytest.mark.usefixtures("near")
@pytest.mark.parametrize("method", ["zero_shot", "gaussian"])
def test_the_figures_of_a_classifier(
    toy: Path, start: list[str], capsys: pytest.CaptureFixture[str], method: str
) -> None:
    unseen = color_folders(toy / "unseen", each=3, seed=700)
    pairs = read_folder(unseen)
    classifier = zero_shot(toy, pairs.class_names)
    options = start
    sentence = "made of class names"
    measured = list(range(12))
    if method == "gaussian":  # with so little of it that it still errs
        classifier.fit(pairs.files[::3], labels_of(pairs)[::3], "gaussian", alpha=1e-6)
        classifier.save(toy / "out")
        options = ["--classifier", str(toy / "out"), "--device", "cpu"]
        sentence = "fitted on 4 of these 12 images"
        measured = [i for i in measured if i % 3]
    probabilities = classifier.probabilities(pairs.files)[measured]
    labels = torch.tensor(labels_of(pairs))[measured]
    expected = expected_figures(probabilities, labels)
    confusions = expected_confusions(classifier, probabilities, labels)

    figures = run_json([str(unseen), *options], capsys)
    assert figures.pop("confusions") == confusions
    assert sentence in figures.pop("estimate")["sentence"]
    hits = round(expected["top-1"] * len(measured))
    low, high = metrics.wilson_interval(hits, len(measured))
    assert figures.pop("top-1 interval") == pytest.approx([low, high])
    assert figures == pytest.approx({"images": len(measured), "classes": 4} | expected)

    assert main(["eval", str(unseen), *options]) == 0
    first, second, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{len(measured)} images, 4 classes"
    assert sentence in second
    assert [" ".join(line.split()) for line in lines] == expected_lines(
        expected, f"95% interval {low:.2%} to {high:.2%}", confusions
    )


def test_the_top_5_of_more_than_five_classes(
    toy: Path, start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    unseen = color_folders(toy / "unseen", each=3, seed=700)
    for name in ("other", "another"):
        shutil.copytree(unseen / "dark_red", unseen / name)
    pairs = read_folder(unseen)
    probabilities = zero_shot(toy, pairs.class_names).probabilities(pairs.files)
    figures = run_json([str(unseen), *start], capsys)
    expected = metrics.top_k_accuracy(probabilities, torch.tensor(pairs.labels), 5)
    assert figures["top-5"] == expected
    assert figures["top-1"] < figures["top-5"]


def test_a_classifier_may_know_more_classes_in_another_order(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = zero_shot(toy, ["white", "ochre", "blue", "green", "dark red"])
    pairs = read_folder(toy / "images")
    folders = pairs.class_names or []
    names = [folders[i] for i in labels_of(pairs)]
    classifier.fit(pairs.files, names)
    classifier.save(toy / "out")
    options = ["--classifier", str(toy / "out"), "--device", "cpu"]
    figures = run_json([str(toy / "images"), *options], capsys)
    predictions = classifier.predict(pairs.files)
    right = [p.label.replace(" ", "_") == name for p, name in zip(predictions, names, strict=True)]
    assert figures["classes"] == 5
    assert figures["top-1"] == sum(right) / 20
    assert figures["top-1"] > 0.9


def test_many_classes_are_found_in_time_that_grows_with_their_number() -> None:
    labels = [f"class {i}" for i in range(20_000)]
    start = time.perf_counter()
    places = _places(labels, labels[::-1])
    assert time.perf_counter() - start < 2  # a search for each in the list took 11 s
    assert places == list(range(20_000))[::-1]
