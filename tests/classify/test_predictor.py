"""clipkit.classify.predictor: predictions equal the model and the head by hand, one or many."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from clipkit import ImageClassifier, Prediction
from clipkit.errors import ConfigError, DataError, ImageError
from tests.helpers.toy_classifier import (
    NAMES,
    ColoredImages,
    assert_close,
    zero_shot_by_hand,
)


def expected_probabilities(classifier: ImageClassifier, images: list[Any]) -> Tensor:
    """Return probabilities (N, C), computed from the model and its zero-shot weights."""
    prepared = torch.stack([classifier.model.preprocess(image) for image in images])
    logits = zero_shot_by_hand(classifier.model, prepared, classifier.zero_shot_head.weight)
    return logits.softmax(dim=-1)


def stack(predictions: list[Prediction]) -> Tensor:
    return torch.stack([prediction.probabilities for prediction in predictions])


# One image


def test_one_image_gives_one_prediction(classifier: ImageClassifier, color_folder: Path) -> None:
    file = color_folder / "green" / "00.png"
    (expected,) = expected_probabilities(classifier, [file])
    with Image.open(file) as image:
        for given, path in ((file, str(file)), (str(file), str(file)), (image, None)):
            prediction = classifier.predict(given)
            assert isinstance(prediction, Prediction)
            assert prediction.labels == NAMES
            assert prediction.path == path
            assert_close(prediction.probabilities, expected)


def test_the_bytes_of_a_file_are_one_image(classifier: ImageClassifier, color_folder: Path) -> None:
    file = color_folder / "green" / "00.png"
    expected = classifier.predict(file)
    prediction = classifier.predict(file.read_bytes())
    assert isinstance(prediction, Prediction)
    assert prediction.path is None
    assert torch.equal(prediction.probabilities, expected.probabilities)


@pytest.mark.parametrize("verb", ["predict", "probabilities", "embed", "fit"])
def test_an_empty_path_is_not_the_working_directory(
    classifier: ImageClassifier,
    color_folder: Path,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(color_folder)
    with pytest.raises(ImageError, match="the path of the image is empty"):
        getattr(classifier, verb)("")
    assert len(classifier.predict(".")) == 8


# Many images


def test_many_images_give_a_list(classifier: ImageClassifier, color_folder: Path) -> None:
    files = sorted(color_folder.rglob("*.png"))
    paths = [str(file) for file in files]
    expected = expected_probabilities(classifier, files)
    with Image.open(files[0]) as image:
        many: list[tuple[Any, list[str | None]]] = [
            (color_folder, [*paths]),
            (str(color_folder), [*paths]),
            (files, [*paths]),
            ([image, *paths[1:]], [None, *paths[1:]]),
        ]
        for given, own_paths in many:
            predictions = classifier.predict(given, batch_size=3)
            assert [prediction.path for prediction in predictions] == own_paths
            assert_close(stack(predictions), expected)
            labels = [NAMES.index(prediction.label) for prediction in predictions]
            assert labels == expected.argmax(dim=1).tolist()


def test_a_data_set_has_no_paths(classifier: ImageClassifier) -> None:
    data = ColoredImages([2, 0, 1])
    expected = expected_probabilities(classifier, [data[i][0] for i in range(3)])
    predictions = classifier.predict(data)
    assert_close(stack(predictions), expected)
    assert [prediction.path for prediction in predictions] == [None] * 3


def test_a_data_loader_has_an_order_of_its_own(classifier: ImageClassifier) -> None:
    data = ColoredImages([2, 0, 1], labeled=False)
    expected = expected_probabilities(classifier, [data[i] for i in range(3)])
    prepared: Any = [classifier.model.preprocess(data[i]) for i in range(3)]
    predictions = classifier.predict(DataLoader(prepared, sampler=[2, 0, 1], batch_size=2))
    assert_close(stack(predictions), expected[[2, 0, 1]])
    assert [prediction.path for prediction in predictions] == [None] * 3


@pytest.mark.parametrize("content", [None, b"broken"])
def test_an_image_that_cannot_be_read_is_named(
    classifier: ImageClassifier, color_folder: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "x.png"
    if content:
        path.write_bytes(content)
    for given in (path, str(path), [*color_folder.rglob("*.png"), path]):
        with pytest.raises(ImageError, match=r"x\.png"):
            classifier.predict(given)
    for verb in (classifier.probabilities, classifier.embed):
        with pytest.raises(ImageError, match=r"x\.png"):
            verb([*color_folder.rglob("*.png"), path])


# Features


def test_features_and_images_give_the_same_probabilities(
    classifier: ImageClassifier, color_folder: Path
) -> None:
    features = classifier.embed(color_folder, batch_size=3)
    assert features.shape == (8, 32)
    assert_close(features.norm(dim=1), torch.ones(8))
    assert torch.equal(features, classifier.model.embed_images(color_folder, batch_size=3))
    expected = classifier.probabilities(color_folder)
    assert_close(expected.sum(dim=1), torch.ones(8))
    for given in (features, features.double(), features.numpy(), features.double().numpy()):
        probabilities = classifier.probabilities(given)
        assert_close(probabilities, expected)
        assert probabilities.dtype == torch.float32
        assert not probabilities.requires_grad
        predictions = classifier.predict(given)
        assert_close(stack(predictions), expected)
        assert [prediction.path for prediction in predictions] == [None] * 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_in_half_precision_are_of_unit_length(
    classifier: ImageClassifier, dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(200, 32, generator=random)
    features = (features / features.norm(dim=1, keepdim=True)).to(dtype)
    assert classifier.probabilities(features).shape == (200, 4)


@pytest.mark.parametrize("length", [0.0, 0.9, 1.1, 10.0])
def test_features_of_another_length_are_refused(classifier: ImageClassifier, length: float) -> None:
    features = torch.eye(8, 32)
    features[3] *= length
    message = (
        r"unit length, but 1 of 8 are not; row 3 has length \d.*: pass "
        r"torch\.nn\.functional\.normalize\(features, dim=-1\)"
    )
    for given in (features, features.numpy(), features.half()):
        with pytest.raises(DataError, match=message):
            classifier.probabilities(given)
        with pytest.raises(DataError, match=message):
            classifier.predict(given)
        with pytest.raises(DataError, match=message):
            classifier.fit(given, [0, 1] * 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(
    classifier: ImageClassifier, value: float
) -> None:
    features = torch.eye(8, 32)
    features[3, 5] = value
    with pytest.raises(DataError, match="not finite, first those of row 3 of 8"):
        classifier.probabilities(features)


@pytest.mark.parametrize("shape", [(32,), (2, 3, 32, 32)])
def test_features_have_two_axes(classifier: ImageClassifier, shape: tuple[int, ...]) -> None:
    for given in (torch.zeros(shape), np.zeros(shape)):
        with pytest.raises(DataError, match=r"must be features \(N, D\), not \(.*see Image"):
            classifier.probabilities(given)


def test_an_array_of_paths_is_no_array_of_features(
    classifier: ImageClassifier, color_folder: Path
) -> None:
    paths: Any = np.array([str(file) for file in sorted(color_folder.rglob("*.png"))])
    assert_close(classifier.probabilities(paths), classifier.probabilities(color_folder))


# A prediction


def test_the_most_probable_labels_come_first() -> None:
    prediction = Prediction(["a", "b", "c", "d"], torch.tensor([0.125, 0.5, 0.0625, 0.3125]))
    every = [("b", 0.5), ("d", 0.3125), ("a", 0.125), ("c", 0.0625)]
    assert prediction.label == "b"
    assert prediction.top(9) == every
    assert prediction.top() == every
    assert prediction.top(2) == every[:2]
    for k in (0, -1):
        with pytest.raises(ConfigError, match=f"k of at least 1, not {k}"):
            prediction.top(k)


def test_a_prediction_is_shown_short() -> None:
    probabilities = torch.tensor([0.05, 0.93, 0.02])
    prediction = Prediction(["dog", "cat", "cow"], probabilities)
    assert repr(prediction) == "Prediction(cat 0.93, dog 0.05, ...)"
    prediction = Prediction(["dog", "cat"], torch.tensor([0.25, 0.75]), "x.png")
    assert repr(prediction) == "Prediction(cat 0.75, dog 0.25; x.png)"
