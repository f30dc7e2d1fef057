"""clipkit.data.arrays: NumPy images are PIL's own, and what is none says what would make it one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clipkit import Preprocess, PreprocessConfig, embed_images
from clipkit.data.decode import read_image
from clipkit.errors import ConfigError, ImageError

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "coffee.jpg"
PREPROCESS = Preprocess((32, 32), PreprocessConfig())


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert("RGB")


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_an_array_is_read_as_the_pil_image_that_it_is_of(photo: Image.Image, mode: str) -> None:
    image = photo.convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    expected = PREPROCESS(image)
    for array in (np.asarray(image), np.array(image)[:, ::-1][:, ::-1], np.asfortranarray(image)):
        assert torch.equal(PREPROCESS(array), expected)


def test_channels_are_red_green_blue() -> None:
    red = np.zeros((2, 2, 3), np.uint8)
    red[:, :, 0] = 255
    assert read_image(red).getpixel((0, 0)) == (255, 0, 0)


def test_transparent_parts_are_white() -> None:
    assert read_image(np.zeros((2, 2, 4), np.uint8)).getpixel((0, 0)) == (255, 255, 255)


def test_an_array_is_left_as_it_is(photo: Image.Image) -> None:
    array = np.array(photo)
    before = array.copy()
    PREPROCESS(array)
    array.flags.writeable = False
    PREPROCESS(array)
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (np.zeros((4, 5, 3), np.float32), r"\(array \* 255\)\.round\(\)\.astype\('uint8'\)"),
        (np.zeros((4, 5), np.float64), r"\(array \* 255\)\.round\(\)\.astype\('uint8'\)"),
        (np.zeros((4, 5, 3), np.int64), r"array\.astype\('uint8'\) if"),
        (np.zeros((4, 5), np.uint16), r"\(array // 257\)\.astype\('uint8'\)"),
        (np.zeros((3, 4, 5), np.uint8), r"array\.transpose\(1, 2, 0\)"),
        (np.zeros((4, 5, 1), np.uint8), r"array\[:, :, 0\]"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"list\(array\)"),
        (np.zeros((0, 5, 3), np.uint8), "it has no pixels"),
    ],
)
def test_other_arrays_say_what_would_make_them_images(array: Any, remedy: str) -> None:
    shape = str(array.shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ImageError, match=rf"NumPy array \({array.dtype}, shape {shape}\): .*"):
        PREPROCESS(array)
    with pytest.raises(ImageError, match=remedy):
        PREPROCESS(array)


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.linspace(0, 1, 60).reshape(4, 5, 3), "(array * 255).round().astype('uint8')"),
        (np.arange(60, dtype=np.uint8).reshape(3, 4, 5), "array.transpose(1, 2, 0)"),
        (np.arange(20, dtype=np.uint8).reshape(4, 5, 1), "array[:, :, 0]"),
        (np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000, "(array // 257).astype('uint8')"),
    ],
)
def test_the_remedy_can_be_taken(array: Any, code: str) -> None:
    assert PREPROCESS(eval(code, {"array": array})).shape == (3, 32, 32)


class _Means(nn.Module):
    """Turn images into the means of their channels."""

    preprocess = PREPROCESS

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def test_lists_and_arrays_of_images_are_embedded(photo: Image.Image) -> None:
    first, second = photo.resize((40, 30)), photo.rotate(90).resize((40, 30))
    expected = embed_images(_Means(), [first, second])
    arrays = [np.asarray(first), np.asarray(second)]
    assert torch.equal(embed_images(_Means(), arrays), expected)
    assert torch.equal(embed_images(_Means(), np.stack(arrays)), expected)
    with pytest.raises(ConfigError, match="a single image goes in a list"):
        embed_images(_Means(), arrays[0])


def test_a_list_names_the_array_that_cannot_be_used() -> None:
    arrays = [np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5, 3), np.float32)]
    with pytest.raises(ImageError, match=r"image 1: cannot use the NumPy array \(float32"):
        embed_images(_Means(), arrays)
