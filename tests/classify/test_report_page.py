"""A report's page holds itself, escapes every name, and has the images of the worst mistakes."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from clipkit import CLIP, ImageClassifier, Report
from clipkit.classify.figures import Estimate
from clipkit.classify.report import make_report
from tests.helpers.pages import CHROMIUM, Page, check_loads_nothing, run_in_browser
from tests.helpers.toy_classifier import NAMES, ColoredImages
from tests.helpers.toy_data import two_colors

EVIL = "<script>alert('x')</script> & \"q\" \u202egpj.exe"


def report_of(labels: list[str], paths: Sequence[str | None] | None = None) -> Report:
    """Return a report of 40 images of three classes, about half of which are recognized."""
    random = torch.Generator().manual_seed(1)
    truth = torch.arange(40) % 3
    logits = torch.randn(40, 3, generator=random)
    logits[torch.arange(40), truth] += 1
    estimate = Estimate("held out: by <hand>", skipped=[(f"{EVIL}.jpg", f"cannot read {EVIL}")])
    return make_report(labels, logits.softmax(dim=1), truth, estimate, paths=paths)


def page_of(report: Report, folder: Path, title: str = "A <title>") -> tuple[str, Page]:
    report.to_html(folder / "report.html", title=title)
    text = (folder / "report.html").read_text("utf-8")
    return text, Page(text)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    file = tmp_path / "secret" / "place" / "folder" / "photo.png"
    file.parent.mkdir(parents=True)
    two_colors((200, 10, 10), (10, 10, 200), seed=0, size=(600, 300)).save(file)
    return str(file)


def test_the_page_loads_nothing(tmp_path: Path, photo: str) -> None:
    text, page = page_of(report_of(["a", "b", "c"], [photo] * 40), tmp_path)
    check_loads_nothing(text, page)
    assert page.named("a") == []
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [
        *page.named("meta")
    ]
    assert "prefers-color-scheme: dark" in text


def test_every_name_is_escaped(tmp_path: Path) -> None:
    report = report_of([EVIL, "<b>", "'&amp;"], [f"{EVIL}/{i}.jpg" for i in range(40)])
    text, page = page_of(report, tmp_path, title=EVIL)
    assert page.open == []
    assert len(page.named("script")) == 1
    assert page.named("b")  # of ours, in mistakes
    assert "alert('x')" not in text
    assert "\u202e" not in text
    shown = EVIL.replace("\u202e", "\\u202e")
    assert page.texts.count(shown) > 3
    assert "'&amp;" in page.texts
    notebook = Page(report._repr_html_())
    assert notebook.open == []
    assert notebook.named("script") == []
    assert any(shown in part for part in notebook.texts)


def test_the_figures_are_on_the_page(tmp_path: Path) -> None:
    report = report_of(["ant", "bee", "cat"])
    _, page = page_of(report, tmp_path)
    low, high = report.interval
    assert f"95% interval {low:.1%} to {high:.1%}" in page.texts
    for share in (report.accuracy, report.balanced_accuracy, report.calibration_error):
        assert f"{share:.1%}" in page.texts
    assert any(part.startswith("Held out: by <hand>. 1 image could not be") for part in page.texts)
    values = [float(own["data-value"] or 0) for own in page.named("td") if "data-value" in own]
    recalls = [row.recall or 0 for row in report.classes]
    assert values[2:9:3] == pytest.approx(sorted(recalls), abs=1e-5)  # the weakest first
    assert len(page.named("circle")) == len(report.bins)
    assert len(page.named("rect")) == len(report.bins)


def test_the_diagram_has_each_bin_where_it_belongs(tmp_path: Path) -> None:
    report = report_of(["ant", "bee", "cat"])
    _, page = page_of(report, tmp_path)
    grid = [own for own in page.named("line") if own.get("class") == "axis"]
    left = min(float(own["x1"] or 0) for own in grid)
    right = max(float(own["x2"] or 0) for own in grid)
    top = min(float(own["y1"] or 0) for own in grid)
    side = right - left
    for circle, part in zip(page.named("circle"), report.bins, strict=True):
        assert (float(circle["cx"] or 0) - left) / side == pytest.approx(part.confidence, abs=1e-3)
        assert 1 - (float(circle["cy"] or 0) - top) / side == pytest.approx(part.accuracy, abs=1e-3)


def test_a_path_is_shown_by_its_end(tmp_path: Path, photo: str) -> None:
    text, page = page_of(report_of(["a", "b", "c"], [photo] * 40), tmp_path)
    assert "place/folder/photo.png" in page.texts
    assert str(tmp_path) not in text


@pytest.mark.parametrize("name", ["broken.jpg", "bro\nken's.jpg"])
def test_the_path_of_an_unreadable_image_is_shown_by_its_end(
    toy: CLIP, tmp_path: Path, photo: str, name: str
) -> None:
    """In the table, the problem in it, and the sentence above."""
    broken = Path(photo).with_name(name)
    broken.write_bytes(b"junk")
    with pytest.warns(UserWarning, match="1 of 2 images cannot be read"):
        report = ImageClassifier.zero_shot(toy, NAMES).report([broken, photo], ["blue", "green"])
    text, page = page_of(report, tmp_path)
    assert str(tmp_path) not in text
    assert "secret" not in text
    shown = name.replace("\n", "\\n")
    assert sum(f"place/folder/{shown}" in part for part in page.texts) == 3
    assert report.estimate.skipped[0][0] == str(broken)  # and so in `to_json` and in print


def test_no_mistake_needs_no_tables_of_them(tmp_path: Path) -> None:
    report = make_report(["a", "b"], torch.eye(2), torch.arange(2), Estimate("x"))
    _, page = page_of(report, tmp_path)
    assert page.open == []
    assert "Worst mistakes" not in page.texts
    assert "No image was taken for another class." in page.texts


def image_in(uri: str | None) -> Image.Image:
    assert uri is not None
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))


class Unlabeled(Dataset[Image.Image]):
    """Give images of noise around a color, without files."""

    def __init__(self) -> None:
        self.images = ColoredImages([0, 1, 2, 3] * 3, labeled=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return self.images[index]


@pytest.mark.parametrize("kind", ["list", "tuples", "data set"])
def test_images_without_files_are_on_the_page(toy: CLIP, tmp_path: Path, kind: str) -> None:
    labels = [1, 2, 3, 0] * 3  # all wrong, or nearly
    images = [Unlabeled()[i] for i in range(12)]
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    if kind == "tuples":
        report = classifier.report(list(zip(images, labels, strict=True)))
    else:
        report = classifier.report(images if kind == "list" else Unlabeled(), labels)
    _, page = page_of(report, tmp_path)
    shown = [image_in(own["src"]) for own in page.named("img")]
    assert len(shown) == len(report.mistakes) > 6
    for copy, mistake in zip(shown, report.mistakes, strict=True):
        mean = np.asarray(images[mistake.index]).mean(axis=(0, 1))
        assert np.asarray(copy).mean(axis=(0, 1)) == pytest.approx(mean, abs=6)
    assert f"image {report.mistakes[0].index}" in page.texts


def test_features_have_no_images(
    classifier: ImageClassifier, few: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    _, page = page_of(classifier.report(*few), tmp_path)
    assert page.named("img") == []
    assert len(page.named("li")) == len(classifier.report(*few).mistakes)


SORT = """
const results = [];
const rows = () => [...document.querySelectorAll("tbody")[0].rows].map(r => r.cells[0].textContent);
const heads = document.querySelectorAll("thead")[0].querySelectorAll("th");
results.push(rows());
for (const i of [0, 0, 3]) {
  heads[i].querySelector("button").click();
  results.push([heads[i].getAttribute("aria-sort"), ...rows()]);
}
results.push([document.documentElement.scrollWidth <= innerWidth]);
document.title = JSON.stringify(results);
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_shows_and_sorts_it(tmp_path: Path, photo: str) -> None:
    report = report_of(["bee", "ant", "cat"], [photo] * 40)
    text, _ = page_of(report, tmp_path)
    title = run_in_browser(text, SORT, tmp_path / "sorted.html")
    first, by_name, back, by_recall, fits = json.loads(title)
    recall = {row.label: row.recall or 0 for row in report.classes}
    weakest = sorted(recall, key=lambda label: recall[label])
    assert first == weakest
    assert by_name == ["ascending", "ant", "bee", "cat"]
    assert back == ["descending", "cat", "bee", "ant"]
    assert by_recall == ["descending", *weakest[::-1]]
    assert fits == [True]
