"""Each method computes what its paper says, by float64 NumPy and differences for gradients."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import CLIP
from clipkit.inspect.explain import explain
from clipkit.inspect.gradient import Gathering, grad_eclip
from clipkit.inspect.pooled import encode_any_size, pool_features
from clipkit.inspect.rise import rise
from clipkit.inspect.towers import feature_map, pool_of, pool_tokens
from clipkit.inspect.words import split_words, token_strings
from clipkit.tokenizer import Tokenizer
from tests.helpers import explain_oracle as oracle
from tests.helpers import numpy_clip
from tests.helpers.models import make_small_tokenizer
from tests.helpers.random_weights import some_images
from tests.helpers.towers import make_resnet, make_vit

Array = numpy_clip.Array
TEXT = "a cat on a mat"


def with_words(model: CLIP) -> CLIP:
    model.tokenizer = make_small_tokenizer()
    return model


def ids_of(model: CLIP) -> list[int]:
    return [int(token) for token in model.tokenizer([TEXT])[0] if token > 0]


def scale_of(model: CLIP) -> float:
    return math.exp(model.logit_scale.item())


@pytest.fixture(scope="module")
def model() -> CLIP:
    return with_words(make_vit())


@pytest.fixture(scope="module")
def image() -> Tensor:
    return some_images(1, 32, seed=6)  # of which three patches speak for the text


def assert_close(found: Tensor | None, expected: Array) -> None:
    """Fail unless both are equal to float32 noise, and not all zero."""
    assert found is not None
    assert expected.max() > 0
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4 * expected.max())


def test_grad_eclip_of_the_image(model: CLIP, image: Tensor) -> None:
    text = numpy_clip.encode_text(model, model.tokenizer([TEXT]))[0]
    tower = oracle.image_tower(model, image[0].numpy())
    expected = oracle.grad_eclip(tower, text, block=1, others=slice(1, None))
    assert_close(explain(model, image, TEXT, "grad_eclip").heat_map, expected.reshape(2, 2))


def test_grad_eclip_of_the_words(model: CLIP, image: Tensor) -> None:
    feature = numpy_clip.encode_image(model, image)[0]
    ids = ids_of(model)
    tower = oracle.text_tower(model, ids)
    words = slice(1, len(ids) - 1)
    expected = sum(oracle.grad_eclip(tower, feature, block, words) for block in (0, 1))
    assert isinstance(expected, np.ndarray)
    assert_close(explain(model, image, TEXT, "grad_eclip").token_values, expected)


def test_relevance_of_the_image_and_of_the_words(model: CLIP, image: Tensor) -> None:
    found = explain(model, image, TEXT, "relevance")
    text = numpy_clip.encode_text(model, model.tokenizer([TEXT]))[0]
    scale = scale_of(model)
    expected = oracle.relevance(oracle.image_tower(model, image[0].numpy()), text, scale)
    assert_close(found.heat_map, expected[1:].reshape(2, 2))
    feature = numpy_clip.encode_image(model, image)[0]
    expected = oracle.relevance(oracle.text_tower(model, ids_of(model)), feature, scale)
    assert_close(found.token_values, expected[1:-1])


def test_attention_and_rollout_are_those_of_the_class_token(model: CLIP, image: Tensor) -> None:
    tower = oracle.image_tower(model, image[0].numpy())
    _, blocks = tower.run()
    expected = blocks[-1].weights[:, 0, 1:].mean(axis=0).reshape(2, 2)
    assert_close(explain(model, image, TEXT, "attention").heat_map, expected)
    expected = oracle.rollout(tower)[0, 1:].reshape(2, 2)
    assert_close(explain(model, image, TEXT, "rollout").heat_map, expected)


class Pool:
    """The attention pool of a ResNet in float64 NumPy, from a map (C, rows, columns) on."""

    def __init__(self, model: CLIP, text: Array) -> None:
        self.w = numpy_clip.weights_of(pool_of(model.visual))
        self.heads = pool_of(model.visual).num_heads
        self.text = text

    def tokens(self, features: Array) -> Array:
        places = features.reshape(len(features), -1).T  # (C, rows, columns) -> (places, C)
        x = np.concatenate([places.mean(axis=0, keepdims=True), places])
        return x + self.w["positional_embedding"]

    def project(self, x: Array, name: str) -> Array:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def weights(self, x: Array) -> Array:
        q, k = (oracle.split(self.project(x, name), self.heads) for name in ("q_proj", "k_proj"))
        return oracle.soften(q, k, causal=False)[:, :1]  # (heads, 1, L)

    def gather(self, weights: Array, x: Array) -> Array:
        v = oracle.split(self.project(x, "v_proj"), self.heads)
        return oracle.join(weights @ v)[0]  # (C,)

    def cosine(self, gathered: Array) -> float:
        return oracle.cosine(self.project(gathered, "c_proj"), self.text)

    def gradient(self, start: Array, rest: Any) -> Array:
        found = np.zeros(start.shape)
        for index in np.ndindex(start.shape):
            step = np.zeros(start.shape)
            step[index] = oracle.STEP
            found[index] = (rest(start + step) - rest(start - step)) / (2 * oracle.STEP)
        return found


def test_methods_of_resnets() -> None:
    model, image = with_words(make_resnet()), some_images(1, 64)
    pool = Pool(model, numpy_clip.encode_text(model, model.tokenizer([TEXT]))[0])
    with torch.no_grad():
        features = feature_map(model.visual, image)[0].double().numpy()
    x = pool.tokens(features)
    weights = pool.weights(x)
    gathered = pool.gather(weights, x)

    gradient = pool.gradient(
        features, lambda z: pool.cosine(pool.gather(pool.weights(pool.tokens(z)), pool.tokens(z)))
    )
    expected = np.maximum(np.einsum("c,crs->rs", gradient.mean(axis=(1, 2)), features), 0)
    assert_close(explain(model, image, TEXT, "grad_cam").heat_map, expected)

    gradient = pool.gradient(gathered, pool.cosine)
    keys, values = pool.project(x, "k_proj")[1:], pool.project(x, "v_proj")[1:]
    query = pool.project(x, "q_proj")[0]
    likeness = np.array([oracle.cosine(key, query) for key in keys])
    spatial = (likeness - likeness.min()) / (likeness.max() - likeness.min())
    expected = np.maximum(spatial * (values @ gradient), 0).reshape(2, 2)
    assert_close(explain(model, image, TEXT, "grad_eclip").heat_map, expected)

    gradient = pool.gradient(weights, lambda z: pool.cosine(pool.gather(z, x)))
    expected = scale_of(model) * np.maximum(gradient * weights, 0).mean(axis=0)[0, 1:]
    assert_close(explain(model, image, TEXT, "relevance").heat_map, expected.reshape(2, 2))
    expected = weights.mean(axis=0)[0, 1:].reshape(2, 2)
    assert_close(explain(model, image, TEXT, "attention").heat_map, expected)


def test_tokens_that_are_all_alike_count_alike() -> None:
    alike = torch.ones(3, 4)
    values = torch.tensor([[1.0, 0, 0, 0], [2, 0, 0, 0], [-1, 0, 0, 0]])
    found = grad_eclip(Gathering(torch.ones(4), alike, values, torch.ones(4)))
    assert found.tolist() == [1, 2, 0]


def test_features_of_any_size_are_those_of_the_tower_at_its_own() -> None:
    for model in (make_vit(), make_resnet()):
        images = some_images(2, model.visual.resolution)
        with torch.no_grad():
            expected = model.encode_image(images)
            found = encode_any_size(model.visual, images)
            assert torch.equal(found, expected)
            larger = encode_any_size(model.visual, F.interpolate(images, scale_factor=2.0))
        assert larger.shape == expected.shape
        assert larger.isfinite().all()
    resnet = make_resnet().visual
    with torch.no_grad():
        features = feature_map(resnet, some_images(2, 64))
        expected = pool_of(resnet)(features)
        assert pool_tokens(resnet, features).shape[1] == 5
        torch.testing.assert_close(pool_features(resnet, features), expected)


def test_rise_finds_the_pixels_that_count() -> None:
    image = torch.ones(1, 3, 48, 64)
    sizes: list[int] = []

    def score(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return 0.3 + 0.01 * images[:, 0, 8:16, 40:52].mean(dim=(1, 2))

    found = rise(score, image, masks=500, seed=0, batch_size=64)
    assert found.shape == (48, 64)
    inside = found[8:16, 40:52].mean()
    row, column = divmod(int(found.argmax()), 64)
    assert 8 <= row < 16
    assert 40 <= column < 52
    assert inside > 5 * found[30:, :20].abs().mean()
    assert sizes == [64] * 7 + [52]


def test_rise_weighs_scores_by_masks() -> None:
    """The masks are read off the images that are scored."""
    seen: list[Tensor] = []

    def score(images: Tensor) -> Tensor:
        seen.append(images[:, 0].clone())
        return (7 * images.flatten(1).mean(dim=1)).sin()

    image = torch.ones(1, 3, 21, 30)
    found = rise(score, image, masks=40, seed=3, batch_size=40)
    masks = seen[0].double().numpy()
    scores = np.sin(7 * masks.mean(axis=(1, 2)))
    expected = np.zeros((21, 30))
    for number, mask in zip(scores, masks, strict=True):
        expected += (number - scores.mean()) * mask
    np.testing.assert_allclose(found.numpy(), expected / masks.sum(axis=0), atol=1e-5)
    assert masks.min() == 0
    assert masks.max() == 1
    assert 0.4 < masks.mean() < 0.6
    again = rise(score, image, masks=40, seed=3, batch_size=7)
    torch.testing.assert_close(again, found, rtol=1e-4, atol=1e-6)
    assert torch.equal(torch.cat(seen[1:]), seen[0])
    assert not torch.allclose(rise(score, image, masks=40, seed=4), found)


def test_masks_of_rise_are_shifted_up_to_a_cell() -> None:
    """The edge of a mask is even for half a cell, which the larger half of the shifts cut off."""
    seen: list[Tensor] = []

    def score(images: Tensor) -> Tensor:
        seen.append(images[:, 0].clone())
        return images.flatten(1).mean(dim=1)

    rise(score, torch.ones(1, 3, 70, 140), masks=200, batch_size=200)
    masks = seen[0]
    uneven_above = (masks[:, 0] - masks[:, 1]).abs().amax(dim=1) > 1e-4
    uneven_left = (masks[:, :, 0] - masks[:, :, 1]).abs().amax(dim=1) > 1e-4
    assert 0.3 < uneven_above.float().mean() < 0.6
    assert 0.3 < uneven_left.float().mean() < 0.6
    assert not torch.equal(uneven_above, uneven_left)


def test_tokens_are_named_and_put_together_to_words() -> None:
    """A letter of several tokens is whole in its word, and a word may be cut off."""
    tokenizer = Tokenizer()
    ids = tokenizer.encode("clipkit sees a cat, 猫!")
    strings = token_strings(tokenizer, ids)
    assert strings[:6] == ["clip", "kit", "sees", "a", "cat", ","]
    assert strings[-1] == "!"
    assert len(strings) == len(ids)
    words = split_words(tokenizer, ids)
    assert [word for word, _ in words] == ["clipkit", "sees", "a", "cat", ",", "猫", "!"]
    assert [count for _, count in words] == [2, 1, 1, 1, 1, len(ids) - 7, 1]
    assert split_words(tokenizer, ids[:1]) == [("clip", 1)]
