"""clipkit.features: the encoders' own numbers, whatever the batches and workers."""

import re

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from toy_data import picture, toy_config

from clipkit import CLIP
from clipkit.errors import ConfigError, ImageError, TokenizerError
from clipkit.features import TEXT_BATCH, embed_images, embed_texts


@pytest.fixture(scope="module")
def model(small_tokenizer) -> CLIP:
    torch.manual_seed(0)
    return CLIP(toy_config(), small_tokenizer).eval()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [picture((20 * i, 0, 90), (0, 25 * i, 30), seed=i, size=(30 + i, 40)) for i in range(7)]


@pytest.fixture(scope="module")
def expected(model, images) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([F.normalize(model.encode_image(model.preprocess(image)[None]), dim=-1) for image in images])


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 7}, {"batch_size": 3, "workers": 2}])
def test_images_in_order_whatever_the_batches(model, images, expected, options):
    features = embed_images(model, images, **options)
    assert features.shape == (7, 32) and features.dtype == torch.float32 and features.device.type == "cpu"
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert (expected[0] - expected[6]).abs().max() > 1e-2  # so that another order would show


def test_paths_and_pictures_alike(model, images, expected, tmp_path):
    mixed = [*images[:3], *(tmp_path / f"{i}.png" for i in range(3, 6)), str(tmp_path / "6.png")]
    for i in range(3, 7):
        images[i].save(tmp_path / f"{i}.png")
    torch.testing.assert_close(embed_images(model, mixed), expected, rtol=1e-5, atol=1e-6)


def test_a_bar_is_shown_only_if_asked(model, images, capfd):
    embed_images(model, images)
    assert capfd.readouterr().err == ""
    embed_images(model, images, batch_size=2, progress=True)
    assert "4/4" in capfd.readouterr().err


def test_a_picture_that_cannot_be_read_is_named(model, tmp_path):
    with pytest.raises(ImageError, match="nothing.png"):
        embed_images(model, [picture((0, 0, 0), (9, 9, 9), seed=0), tmp_path / "nothing.png"])


def test_texts_over_more_than_a_batch(model, small_tokenizer):
    texts = [f"word {i}" for i in range(TEXT_BATCH + 9)]
    features = embed_texts(model, texts)
    with torch.no_grad():
        expected = F.normalize(model.encode_text(small_tokenizer(texts)), dim=-1)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


def test_features_can_be_trained_on(model, images):
    """They are plain tensors without a graph, not such as inference mode gives."""
    for features in (embed_images(model, images), embed_texts(model, ["a", "b"])):
        assert not features.requires_grad and not features.is_inference()
        weight = torch.randn(3, 32, requires_grad=True)
        (features @ weight.T).square().sum().backward()
        assert weight.grad is not None and weight.grad.any()


def test_half_precision_models_give_unit_float32(small_tokenizer, images, expected):
    torch.manual_seed(0)
    half = CLIP(toy_config(), small_tokenizer).eval().bfloat16()
    for features in (embed_images(half, images), embed_texts(half, ["a", "b"])):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)), rtol=0, atol=1e-6)
    torch.testing.assert_close(embed_images(half, images), expected, rtol=0, atol=0.03)


def test_long_texts_are_cut_only_if_asked(model):
    long = "word " * 50
    with pytest.raises(TokenizerError, match="16"):
        embed_texts(model, ["short", long])
    assert torch.equal(embed_texts(model, [long], truncate=True), embed_texts(model, [long + "more"], truncate=True))


@pytest.mark.parametrize(("function", "name"), [(embed_images, "image"), (embed_texts, "text")])
def test_refuses_nothing(model, function, name):
    with pytest.raises(ConfigError, match=re.escape(f"needs at least one {name}")):
        function(model, [])
