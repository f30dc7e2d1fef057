"""Test the torchvision transforms that clipkit.openai gives, step by step and bit by bit."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import clipkit.openai as clip
from clipkit import Preprocess, PreprocessConfig


def test_preprocess_is_openais_five_transforms() -> None:
    _, preprocess = clip.load("tiny", "cpu")
    resize, crop, to_rgb, to_tensor, normalize = preprocess.transforms
    assert isinstance(preprocess, transforms.Compose)
    assert (resize.size, resize.interpolation) == (96, clip.clip.BICUBIC)
    assert crop.size == (96, 96)
    assert to_rgb is clip.clip._convert_image_to_rgb
    assert isinstance(to_tensor, transforms.ToTensor)
    assert normalize.mean == (0.48145466, 0.4578275, 0.40821073)
    assert normalize.std == (0.26862954, 0.26130258, 0.27577711)


def photo(mode: str = "RGB", size: tuple[int, int] = (70, 50)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_preprocess_gives_the_bits_of_clipkit(
    mode: str, interpolation: Any, resize_mode: Any
) -> None:
    config = PreprocessConfig(
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        interpolation=interpolation,
        resize_mode=resize_mode,
    )
    preprocess = Preprocess((32, 32), config)
    image = photo(mode)
    compose: Any = clip.clip._express(preprocess)
    assert torch.equal(compose(image), preprocess(image))


def test_the_transform_of_openais_models_is_clipkits_default() -> None:
    compose: Any = clip.clip._transform(32)
    expected = Preprocess((32, 32), PreprocessConfig())
    assert torch.equal(compose(photo()), expected(photo()))


def test_an_image_with_alpha_loses_it_as_in_openais() -> None:
    image = photo(size=(32, 32))
    image.putalpha(0)
    compose: Any = clip.clip._transform(32)
    assert torch.equal(compose(image), compose(photo(size=(32, 32))))
