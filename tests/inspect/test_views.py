"""Views of a vision transformer show its own weights, and distances are in pixels."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from torch import nn

from clipkit.errors import ConfigError
from clipkit.inspect.attention import blocks_of
from clipkit.inspect.towers import vit_of
from clipkit.inspect.views import attention_distance, patch_filters, position_similarity
from tests.helpers import explain_oracle as oracle
from tests.helpers.random_weights import some_images
from tests.helpers.towers import make_resnet, make_vit, with_low_rank_changes


def test_filters_are_the_components_that_scikit_learn_finds() -> None:
    model = make_vit()
    weight = model.visual.conv1.weight.detach().flatten(1)
    expected: Any = PCA(5, svd_solver="full").fit(weight.numpy()).components_
    tiles = patch_filters(model, 5)
    assert tiles.shape == (5, 16, 16, 3)
    found = tiles.permute(0, 3, 1, 2).flatten(1).numpy() * 2 - 1
    assert np.abs(found).max(axis=1) == pytest.approx(1)
    for one, other in zip(found, expected, strict=True):
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert abs(cosine) == pytest.approx(1, abs=1e-4)
        assert one.max() == pytest.approx(1)


def test_the_filters_themselves_are_stretched_one_by_one() -> None:
    model = make_vit()
    tiles = patch_filters(model, None)
    assert tiles.shape == (32, 16, 16, 3)
    weight: torch.Tensor = model.visual.conv1.weight.detach()
    for number in (0, 31):
        one = weight[number].permute(1, 2, 0)  # (3, size, size) -> (size, size, 3)
        torch.testing.assert_close(tiles[number], 0.5 + one / one.abs().max() / 2)
    fast = patch_filters(model.optimize(), None)
    torch.testing.assert_close(fast, tiles)


def test_positions_are_compared_by_their_cosine() -> None:
    model = make_vit()
    found = position_similarity(model)
    positions = vit_of(model.visual).positional_embedding.detach().numpy()[1:]
    expected = cosine_similarity(positions).reshape(2, 2, 2, 2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(position_similarity(model), found)


def test_distances_are_those_of_numpy() -> None:
    model, images = make_vit(), some_images(2, 32)
    found = attention_distance(model.train(), images)
    places = [(16 * row, 16 * column) for row in range(2) for column in range(2)]
    expected = np.zeros((2, 2))
    for image in images:
        _, blocks = oracle.image_tower(model, image.numpy()).run()
        for layer, block in enumerate(blocks):
            for head in range(2):
                for i, (y, x) in enumerate(places):
                    row = block.weights[head, 1 + i, 1:]
                    far = np.array([np.hypot(y - b, x - a) for b, a in places])
                    expected[layer, head] += row @ far / row.sum() / len(places) / len(images)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    torch.testing.assert_close(attention_distance(model, images, [1, 0], -1), found[[1, 0], 1:])


def test_dropout_of_low_rank_changes_is_off() -> None:
    model, images = with_low_rank_changes(make_vit()).train(), some_images(2, 32)
    found = attention_distance(model, images)
    assert torch.equal(attention_distance(model, images), found)
    assert model.training
    assert torch.equal(attention_distance(model.eval(), images), found)


def test_even_attention_looks_as_far_as_patches_are_apart() -> None:
    model = make_vit()
    for block in blocks_of(vit_of(model.visual).transformer):
        nn.init.zeros_(block.attn.in_proj_weight)
        nn.init.zeros_(block.attn.in_proj_bias)
    found = attention_distance(model, some_images(1, (16, 64)))
    far = np.abs(np.subtract.outer(np.arange(4), np.arange(4))).mean() * 16
    np.testing.assert_allclose(found.numpy(), np.full((2, 2), far), rtol=1e-6)


def test_a_resnet_has_no_patches_and_options_must_be_possible() -> None:
    resnet, model = make_resnet(), make_vit()
    with pytest.raises(ConfigError, match="patch_filters looks at the patches of a vision"):
        patch_filters(resnet)
    with pytest.raises(ConfigError, match="position_similarity looks at the patches"):
        position_similarity(resnet)
    with pytest.raises(ConfigError, match="attention_distance looks at the patches"):
        attention_distance(resnet, some_images(1, 64))
    with pytest.raises(ConfigError, match="components must be 1 to 32 or None, not 33"):
        patch_filters(model, 33)
    with pytest.raises(ConfigError, match="no layer 2 among 2"):
        attention_distance(model, some_images(1, 32), layers=2)
    wrong: Any = model.visual
    wrong.resolution = (48, 32)
    with pytest.raises(ConfigError, match="positions for 4 patches, and its resolution makes 3 x"):
        position_similarity(model)
