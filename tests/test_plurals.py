"""Numbers agree with their nouns, in one and in many."""

from pathlib import Path

import pytest
import torch

from clipkit import CLIP, Features, ImageClassifier, Pairs
from clipkit.classify.calibration import Calibration
from clipkit.classify.figures import Estimate
from clipkit.classify.report import make_report
from clipkit.plurals import number_of, number_of_classes, size_in_words


def test_numbers_agree_with_their_nouns() -> None:
    assert number_of(1, "image") == "1 image"
    assert number_of(0, "image") == "0 images"
    assert number_of(2, "class", "classes") == "2 classes"
    assert number_of(1200, "image") == "1,200 images"
    assert [number_of_classes(number) for number in (0, 1, 2)] == [
        "0 classes",
        "1 class",
        "2 classes",
    ]


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (22_665_580, "22.7 MB"),
        (605_109_252, "605 MB"),
        (999_700_000, "1.0 GB"),
        (10_158_000_000, "10.2 GB"),
    ],
)
def test_sizes_have_three_digits(number: int, shown: str) -> None:
    assert size_in_words(number) == shown


def test_one_image_of_one_class_is_told_so() -> None:
    one = torch.ones(1)
    report = make_report(["cat"], one[None], torch.tensor([0]), Estimate("held out"))
    pairs = Pairs([Path("a.jpg")], [["a cat"]], [0], ["cat"])
    features = Features(one[None], torch.tensor([0]), ["a.jpg"], [])
    calibration = Calibration(scores=one, confidences=one)
    shown = [repr(report), str(report), report._repr_html_(), repr(pairs), repr(features)]
    shown.append(repr(calibration))
    assert repr(pairs) == "Pairs(1 image, 1 caption, 1 class)"
    assert repr(features) == "Features(1 x 1, labels: 1 class)"
    assert repr(calibration) == "Calibration(1 held-out image; temperature 1)"
    assert repr(report).startswith("Report(1 image: ")
    for text in shown:
        assert "1 images" not in text
        assert "1 classes" not in text


def test_a_classifier_of_one_class_is_told_so() -> None:
    classifier = ImageClassifier.zero_shot(CLIP.from_pretrained("tiny"), ["cat"])
    classifier.provenance["counts"] = [1]
    classifier.calibration = Calibration(scores=torch.ones(1), confidences=torch.ones(1))
    assert repr(classifier).startswith("ImageClassifier(1 class: cat; zero shot on 1 image, calib")
    assert "on 1 held-out image<" in classifier._repr_html_()
