"""Robustness is what a classifier says of corrupted images, whatever the batches are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

import clipkit
from clipkit import CLIP, ImageClassifier
from clipkit.classify.metrics import wilson_interval
from clipkit.errors import ConfigError, DataError, ImageError
from clipkit.inspect import (
    Blur,
    GaussianNoise,
    Masking,
    Robustness,
    Sample,
    TypographicAttack,
    robustness,
)
from clipkit.inspect.corruptions import sample_of
from clipkit.tokenizer import Tokenizer
from tests.helpers.toy_classifier import NAMES, ColoredImages, toy_model
from tests.helpers.toy_data import COLORS, color_folders, two_colors

LABELS = [0, 1, 2, 3, 1, 2]
QUICK = [GaussianNoise((30, 90)), TypographicAttack((0.1, 0.3))]


@pytest.fixture(scope="module")
def toy(small_tokenizer: Tokenizer) -> CLIP:
    return toy_model(small_tokenizer)


@pytest.fixture(scope="module")
def classifier(toy: CLIP) -> ImageClassifier:
    """Return a classifier that tells colors apart, fitted on none of the images below."""
    support = [
        two_colors(COLORS[name], COLORS[name], seed=900 + i) for i in range(4) for name in NAMES
    ]
    return ImageClassifier.zero_shot(toy, NAMES).fit(support, NAMES * 4)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [
        two_colors(COLORS[NAMES[label]], COLORS[NAMES[label]], seed=i)
        for i, label in enumerate(LABELS)
    ]


class Recolored:
    """Paint images in the color of the next class, as a corruption of the caller's own."""

    name, unit, severities = "paint", "coats", (1.0, 2.0)

    def __call__(self, image: Image.Image, severity: float, sample: Sample, /) -> Image.Image:
        return Image.new("RGB", image.size, COLORS[sample.class_names[(sample.label + 1) % 4]])


def test_rows_are_what_the_classifier_says_of_images_corrupted_by_hand(
    classifier: ImageClassifier, images: list[Image.Image]
) -> None:
    found = robustness(classifier, images, LABELS, corruptions=QUICK, seed=5)
    rows = iter(found.rows)
    for corruption in QUICK:
        for severity in corruption.severities:
            corrupted: list[Image.Image] = []
            targets: list[int] = []
            for index, (image, label) in enumerate(zip(images, LABELS, strict=True)):
                sample = sample_of(index, label, NAMES, name=corruption.name, seed=5)
                corrupted.append(corruption(image, severity, sample))
                again = sample_of(index, label, NAMES, name=corruption.name, seed=5)
                targets.append(TypographicAttack().target(again) or 0)
            best = classifier.probabilities(corrupted).max(dim=1)
            right = (best.indices == torch.tensor(LABELS)).double()
            row = next(rows)
            assert (row.corruption, row.severity) == (corruption.name, severity)
            assert (row.unit, row.images) == (corruption.unit, 6)
            assert row.accuracy == float(right.mean())
            assert row.confidence == pytest.approx(float(best.values.mean()), abs=1e-6)
            assert row.interval == wilson_interval(int(right.sum()), 6)
            fooled = float((best.indices == torch.tensor(targets)).double().mean())
            assert row.fooled == (fooled if corruption.name == "text" else None)


def test_clean_figures_are_those_of_the_classifier(
    classifier: ImageClassifier, images: list[Image.Image]
) -> None:
    found = robustness(classifier, images, LABELS, corruptions=QUICK)
    best = classifier.probabilities(images).max(dim=1)
    hits = int((best.indices == torch.tensor(LABELS)).sum())
    assert found.images == 6
    assert found.accuracy == hits / 6
    assert found.interval == wilson_interval(hits, 6)
    assert found.confidence == pytest.approx(float(best.values.mean()), abs=1e-6)
    assert all(row.clean_accuracy == found.accuracy for row in found.rows)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 64])
def test_batches_change_nothing(
    classifier: ImageClassifier, images: list[Image.Image], batch_size: int
) -> None:
    expected = robustness(classifier, images, LABELS, corruptions=[Masking((0.2, 0.6))])
    found = robustness(
        classifier, images, LABELS, corruptions=[Masking((0.2, 0.6))], batch_size=batch_size
    )
    assert_alike(found, expected)


def test_processes_change_nothing(classifier: ImageClassifier, images: list[Image.Image]) -> None:
    expected = robustness(classifier, images, LABELS, corruptions=QUICK)
    found = robustness(classifier, images, LABELS, corruptions=QUICK, batch_size=4, workers=2)
    assert_alike(found, expected)


def assert_alike(found: Robustness, expected: Robustness) -> None:
    """Fail unless two measurements are the same but for float noise of confidence."""
    for first, second in zip(found.rows, expected.rows, strict=True):
        assert first.confidence == pytest.approx(second.confidence, abs=1e-6)
        assert first.accuracy == second.accuracy
        assert first.fooled == second.fooled


def test_other_seeds_draw_others(classifier: ImageClassifier, images: list[Image.Image]) -> None:
    first = robustness(classifier, images, LABELS, corruptions=QUICK, seed=0)
    second = robustness(classifier, images, LABELS, corruptions=QUICK, seed=1)
    assert first.rows[0].confidence != second.rows[0].confidence
    assert (first.seed, second.seed) == (0, 1)
    assert first.confidence == pytest.approx(second.confidence, abs=1e-6)


def test_a_corruption_of_the_callers_own(
    classifier: ImageClassifier, images: list[Image.Image]
) -> None:
    found = robustness(classifier, images, LABELS, corruptions=[Recolored()])
    assert found.accuracy == 1.0
    assert [row.accuracy for row in found.rows] == [0.0, 0.0]
    assert [row.clean_accuracy for row in found.rows] == [1.0, 1.0]
    assert found.mean_accuracy() == {"paint": 0.0}


def test_each_image_is_read_once(classifier: ImageClassifier) -> None:
    read: list[int] = []

    class Counting(ColoredImages):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return super().__getitem__(index)

    found = robustness(classifier, Counting(LABELS), corruptions=QUICK, batch_size=4)
    assert read == list(range(6))
    assert found.images == 6


def test_labels_come_in_every_form(
    classifier: ImageClassifier, images: list[Image.Image], tmp_path: Path
) -> None:
    expected = robustness(classifier, images, LABELS, corruptions=QUICK)
    names = [NAMES[label] for label in LABELS]
    tuples = list(zip(images, LABELS, strict=True))
    rows = [{"image": image, "label": label} for image, label in tuples]
    generator = (image for image in images)
    for given, labels in ((images, names), (tuples, None), (rows, None), (generator, names)):
        assert_alike(robustness(classifier, given, labels, corruptions=QUICK), expected)
    pairs = clipkit.read_folder(color_folders(tmp_path / "colors", each=1))
    found = robustness(classifier, pairs, corruptions=QUICK)
    assert (found.images, found.accuracy) == (4, 1.0)


class Named(Dataset[Any]):
    """Colored images of a data set that numbers its classes in another way."""

    classes = ["white", "green", "dark_red", "blue"]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        color = COLORS[self.classes[index].replace("_", " ")]
        return two_colors(color, color, seed=index), index


def test_own_labels_of_a_data_set_are_found_by_name(classifier: ImageClassifier) -> None:
    assert robustness(classifier, Named(), corruptions=QUICK).accuracy == 1.0
    part: Subset[Any] = Subset(Named(), [3, 0])
    assert robustness(classifier, part, corruptions=QUICK).accuracy == 1.0
    with pytest.raises(DataError, match="numbers its classes in another way"):
        robustness(classifier, Named(), [0, 1, 2, 3], corruptions=QUICK)


def test_images_that_cannot_be_read_are_left_out(
    classifier: ImageClassifier, images: list[Image.Image], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    given: list[Any] = [images[0], broken, *images[1:]]
    found = robustness(classifier, given, [0, 3, *LABELS[1:]], corruptions=QUICK)
    assert found.images == 6
    assert [name for name, _ in found.skipped] == [str(broken)]
    assert "not read: 1 image; the first: cannot read" in str(found)
    with pytest.raises(DataError, match="no image can be read; the first: cannot read"):
        robustness(classifier, [broken], [0], corruptions=QUICK)


def test_images_that_cannot_be_corrupted_are_left_out_everywhere(
    classifier: ImageClassifier, images: list[Image.Image]
) -> None:
    class Choosy(Recolored):
        def __call__(self, image: Image.Image, severity: float, sample: Sample, /) -> Image.Image:
            if sample.label == 1 and severity == 2:
                raise ImageError("red things cannot have two coats")
            return super().__call__(image, severity, sample)

    found = robustness(classifier, images, LABELS, corruptions=[Choosy()])
    assert found.skipped == [("1", "red things cannot have two coats"), ("4", found.skipped[0][1])]
    assert found.images == 4
    assert [row.images for row in found.rows] == [4, 4]


def test_images_of_the_fit_are_left_out(toy: CLIP, images: list[Image.Image]) -> None:
    fitted = ImageClassifier.zero_shot(toy, NAMES).fit(images[:4], LABELS[:4])
    found = robustness(fitted, images, LABELS, corruptions=QUICK)
    assert (found.images, found.left_out) == (2, 4)
    assert found.rows[0].images == 2
    assert "left out: 4 images; the classifier was fitted on them" in str(found)
    alone = fitted.probabilities(images[4:]).argmax(dim=1).tolist()
    assert found.accuracy == np.mean([a == b for a, b in zip(alone, LABELS[4:], strict=True)])
    with pytest.raises(DataError, match="fitted on all of these 4 images"):
        robustness(fitted, images[:4], LABELS[:4], corruptions=QUICK)


def test_the_name_of_one_class_is_not_measured_on_its_own_images(
    classifier: ImageClassifier, images: list[Image.Image]
) -> None:
    attack = TypographicAttack((0.1,), label="dark red")
    (row,) = robustness(classifier, images, LABELS, corruptions=[attack]).rows
    assert row.images == 4
    assert row.fooled is not None
    with pytest.raises(DataError, match="'text' writes the right label on all images"):
        robustness(classifier, images[1:2], [1], corruptions=[attack])


def test_a_word_that_is_no_class_fools_nobody(
    classifier: ImageClassifier, images: list[Image.Image]
) -> None:
    attack = TypographicAttack((0.1,), word="hello")
    (row,) = robustness(classifier, images, LABELS, corruptions=[attack]).rows
    assert (row.images, row.fooled) == (6, None)


def test_the_table_shows_every_row(classifier: ImageClassifier, images: list[Image.Image]) -> None:
    found = robustness(
        classifier, images, LABELS, corruptions=[*QUICK, Blur((0.25,), name="b\x1b")]
    )
    lines = str(found).splitlines()
    assert lines[0].startswith("6 images: accuracy 100.0% (95% interval 61.0% to 100.0%)")
    assert "noise (standard deviation, of 255 levels)" in lines
    assert [line.split()[0] for line in lines if "%" in line][1:] == [
        "30",
        "90",
        "0.1",
        "0.3",
        "0.25",
    ]
    change = 100 * (found.rows[1].accuracy - 1)
    assert next(line for line in lines if line.split()[:1] == ["90"]).split()[2] == f"{change:+.1f}"
    assert sum("taken for it" in line for line in lines) == 1
    assert "\x1b" not in str(found)
    assert repr(found).startswith("Robustness(6 images: accuracy 100.0%; noise ")


def test_it_is_written_as_json(
    classifier: ImageClassifier, images: list[Image.Image], tmp_path: Path
) -> None:
    found = robustness(classifier, images, LABELS, corruptions=QUICK)
    found.to_json(tmp_path / "robustness.json")
    values = json.loads((tmp_path / "robustness.json").read_text("utf-8"))
    assert values["images"] == 6
    assert values["rows"][3]["fooled"] == found.rows[3].fooled
    assert values["mean_accuracy"] == found.mean_accuracy()


@pytest.mark.parametrize(
    ("corruptions", "message"),
    [
        ([], "needs corruptions, such as"),
        (Blur(), "needs corruptions, such as"),
        ([Blur(), Blur()], "two corruptions are called 'blur': give one of them a name="),
        ([TypographicAttack(label="pink")], "no class of this classifier is called 'pink'"),
    ],
)
def test_impossible_corruptions_are_refused(
    classifier: ImageClassifier, images: list[Image.Image], corruptions: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        robustness(classifier, images, LABELS, corruptions=corruptions)


def test_what_a_corruption_returns_is_checked(
    classifier: ImageClassifier, images: list[Image.Image]
) -> None:
    class Gray(Recolored):
        def __call__(self, image: Image.Image, severity: float, sample: Sample, /) -> Image.Image:
            return image.convert("L")

    with pytest.raises(ConfigError, match="'paint' must return a PIL image in mode RGB, not <PIL"):
        robustness(classifier, images, LABELS, corruptions=[Gray()])


@pytest.mark.parametrize(
    ("given", "labels", "error", "message"),
    [
        (torch.eye(6, 32), LABELS, ConfigError, "these are features: pass the images"),
        (DataLoader(ColoredImages(LABELS)), LABELS, ConfigError, "a DataLoader gives them prep"),
        ([torch.zeros(3, 8, 8)], [0], ConfigError, "these are tensors: pass paths or PIL images"),
        (ColoredImages(LABELS, labeled=False), None, DataError, "come without labels: pass labels"),
        (ColoredImages(LABELS), [0, 1], DataError, "6 images need as many labels, not 2"),
        (ColoredImages(LABELS), [9] * 6, DataError, "from 0 to 3, not from 9 to 9"),
        ([], [], ConfigError, "at least one image"),
    ],
)
def test_images_and_labels_that_cannot_be_used_are_refused(
    classifier: ImageClassifier, given: Any, labels: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        robustness(classifier, given, labels, corruptions=QUICK)


def test_the_classifier_stays_as_it_is(
    classifier: ImageClassifier, images: list[Image.Image]
) -> None:
    before = classifier.probabilities(images)
    found = robustness(classifier, images, LABELS)
    assert [len(rows) for rows in found.by_corruption().values()] == [5] * 5
    assert list(found.mean_accuracy()) == ["masking", "noise", "blur", "JPEG", "text"]
    assert torch.equal(before, classifier.probabilities(images))
