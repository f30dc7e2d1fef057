"""`Preprocess.backend`: torch resizes in place of PIL, at most a level off on photos."""

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

import clipkit
from clipkit.config import Interpolation, ResizeMode
from clipkit.data.pictures import Transform
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ConfigError
from tests.helpers.noise import LEVEL, make_preprocess, noise

PHOTOS = sorted((Path(__file__).parents[2] / "examples/photos").glob("*.jpg"))
TO_24 = make_preprocess((24, 24))


def on_tensors(preprocess: Transform) -> Preprocess:
    assert isinstance(preprocess, Preprocess)
    return dataclasses.replace(preprocess, backend="tensor")


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_photos_are_a_level_off_at_most(
    path: Path, resize_mode: ResizeMode, interpolation: Interpolation
) -> None:
    preprocess = make_preprocess((96, 128), resize_mode=resize_mode, interpolation=interpolation)
    levels = (on_tensors(preprocess)(path) - preprocess(path)).abs() * LEVEL
    assert 0.99 < levels.max() < 1.01
    assert levels.mean() < 0.01


def test_features_of_photos_stay() -> None:
    model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    with torch.no_grad():
        exact, near = (
            model.encode_image(torch.stack([preprocess(path) for path in PHOTOS]), normalize=True)
            for preprocess in (model.preprocess, on_tensors(model.preprocess))
        )
    assert (exact * near).sum(dim=1).min() > 1 - 1e-4


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "RGBA", "P"])
@pytest.mark.parametrize("size", [(60, 40), (40, 60), (224, 224), (7, 5)])
def test_every_kind_of_image(mode: str, size: tuple[int, int]) -> None:
    image = Image.open(PHOTOS[0]).resize(size).convert(mode)
    near, exact = on_tensors(TO_24)(image), TO_24(image)
    assert near.shape == exact.shape
    assert near.dtype == torch.float32
    assert near.is_contiguous()
    assert ((near - exact).abs() * LEVEL).mean() < 1


def test_what_is_not_resized_is_the_same() -> None:
    image = noise(24, 24)
    assert torch.equal(on_tensors(TO_24)(image), TO_24(image))


def test_longest_pads_with_black() -> None:
    white = Image.new("RGB", (20, 10), "white")
    preprocess = make_preprocess((16, 16), resize_mode="longest")
    near, exact = on_tensors(preprocess)(white), preprocess(white)
    torch.testing.assert_close(near, exact, rtol=0, atol=1e-6)


def test_a_tensor_is_preprocessed_where_it_is() -> None:
    image = torch.empty(2, 3, 40, 60, dtype=torch.uint8, device="meta")
    assert TO_24(image).device == image.device
    assert TO_24(image).shape == (2, 3, 24, 24)


def test_an_unknown_backend() -> None:
    with pytest.raises(
        ConfigError, match=r"Preprocess.backend must be one of \('pil', 'tensor'\), not 'cuda'"
    ):
        dataclasses.replace(make_preprocess(), backend="cuda")  # pyright: ignore[reportArgumentType]


def test_a_model_embeds_by_the_preprocessing_it_is_given() -> None:
    model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    by_pil = model.embed_images(PHOTOS)
    before = model.preprocess
    given = model.preprocess = on_tensors(before)
    with pytest.raises(ConfigError, match="a model's preprocess is .* not 'tensor'"):
        model.preprocess = "tensor"  # pyright: ignore[reportAttributeAccessIssue]
    assert model.preprocess == given
    assert given != before
    assert not torch.equal(model.embed_images(PHOTOS), by_pil)
    assert torch.equal(model.embed_images(PHOTOS), clipkit.extract_features(model, PHOTOS).features)
