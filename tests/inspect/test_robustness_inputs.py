"""Robustness sees images as often as a calibration did, and refuses what it cannot measure."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import CLIP, ImageClassifier, fit_head
from clipkit.errors import ConfigError
from clipkit.inspect import Blur, Sample, robustness
from clipkit.inspect.corruptions import sample_of
from clipkit.tokenizer import Tokenizer
from tests.helpers.toy_classifier import NAMES, toy_model
from tests.helpers.toy_data import COLORS, two_colors

LABELS = [place % 4 for place in range(12)]


@pytest.fixture(scope="module")
def toy(small_tokenizer: Tokenizer) -> CLIP:
    return toy_model(small_tokenizer)


def draw(seed: int) -> list[Image.Image]:
    """Return images with sides that differ, so that views of them do."""
    others = np.random.default_rng(seed).integers(0, 256, (12, 3)).tolist()
    return [
        two_colors(COLORS[NAMES[label]], tuple(other), seed + place)
        for place, (label, other) in enumerate(zip(LABELS, others, strict=True))
    ]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return draw(0)


def test_images_are_seen_as_often_as_those_of_a_calibration(
    toy: CLIP, images: list[Image.Image]
) -> None:
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    features = classifier.embed(draw(100))
    classifier.head, _ = fit_head(
        features, torch.tensor(LABELS), classifier.zero_shot_head, "gaussian"
    )
    classifier.calibrate(draw(200), LABELS, views=10)
    found = robustness(classifier, images, LABELS, corruptions=[Blur((0.1,))])
    expected = classifier.probabilities(images).max(dim=1).values.mean()
    assert found.confidence == pytest.approx(float(expected), abs=1e-6)
    single = classifier.probabilities(classifier.embed(images)).max(dim=1).values.mean()
    assert abs(found.confidence - float(single)) > 1e-4
    blurred = [
        Blur()(image, 0.1, sample_of(place, label, NAMES, name="blur"))
        for place, (image, label) in enumerate(zip(images, LABELS, strict=True))
    ]
    expected = classifier.probabilities(blurred).max(dim=1).values.mean()
    assert found.rows[0].confidence == pytest.approx(float(expected), abs=1e-6)


class Own:
    """Stand for a corruption of the caller's own."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update({"name": "own", "unit": "much", "severities": (1,), **attributes})

    def __call__(self, image: Image.Image, severity: float, sample: Sample, /) -> Image.Image:
        return image


class Nameless:
    unit, severities = "much", (1,)

    def __call__(self, image: Image.Image, severity: float, sample: Sample, /) -> Image.Image:
        return image


OWN_ERROR = "own needs severities, one or more finite numbers, such as"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "a seed, an integer of at least 0, not -1"),
        ({"seed": "a"}, "a seed, an integer of at least 0, not 'a'"),
        ({"seed": True}, "a seed, an integer of at least 0, not True"),
        ({"classifier": None}, "measures a clipkit.ImageClassifier, such as .*, not None"),
        ({"corruptions": [Nameless()]}, "an object to call with a name, .* such as Blur"),
        ({"corruptions": [Own(unit=3)]}, "an object to call with a name"),
        ({"corruptions": [Blur]}, "such as Blur.*, not <class"),
        ({"corruptions": ["blur"]}, "an object to call .*, not 'blur'"),
        ({"corruptions": [Own(severities=())]}, OWN_ERROR),
        ({"corruptions": [Own(severities=None)]}, OWN_ERROR),
        ({"corruptions": [Own(severities=("1",))]}, OWN_ERROR),
        ({"corruptions": [Own(severities=(float("nan"),))]}, OWN_ERROR),
    ],
)
def test_what_cannot_be_measured_is_refused(
    toy: CLIP, images: list[Image.Image], options: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"classifier": ImageClassifier.zero_shot(toy, NAMES), **options}
    with pytest.raises(ConfigError, match=message):
        robustness(images=images, labels=LABELS, **given)


def test_severities_are_any_row_of_numbers(toy: CLIP, images: list[Image.Image]) -> None:
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    for severities in (range(2), np.array([-1.0, 0.0])):
        own: Any = Own(severities=severities)
        found = robustness(classifier, images, LABELS, corruptions=[own])
        assert [row.severity for row in found.rows] == list(severities)


@pytest.mark.parametrize(
    ("index", "seed", "message"),
    [
        (0, -1, "sample_of needs a seed, an integer of at least 0, not -1"),
        (0, "1", "a seed, an integer of at least 0, not '1'"),
        (-1, 0, "the place of an image, an integer of at least 0, not -1"),
        (0.5, 0, "an integer of at least 0, not 0.5"),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused(index: Any, seed: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_of(index, 0, NAMES, seed=seed)
