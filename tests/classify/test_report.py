"""The figures of a report are scikit-learn's, and its text and JSON say the same."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit import Report
from clipkit.classify.figures import Estimate
from clipkit.classify.metrics import expected_calibration_error
from clipkit.classify.report import MOST_MISTAKES, make_report
from clipkit.errors import ConfigError, OutputError

LABELS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]  # nobody is taken for the last one
HOW = Estimate("held out: by hand")


def scores(images: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return probabilities (images, 7) that are often right, and labels of the first six."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 6, (images,), generator=random)
    logits = torch.randn(images, 7, generator=random)
    logits[torch.arange(images), labels] += 1.5
    logits[:, 6] = -9
    return logits.softmax(dim=1), labels


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report(LABELS, *scores(), HOW)


def test_the_main_figures_are_those_of_scikit_learn(report: Report) -> None:
    sklearn: Any = pytest.importorskip("sklearn.metrics")
    probabilities, labels = scores()
    predicted = probabilities.argmax(dim=1).numpy()
    assert report.images == 300
    assert report.accuracy == pytest.approx(sklearn.accuracy_score(labels, predicted))
    balanced = sklearn.balanced_accuracy_score(labels, predicted)
    assert report.balanced_accuracy == pytest.approx(balanced)
    top_5 = sklearn.top_k_accuracy_score(labels, probabilities, k=5, labels=range(7))
    assert report.top_5 == pytest.approx(top_5)
    assert report.calibration_error == expected_calibration_error(probabilities, labels)


def test_the_interval_holds_the_accuracy_as_often_as_it_says() -> None:
    """Of 2,000 samples of 40 images at a true accuracy of 0.9."""
    random = np.random.default_rng(0)
    hits = random.binomial(40, 0.9, 2000)
    held = 0
    for count in hits:
        right = torch.arange(40) < int(count)
        probabilities = torch.stack([right.float(), (~right).float()], dim=1)
        found = make_report(["a", "b"], probabilities, torch.zeros(40, dtype=torch.long), HOW)
        held += found.interval[0] <= 0.9 <= found.interval[1]
    assert 0.93 <= held / 2000 <= 0.985


def test_the_figures_of_classes_are_those_of_scikit_learn(report: Report) -> None:
    sklearn: Any = pytest.importorskip("sklearn.metrics")
    probabilities, labels = scores()
    predicted = probabilities.argmax(dim=1).numpy()
    assert [row.label for row in report.classes] == LABELS[:6]  # the last one does not occur
    precision, recall, _, images = sklearn.precision_recall_fscore_support(labels, predicted)
    assert [row.precision for row in report.classes] == pytest.approx(list(precision))
    assert [row.recall for row in report.classes] == pytest.approx(list(recall))
    assert [row.images for row in report.classes] == list(images)
    matrix = sklearn.confusion_matrix(labels, predicted)
    expected = {
        (LABELS[i], LABELS[j]): int(matrix[i, j])
        for i in range(6)
        for j in range(6)
        if i != j and matrix[i, j]
    }
    assert {(row.true, row.predicted): row.count for row in report.confusions} == expected
    counts = [row.count for row in report.confusions]
    assert counts == sorted(counts, reverse=True)


def test_a_class_without_images_or_answers_has_no_recall_or_precision() -> None:
    probabilities = torch.tensor([[0.8, 0.2, 0.0], [0.7, 0.3, 0.0], [0.1, 0.0, 0.9]])
    found = make_report(["a", "b", "c"], probabilities, torch.tensor([0, 1, 1]), HOW)
    figures = [(row.images, row.predicted, row.precision, row.recall) for row in found.classes]
    assert figures == [(1, 2, 0.5, 1.0), (2, 0, None, 0.0), (0, 1, 0.0, None)]
    assert found.balanced_accuracy == 0.5
    assert found.top_5 is None


def test_the_worst_mistakes_come_first() -> None:
    probabilities = torch.tensor(
        [[0.82, 0.18, 0.0], [0.1, 0.8, 0.1], [0.45, 0.45, 0.1], [0.05, 0.9, 0.05]]
    )
    labels = torch.tensor([1, 2, 1, 1])
    found = make_report(
        ["a", "b", "c"],
        probabilities,
        labels,
        HOW,
        rows=torch.tensor([7, 3, 5, 1]),
        paths=["x.jpg", None, "y.jpg", "z.jpg"],
    )
    assert [mistake.index for mistake in found.mistakes] == [3, 7, 5]  # by 0.7, 0.64 and 0.0
    worst = found.mistakes[0]
    assert (worst.path, worst.true, worst.predicted) == (None, "c", "b")
    assert worst.true_probability == pytest.approx(0.1)
    assert worst.predicted_probability == pytest.approx(0.8)
    assert [label for label, _ in worst.top] == ["b", "a", "c"]
    assert [share for _, share in worst.top] == pytest.approx([0.8, 0.1, 0.1])
    assert found.mistakes[1].path == "x.jpg"
    assert found.mistakes[2].predicted == "a"  # of equal ones the first is predicted


def test_as_many_mistakes_are_kept_as_can_be_looked_at() -> None:
    found = make_report(LABELS, *scores(2000), HOW)
    assert len(found.mistakes) == MOST_MISTAKES
    assert sum(pair.count for pair in found.confusions) == round(2000 * (1 - found.accuracy))


def test_bins_make_up_the_calibration_error(report: Report) -> None:
    gaps = [part.images * abs(part.confidence - part.accuracy) for part in report.bins]
    assert sum(part.images for part in report.bins) == 300
    assert math.fsum(gaps) / 300 == pytest.approx(report.calibration_error)


def test_json_holds_all_of_it(report: Report, tmp_path: Path) -> None:
    file = tmp_path / "new" / "report.json"
    report.to_json(file)
    values = json.loads(file.read_text("utf-8"))
    assert values == json.loads(json.dumps(report.to_dict()))
    assert values["estimate"]["sentence"] == "held out: by hand"
    assert values["interval"] == list(report.interval)
    assert values["classes"][0]["recall"] == report.classes[0].recall
    assert values["confusions"][0]["count"] == report.confusions[0].count
    assert values["bins"][0]["low"] == report.bins[0].low
    assert values["mistakes"][0]["top"][0] == list(report.mistakes[0].top[0])
    assert "image_of" not in values


def test_the_text_has_the_figures_and_the_weakest_rows(report: Report) -> None:
    text = str(report)
    low, high = report.interval
    first, *_ = text.splitlines()
    expected = f"accuracy {report.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})"
    assert " ".join(first.split()) == expected
    assert "\nHeld out: by hand.\n" in text
    weakest = min(report.classes, key=lambda row: row.recall or 0)
    row = text.splitlines()[text.splitlines().index("classes, the weakest first") + 2]
    assert row.split()[0] == weakest.label
    assert f"most often taken for another class (10 of {len(report.confusions)})" in text
    assert max(map(len, text.splitlines())) < 100


def test_it_is_plain_which_class_is_the_true_one(tmp_path: Path) -> None:
    """Three ants of four are taken for bees, and no bee for an ant."""
    predicted = torch.tensor([1, 1, 1, 0, 1])
    probabilities = 0.2 + 0.6 * torch.nn.functional.one_hot(predicted, 2)
    found = make_report(["ant", "bee"], probabilities, torch.tensor([0, 0, 0, 0, 1]), HOW)
    lines = [" ".join(line.split()) for line in str(found).splitlines()]
    place = lines.index("most often taken for another class")
    assert lines[place + 1] == "true class predicted class images of the true class"
    assert lines[place + 2 : place + 4] == ["ant bee 3 75.0%", ""]
    place = lines.index("worst mistakes")
    assert lines[place + 1] == "image true class predicted class"
    assert lines[place + 2] == "image 0 ant 20.0% bee 80.0%"
    assert ">true ant, predicted bee</th><td style='text-align: left'>3<" in found._repr_html_()
    found.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    words = re.sub(r"<[^>]*>", " ", page[page.index("<h2>Confusions") :])
    assert re.search(r"true predicted images share ant bee 3 75.0%", " ".join(words.split()))
    assert "<i>true</i><b>ant</b><span>20.0%</span>" in page
    assert "<i>predicted</i><b>bee</b><span>80.0%</span>" in page


def test_the_text_shows_what_would_act_on_a_terminal() -> None:
    found = make_report(
        ["a\x1b[2J", "b"], torch.tensor([[0.1, 0.9]]), torch.tensor([0]), HOW, paths=["x\x07.jpg"]
    )
    assert "\x1b" not in str(found)
    assert "a\\x1b[2J" in str(found)
    assert "x\\x07.jpg" in str(found)


def test_the_repr_is_one_line(report: Report) -> None:
    low, high = report.interval
    figures = f"accuracy {report.accuracy:.1%}, 95% interval {low:.1%} to {high:.1%}"
    assert repr(report) == f"Report(300 images: {figures}; held out)"
    folded = make_report(LABELS, *scores(), Estimate("x", folds=4))
    assert repr(folded).endswith("; cross-validated in 4 folds)")


def test_labels_of_many_classes_need_no_matrix_of_all_pairs() -> None:
    names = [f"class {i}" for i in range(20_000)]
    probabilities = torch.zeros(3, 20_000)
    probabilities[:, 19_999] = 1.0
    found = make_report(names, probabilities, torch.tensor([0, 0, 19_999]), HOW)
    (pair,) = found.confusions
    assert (pair.true, pair.predicted, pair.count) == ("class 0", "class 19999", 2)


def test_what_does_not_fit_is_refused(tmp_path: Path, report: Report) -> None:
    probabilities, labels = scores()
    with pytest.raises(ConfigError, match=r"of 2 classes needs probabilities \(N, 2\)"):
        make_report(["a", "b"], probabilities, labels, HOW)
    with pytest.raises(ConfigError, match="not empty"):
        make_report(LABELS, probabilities[:0], labels[:0], HOW)
    with pytest.raises(ConfigError, match="needs probabilities"):
        make_report(LABELS, 2 * probabilities, labels, HOW)
    for write in (report.to_json, report.to_html):
        with pytest.raises(OutputError, match="a folder of that name is in the way"):
            write(tmp_path)
