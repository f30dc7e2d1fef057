"""Random crops: their bounds, their shares, and what a model's preprocessing makes of them."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from clipkit import PreprocessConfig
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ConfigError
from clipkit.training.batches import Augment, prepare
from tests.helpers.toy_data import toy_config

PREPROCESS = Preprocess((32, 32), toy_config().preprocess)
SEEN: list[Image.Image] = []


@dataclass(frozen=True)
class Spy(Preprocess):
    """Keep the images that come in."""

    def __call__(self, image: Any) -> Tensor:
        SEEN.append(image)
        return super().__call__(image)


def coordinates(size: tuple[int, int]) -> Image.Image:
    """Return an image with each pixel's coordinates as red and green."""
    y, x = np.mgrid[: size[1], : size[0]]
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def box_of(crop: Image.Image) -> tuple[int, int, int, int, bool]:
    """Return left, top, width, height of a crop of `coordinates`, and whether it is mirrored."""
    pixels = np.asarray(crop).astype(int)
    left, top = pixels[0, 0, :2]
    right, bottom = pixels[-1, -1, :2]
    mirrored = bool(left > right or (left == right and pixels.shape[1] > 1))
    left, right = sorted((left, right))
    assert pixels.shape[:2] == (bottom - top + 1, right - left + 1)
    return left, top, crop.width, crop.height, mirrored


def crops(augment: Augment, count: int, size: tuple[int, int] = (200, 100)) -> NDArray[Any]:
    """Return (count, 5): left, top, width, height and whether mirrored, of random crops."""
    image = coordinates(size)
    SEEN.clear()
    spy = Spy((32, 32), PreprocessConfig())
    rng = random.Random(0)
    for _ in range(count):
        assert augment(image, spy, rng).shape == (3, 32, 32)
    return np.array([box_of(crop) for crop in SEEN])


@pytest.mark.parametrize("area", [0.3, 0.9])
def test_crops_keep_their_bounds(area: float) -> None:
    left, top, width, height, mirrored = crops(Augment(area), 400).T
    shares = width * height / (133 * 100)  # of its longest part of 4:3
    assert area - 0.01 < shares.min() < area + 0.05
    assert 0.95 < shares.max() <= 1
    ratios = (width / 133) / (height / 100)
    assert 0.74 < ratios.min() < 0.95
    assert 1.05 < ratios.max() < 1.35
    for start, length, side in ((left, width, 200), (top, height, 100)):
        assert start.min() == 0
        assert (start + length).max() == side
        assert len(set(start)) > 5
    assert not mirrored.any()


def test_half_of_the_images_are_mirrored_if_asked() -> None:
    assert 160 < crops(Augment(0.5, mirror=True), 400)[:, 4].sum() < 240


def test_an_area_of_1_keeps_all_of_the_image() -> None:
    rows = crops(Augment(1.0), 50, (120, 100))
    assert (rows == [0, 0, 120, 100, 0]).all()
    image = Image.effect_noise((60, 50), 90).convert("RGB")
    shortest = Preprocess((32, 32), PreprocessConfig())
    squash = Preprocess((32, 32), PreprocessConfig(resize_mode="squash"))
    assert torch.equal(Augment(1.0)(image, shortest, random.Random(0)), squash(image))


def test_a_long_image_is_not_squeezed() -> None:
    rows = crops(Augment(1.0), 50, (200, 100))
    assert (rows[:, 1:] == [0, 133, 100, 0]).all()
    assert len(set(rows[:, 0])) > 20


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1), (2, 3)])
def test_tiny_images_are_cropped_too(size: tuple[int, int]) -> None:
    rows = crops(Augment(0.05, mirror=True), 40, size)
    assert rows[:, 2:4].min() >= 1


def test_augmentation_is_a_function_of_its_seed() -> None:
    image = Image.effect_noise((70, 50), 90).convert("RGB")
    augment = Augment(0.5, mirror=True)
    results = [augment(image, PREPROCESS, random.Random(seed)) for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_image_stays_as_it_was() -> None:
    image = Image.effect_noise((70, 50), 90).convert("RGB")
    before = image.copy()
    Augment(0.5, mirror=True)(image, PREPROCESS, random.Random(1))
    assert image.tobytes() == before.tobytes()


@pytest.mark.parametrize(
    "options", [{"area": 0}, {"area": 1.5}, {"area": "0.5"}, {"area": 0.5, "mirror": "no"}]
)
def test_refuses_impossible_augmentation(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(list(options.values())[-1]))):
        Augment(**options)


# A preprocessing of any kind


class Shrink(nn.Module):
    """Keep the image that comes in, and average it into 4 x 4 pixels by a layer with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Image.Image) -> Tensor:
        SEEN.append(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()  # (3, h, w)
        return nn.functional.adaptive_avg_pool2d(pixels, 4) * self.scale


def shrink_in_half(image: Image.Image) -> Tensor:
    """Return (3, 4, 4) of another dtype."""
    return Shrink()(image).double().detach()


def compose(image: Image.Image) -> Tensor:
    """Use torchvision's transforms, as many programs do."""
    from torchvision.transforms import v2

    SEEN.append(image)
    steps = [v2.Resize((4, 4)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose(steps)(image)


@pytest.mark.parametrize("preprocess", [Shrink(), shrink_in_half, compose])
def test_any_preprocessing_gets_the_crop(preprocess: Callable[[Image.Image], Tensor]) -> None:
    SEEN.clear()
    result = Augment(0.5)(coordinates((200, 100)), preprocess, random.Random(0))
    assert result.shape == (3, 4, 4)
    assert result.dtype == torch.float32
    assert not result.requires_grad
    box = box_of(SEEN[0])
    expected = crops(Augment(0.5), 1)[0]
    assert list(box) == list(expected)  # the same crop as a Preprocess gets


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("augment", [None, Augment(0.5)])
def test_any_preprocessing_gets_rgb(mode: str, augment: Augment | None, tmp_path: Any) -> None:
    path = tmp_path / "image.jpg"
    Image.new(mode, (20, 10)).save(path)
    SEEN.clear()
    assert prepare(path, Shrink(), augment, random.Random(0)).shape == (3, 4, 4)
    assert SEEN[0].mode == "RGB"


def give_a_batch(image: Image.Image) -> Tensor:
    return torch.zeros(1, 3, 4, 4)


def give_the_image(image: Image.Image) -> Any:
    return image


@pytest.mark.parametrize(
    ("preprocess", "found"), [(give_a_batch, r"\(1, 3, 4, 4\)"), (give_the_image, "Image")]
)
def test_what_makes_no_tensor_of_an_image_is_refused(
    preprocess: Callable[[Image.Image], Tensor], found: str
) -> None:
    message = rf"a preprocess must make a tensor \(3, H, W\) of an image, not {found}"
    with pytest.raises(ConfigError, match=message):
        Augment(0.5)(coordinates((20, 10)), preprocess, random.Random(0))
