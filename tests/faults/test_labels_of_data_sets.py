"""Test that the integers of a data set are read through its own classes (kind E4)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from clipkit import (
    CLIP,
    ImageClassifier,
    Pairs,
    extract_features,
    load_features,
    read_folder,
)
from clipkit.classify.evaluate import classifier_accuracy, zero_shot
from clipkit.data.classes import classes_of
from clipkit.errors import DataError
from tests.helpers.toy_data import COLORS, two_colors

SORTED = ["blue", "dark red", "green", "white"]  # as folders are
OTHER = ["white", "green", "dark red", "blue"]


class Colors(Dataset[Any]):
    """Give images of colors with integers, as the data sets of torchvision do."""

    def __init__(self, count: int = 12, **names: Any) -> None:
        self.count = count
        for name, value in names.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        color = COLORS[SORTED[index % 4]]
        return two_colors(color, color, seed=index), index % 4


class Prepared(Colors):
    """Give tensors."""

    model: CLIP

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return self.model.preprocess(image), label


class Label:
    names = SORTED


SYNONYMS = [("blue", "navy"), ("crimson", "dark red"), ("green",), ("white", "snow")]
INDICES = {"navy": 0, "blue": 0, "dark red": 1, "green": 2, "white": 3}


def named(model: CLIP) -> dict[str, Any]:
    """Return data sets that name their classes, each in another way."""
    colors = Colors(classes=SORTED)
    return {
        "classes": colors,
        "underscores": Colors(classes=["blue", "dark_red", "green", "white"]),
        "synonyms": Colors(classes=SYNONYMS),
        "class_to_idx": Colors(classes=OTHER, class_to_idx=INDICES),
        "hub": Colors(features={"image": None, "label": Label}),
        "subset": Subset(colors, range(12)),
        "joined": ConcatDataset([Colors(6, classes=SORTED), Subset(colors, range(6, 12))]),
        "loader": DataLoader(Prepared(classes=SORTED, model=model), batch_size=4),
    }


KINDS = list(named(None))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", KINDS)
def test_integers_mean_the_classes_of_the_data_set(model: CLIP, folder: Path, kind: str) -> None:
    classifier = ImageClassifier.zero_shot(model, OTHER)
    classifier.fit(named(model)[kind], method="gaussian")
    assert classifier.provenance["counts"] == [3, 3, 3, 3]
    for prediction in classifier.predict(folder):
        assert prediction.path is not None
        assert prediction.label.replace(" ", "_") == Path(prediction.path).parent.name


def test_a_data_set_may_lack_some_classes_of_the_classifier(model: CLIP) -> None:
    classifier = ImageClassifier.zero_shot(model, ["black", *OTHER])
    classifier.fit(Colors(classes=SORTED), method="gaussian")
    assert classifier.provenance["counts"] == [0, 3, 3, 3, 3]


def test_unknown_classes_are_listed_before_any_work(
    model: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CLIP, "encode_image", lambda *_: pytest.fail("encoded in vain"))
    classifier = ImageClassifier.zero_shot(model, ["blue", "white", "red"])
    message = (
        "classes that the classifier has not: 'dark red', 'green'; its own are 'blue', 'white', "
        "'red'. Pass labels, one for each image, to say what is meant"
    )
    with pytest.raises(DataError, match=message):
        classifier.fit(Colors(classes=SORTED))
    twins = ImageClassifier.zero_shot(model, ["blue", "dark red", "green"])
    with pytest.raises(DataError, match="several classes of the data set are one class"):
        twins.fit(Colors(classes=["blue", "green", "dark red", "dark_red"]))


def test_a_part_of_a_data_set_needs_its_own_classes_alone(model: CLIP) -> None:
    two = Subset(Colors(classes=SORTED), [0, 1, 4, 5])
    classifier = ImageClassifier.zero_shot(model, ["dark red", "blue"])
    classifier.fit(two, method="gaussian")
    assert classifier.provenance["counts"] == [2, 2]
    assert classifier.predict(two)[0].label == "blue"
    with pytest.raises(DataError, match="that the classifier has not: 'green'"):
        classifier.fit(Subset(Colors(classes=SORTED), [0, 1, 2]))


def test_an_integer_without_a_name_is_refused(model: CLIP) -> None:
    classifier = ImageClassifier.zero_shot(model, ["green", "dark red", "blue"])
    with pytest.raises(DataError, match=r"names for 3 classes, none for \[3\]"):
        classifier.fit(Colors(classes=SORTED[:3]))


def test_names_that_say_nothing_of_the_integers_are_not_asked(model: CLIP) -> None:
    assert classes_of(Colors(classes=SORTED, target_transform=lambda label: 3 - label)) is None
    assert classes_of(Colors(classes=4)) is None
    assert classes_of(Colors(classes=[1, 2])) is None
    assert classes_of(Colors()) is None
    assert classes_of(["a.png"]) is None
    classifier = ImageClassifier.zero_shot(model, OTHER).fit(Colors(), method="gaussian")
    assert classifier.predict(Colors())[0].label == "white"  # integers are the classifier's


def test_joined_data_sets_that_differ_are_refused(model: CLIP) -> None:
    joined = ConcatDataset([Colors(classes=SORTED), Colors(classes=OTHER)])
    classifier = ImageClassifier.zero_shot(model, SORTED)
    with pytest.raises(DataError, match="name their classes in different ways"):
        classifier.fit(joined)
    labels = [SORTED[i % 4] for i in range(24)]
    classifier.fit(joined, labels, "gaussian")
    assert classifier.provenance["counts"] == [6, 6, 6, 6]


def test_extracted_features_remember_the_classes_of_their_data_set(
    model: CLIP, tmp_path: Path
) -> None:
    out = tmp_path / "features.safetensors"
    extracted = extract_features(model, Colors(classes=SYNONYMS), out=out)
    again = extract_features(model, Colors(classes=SYNONYMS), out=out)
    for found in (extracted, again, load_features(out)):
        assert found.class_names == {i: list(names) for i, names in enumerate(SYNONYMS)}
        classifier = ImageClassifier.zero_shot(model, OTHER).fit(found, method="gaussian")
        assert classifier.predict(Colors())[0].label == "blue"
        with pytest.raises(DataError, match="that the classifier has not: 'green', 'white'"):
            ImageClassifier.zero_shot(model, ["navy", "crimson"]).fit(found)
        with pytest.raises(DataError, match="numbers its classes in another way"):
            classifier.fit(found, found.labels)
    assert extract_features(model, Colors()).class_names is None


def test_integers_that_may_mean_either_are_refused(model: CLIP) -> None:
    data = Colors(classes=SORTED)
    integers = [index % 4 for index in range(12)]
    classifier = ImageClassifier.zero_shot(model, OTHER)
    with pytest.raises(DataError, match="numbers its classes in another way.*: pass names"):
        classifier.fit(data, integers)
    classifier.fit(data, [SORTED[integer] for integer in integers], "gaussian")
    assert classifier.predict(data)[0].label == "blue"
    same = ImageClassifier.zero_shot(model, SORTED).fit(data, integers, "gaussian")
    assert same.predict(data)[0].label == "blue"
    digits = Colors(classes=["0 - zero", "1 - one", "2 - two", "3 - three"])
    own = ImageClassifier.zero_shot(model, SORTED).fit(digits, integers, "gaussian")
    assert own.predict(digits)[0].label == "blue"


# Pairs


def test_pairs_are_fitted_and_measured_by_the_names_of_their_classes(
    model: CLIP, folder: Path
) -> None:
    pairs = read_folder(folder)
    classifier = ImageClassifier.zero_shot(model, OTHER).fit(pairs, method="gaussian")
    assert classifier.provenance["counts"] == [3, 3, 3, 3]
    assert classifier_accuracy(classifier, pairs).figures == {"accuracy": 1.0}
    plain = Pairs(pairs.files, pairs.captions, pairs.labels)  # indices of the classifier's classes
    assert classifier_accuracy(classifier, plain).figures == {"accuracy": 0.0}
    fewer = ImageClassifier.zero_shot(model, ["blue", "white"])
    for verb in (fewer.fit, lambda given: classifier_accuracy(fewer, given)):
        with pytest.raises(DataError, match="no class .* called 'dark.red', 'green'"):
            verb(pairs)


def test_zero_shot_is_the_same_in_any_order_of_names(model: CLIP, folder: Path) -> None:
    pairs = read_folder(folder)
    figures = zero_shot(model, pairs).figures
    assert zero_shot(model, pairs, OTHER).figures == figures
    prompts = {name: f"a photo of a {name}." for name in OTHER}
    assert zero_shot(model, pairs, prompts, None).figures == figures
    with pytest.raises(DataError, match="no class .* called 'blue'"):
        zero_shot(model, pairs, [*OTHER[:3], "ocean"])


def test_torchvision_folders_mean_their_own_classes(model: CLIP, folder: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    classifier = ImageClassifier.zero_shot(model, OTHER)
    classifier.fit(datasets.ImageFolder(folder), method="gaussian")
    assert classifier.predict(folder / "blue" / "00.png").label == "blue"
    assert torch.equal(
        classifier.probabilities(folder),
        ImageClassifier.zero_shot(model, OTHER)
        .fit(read_folder(folder), method="gaussian")
        .probabilities(folder),
    )


@pytest.mark.parametrize("form", ["tensor", "array", "scalar array"])
def test_a_label_may_be_a_single_integer_of_an_array(model: CLIP, form: str) -> None:
    def wrap(label: int) -> Any:
        return {
            "tensor": torch.tensor([label]),
            "array": np.array([label]),
            "scalar array": np.array(label),
        }[form]

    items = [(image, wrap(label)) for image, label in map(Colors(8).__getitem__, range(8))]
    classifier = ImageClassifier.zero_shot(model, SORTED).fit(items, method="gaussian")
    assert classifier.provenance["counts"] == [2, 2, 2, 2]


def test_joined_parts_need_their_own_classes_alone(model: CLIP) -> None:
    colors = Colors(classes=SORTED)
    two = ConcatDataset([Subset(colors, [0, 1]), Subset(colors, [4, 5])])
    classifier = ImageClassifier.zero_shot(model, ["dark red", "blue"])
    classifier.fit(two, method="gaussian")
    assert classifier.provenance["counts"] == [2, 2]
