"""clipkit.classify.predictor: NumPy images, bytes and open files are predicted as their files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import ImageClassifier, Prediction
from clipkit.errors import ConfigError, DataError, ImageError
from tests.helpers.toy_classifier import NAMES


@pytest.fixture
def files(color_folder: Path) -> list[Path]:
    return sorted(color_folder.rglob("*.png"))


def pixels(file: Path, mode: str = "RGB") -> Any:
    with Image.open(file) as image:
        return np.asarray(image.convert(mode))


def open_file(file: Path) -> io.BytesIO:
    return io.BytesIO(file.read_bytes())


@pytest.mark.parametrize(
    "make", [pixels, Path.read_bytes, open_file], ids=["pixels", "bytes", "file"]
)
def test_one_image_of_every_form(classifier: ImageClassifier, files: list[Path], make: Any) -> None:
    expected = classifier.predict(files[3])
    prediction = classifier.predict(make(files[3]))
    assert isinstance(prediction, Prediction)
    assert prediction.path is None
    assert torch.equal(prediction.probabilities, expected.probabilities)


def test_a_gray_array_is_one_image_and_floats_are_features(
    classifier: ImageClassifier, files: list[Path]
) -> None:
    gray = pixels(files[0], "L")
    with Image.open(files[0]) as image:
        expected = classifier.predict(image.convert("L"))
    assert torch.equal(classifier.predict(gray).probabilities, expected.probabilities)
    assert len(classifier.predict(np.eye(4, 32))) == 4


def test_channels_in_another_order_are_another_image(
    classifier: ImageClassifier, files: list[Path]
) -> None:
    blue = next(file for file in files if file.parent.name == "blue")
    swapped = classifier.predict(pixels(blue)[:, :, ::-1]).probabilities
    assert not torch.equal(swapped, classifier.predict(blue).probabilities)


def test_many_arrays(classifier: ImageClassifier, files: list[Path]) -> None:
    arrays = [pixels(file) for file in files]
    expected = classifier.embed(files)
    for many in (arrays, np.stack(arrays)):
        assert torch.equal(classifier.embed(many), expected)
        rows = torch.stack([one.probabilities for one in classifier.predict(many)])
        assert torch.equal(rows, classifier.probabilities(files))


def test_a_fit_takes_arrays(classifier: ImageClassifier, files: list[Path]) -> None:
    labels = [NAMES.index(file.parent.name.replace("_", " ")) for file in files]
    expected = classifier.fit(files, labels, strength=1.0).probabilities(files)
    arrays = [pixels(file) for file in files]
    for many in (arrays, np.stack(arrays)):
        classifier.fit(many, labels, strength=1.0)
        assert torch.equal(classifier.probabilities(files), expected)


def test_arrays_that_are_no_images_are_refused(classifier: ImageClassifier) -> None:
    with pytest.raises(ImageError, match=r"cannot use the NumPy array \(float64.* \* 255"):
        classifier.predict(np.zeros((8, 9, 3)))
    with pytest.raises(ImageError, match=r"transpose\(1, 2, 0\) for one of \(3, h, w\)"):
        classifier.predict(np.zeros((3, 8, 9), np.uint8))
    with pytest.raises(DataError, match=r"features \(N, D\), not \(2, 8, 9, 3\).* are uint8"):
        classifier.predict(np.zeros((2, 8, 9, 3)))


@pytest.mark.parametrize("verb", ["probabilities", "embed"])
def test_a_single_array_goes_in_a_list(classifier: ImageClassifier, verb: str) -> None:
    for array in (np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9), np.uint8)):
        with pytest.raises(ConfigError, match="a single image goes in a list"):
            getattr(classifier, verb)(array)
