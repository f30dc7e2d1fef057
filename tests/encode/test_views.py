"""Views of images: the same ones always, averaged, and refused where they would be ignored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

import clipkit
from clipkit import CLIP, ImageClassifier
from clipkit.data.views import Views
from clipkit.errors import ConfigError, DataError, ImageError

SIZE = (50, 40)  # width and height


@pytest.fixture(scope="module")
def model() -> CLIP:
    return CLIP.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in pixels]


def parts_by_hand(image: Image.Image) -> list[Image.Image]:
    """Return the corners and the middle of an image of 50 x 40 pixels: 40 x 32 each."""
    corners = [(0, 0), (10, 0), (0, 8), (10, 8), (5, 4)]  # left, top
    return [image.crop((left, top, left + 40, top + 32)) for left, top in corners]


def mean_by_hand(model: CLIP, views: list[Image.Image]) -> Tensor:
    """Return the normalized mean of normalized features, in float64."""
    features = torch.cat([model.embed_images([view]) for view in views]).double()
    mean = features.mean(dim=0)
    return mean / mean.square().sum().sqrt()


def test_two_views_are_an_image_and_its_mirror_image(
    model: CLIP, images: list[Image.Image]
) -> None:
    found = clipkit.embed_images(model, images, views=2, batch_size=2)
    for row, image in zip(found, images, strict=True):
        expected = mean_by_hand(model, [image, ImageOps.mirror(image)])
        assert (row.double() - expected).abs().max() < 1e-6
    assert not torch.allclose(found, clipkit.embed_images(model, images), atol=1e-3)


def test_ten_views_are_the_parts_and_their_mirror_images(
    model: CLIP, images: list[Image.Image]
) -> None:
    found = model.embed_images(images[:1], views=10)
    parts = parts_by_hand(images[0])
    expected = mean_by_hand(model, [*parts, *map(ImageOps.mirror, parts)])
    assert (found[0].double() - expected).abs().max() < 1e-6


def test_one_view_is_what_there_was(model: CLIP, images: list[Image.Image]) -> None:
    assert torch.equal(model.embed_images(images, views=1), model.embed_images(images))


def test_views_are_the_same_each_time(model: CLIP, images: list[Image.Image]) -> None:
    first = model.embed_images(images[:1], views=10)
    assert torch.equal(model.embed_images(images[:1], views=10), first)


@pytest.mark.parametrize("views", [2, 10])
def test_arrays_and_tensors_are_seen_alike(images: list[Image.Image], views: int) -> None:
    """The preprocessing is left out, for it resizes tensors in its own way."""
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)

    def as_tensor(image: Any) -> Tensor:
        if isinstance(image, Tensor):
            return image
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (h, w, 3) -> (3, h, w)

    transform = Views(as_tensor, views)
    expected = transform(Image.fromarray(pixels))
    assert len(expected) == views
    assert torch.equal(transform(pixels), expected)
    assert torch.equal(transform(torch.from_numpy(pixels).permute(2, 0, 1)), expected)


def test_an_image_of_one_pixel_has_views(model: CLIP) -> None:
    found = model.embed_images([Image.new("RGB", (1, 1), "red")], views=10)
    plain = model.embed_images([Image.new("RGB", (1, 1), "red")])
    assert torch.allclose(found, plain, atol=1e-5)


def test_files_are_read_and_named_as_before(
    model: CLIP, images: list[Image.Image], tmp_path: Path
) -> None:
    images[0].save(tmp_path / "a.png")
    expected = model.embed_images(images[:1], views=2)
    assert torch.allclose(model.embed_images(tmp_path, views=2), expected, atol=1e-6)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="b.png"):
        model.embed_images(tmp_path, views=2)


def test_a_classifier_takes_views(model: CLIP, images: list[Image.Image]) -> None:
    classifier = ImageClassifier.zero_shot(model, ["cat", "dog"])
    features = classifier.embed(images, views=2)
    expected = classifier.probabilities(features)
    assert torch.allclose(classifier.probabilities(images, views=2), expected, atol=1e-6)
    assert not torch.allclose(classifier.probabilities(images), expected, atol=1e-4)
    predictions = classifier.predict(images, views=2)
    rows = torch.stack([prediction.probabilities for prediction in predictions])
    assert torch.allclose(rows, expected, atol=1e-6)


@pytest.mark.parametrize("views", [0, 3, -1, True, "2"])
def test_other_numbers_are_refused(model: CLIP, views: Any) -> None:
    with pytest.raises(ConfigError, match="views must be 1 .*, 2 .*, or 10"):
        model.embed_images(["a.png"], views=views)
    classifier = ImageClassifier.zero_shot(model, ["cat", "dog"])
    with pytest.raises(ConfigError, match="views must be 1 .*, 2 .*, or 10"):
        classifier.predict("a.png", views=views)
    with pytest.raises(ConfigError, match="views must be 1 .*, 2 .*, or 10"):
        clipkit.extract_features(model, ["a.png"], views=views)


def test_views_of_extracted_features(
    model: CLIP, images: list[Image.Image], tmp_path: Path
) -> None:
    """A file of features that were seen otherwise is another one."""
    file = tmp_path / "features.safetensors"
    found = clipkit.extract_features(model, images, file, views=2)
    assert torch.allclose(found.features, model.embed_images(images, views=2), atol=1e-6)
    again = clipkit.extract_features(model, images, file, views=2)
    assert torch.equal(again.features, found.features)
    for views in (1, 10):
        with pytest.raises(DataError, match="was made with other"):
            clipkit.extract_features(model, images, file, views=views)


def test_views_that_would_be_ignored_are_refused(model: CLIP) -> None:
    classifier = ImageClassifier.zero_shot(model, ["cat", "dog"])
    features = torch.eye(256)[:2]
    with pytest.raises(ConfigError, match="views=2 would be ignored"):
        classifier.probabilities(features, views=2)
    prepared = [torch.zeros(3, 96, 96)]
    with pytest.raises(ConfigError, match="pass its data set, or leave views out"):
        model.embed_images(DataLoader(prepared), views=2)  # pyright: ignore[reportArgumentType]
