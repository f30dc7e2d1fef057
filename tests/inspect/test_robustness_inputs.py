"""Robustness sees images as often as a calibration did, and refuses what it cannot measure."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import CLIP, ImageClassifier, fit_head
from clipkit.inspect import Blur, robustness
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
