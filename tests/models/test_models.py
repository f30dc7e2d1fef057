"""The models against float64 NumPy written from the paper."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.clip import CLIP
from clipkit.config import Activation
from clipkit.models import layers
from clipkit.models.layers import Attention, QuickGELU
from clipkit.models.resnet import AttentionPool2d
from tests.helpers.exact import (
    EXACT,
    images_for,
    largest_difference,
    make_exact,
    tokens_for,
    vit_config,
)
from tests.helpers.numpy_clip import activate, attend, encode_image, encode_text, weights_of
from tests.helpers.random_weights import assert_distinct, randomize


def unchanged(model: CLIP) -> None:
    pass


def oracle_difference(
    activation: Activation = "quick_gelu", change: Callable[[CLIP], None] = unchanged
) -> float:
    """Return how far a model is from the oracle, which saw it before the change.

    Both towers are compared, the text tower by both of its routes.
    """
    model = make_exact(vit_config(activation))
    images, tokens = images_for(model, 2), tokens_for(model, 3)
    expected_images, expected_texts = encode_image(model, images), encode_text(model, tokens)
    change(model)
    with torch.no_grad():
        image_features, text_features = model.encode_image(images), model.encode_text(tokens)
    by_rows = model.encode_text(tokens).detach()  # with gradients there is no tree of prefixes
    pairs = [
        (image_features, expected_images),
        (text_features, expected_texts),
        (by_rows, expected_texts),
    ]
    for features, _ in pairs:
        assert_distinct(features)
    return max(largest_difference(*pair) for pair in pairs)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_both_towers_equal_the_paper(activation: Activation) -> None:
    assert oracle_difference(activation) < EXACT


def attentions_of(model: CLIP) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def swap_queries_and_keys(model: CLIP) -> None:
    for attention in attentions_of(model):
        q, k, v = attention.in_proj_weight.detach().chunk(3)
        attention.in_proj_weight = nn.Parameter(torch.cat([k, q, v]))


def transpose_output(model: CLIP) -> None:
    for attention in attentions_of(model):
        attention.out_proj.weight = nn.Parameter(attention.out_proj.weight.detach().T)


def have_one_head(model: CLIP) -> None:
    for attention in attentions_of(model):
        attention.num_heads = 1


@pytest.mark.parametrize("change", [swap_queries_and_keys, transpose_output, have_one_head])
def test_a_wrong_weight_is_seen(change: Callable[[CLIP], None]) -> None:
    assert oracle_difference(change=change) > 1e-2


ATTEND = F.scaled_dot_product_attention


def without_causal_mask(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    return ATTEND(q, k, v, attn_mask)


def without_mask_in_the_last_block(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    return ATTEND(q, k, v, is_causal=is_causal)


def as_gelu(self: nn.Module, x: Tensor) -> Tensor:
    return F.gelu(x)


def with_another_epsilon(self: nn.LayerNorm, input: Tensor) -> Tensor:
    return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, 1e-3)


@pytest.mark.parametrize(
    "target, name, broken",
    [
        (F, "scaled_dot_product_attention", without_causal_mask),
        (F, "scaled_dot_product_attention", without_mask_in_the_last_block),
        (QuickGELU, "forward", as_gelu),
        (nn.LayerNorm, "forward", with_another_epsilon),
    ],
)
def test_a_wrong_layer_is_seen(
    monkeypatch: pytest.MonkeyPatch, target: Any, name: str, broken: Callable[..., Tensor]
) -> None:
    monkeypatch.setattr(target, name, broken)
    assert oracle_difference() > 1e-4


def test_activations() -> None:
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    gelu = layers.ACTIVATIONS["gelu"]()
    assert largest_difference(QuickGELU()(x), activate(x.numpy(), "quick_gelu")) < EXACT
    assert largest_difference(gelu(x), activate(x.numpy(), "gelu")) < EXACT
    assert largest_difference(QuickGELU()(x), gelu(x)) > 0.02


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_the_oracle(causal: bool) -> None:
    attention = randomize(Attention(24, 3, causal).double())
    w = weights_of(attention)
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 7, 24, dtype=torch.float64, generator=random)
    ends = torch.tensor([3, 6])
    with torch.no_grad():
        found, at_ends, at_two = attention(x), attention(x, at=ends), attention(x, at=2)
    for n in range(2):
        projected = np.split(x[n].numpy() @ w["in_proj_weight"].T + w["in_proj_bias"], 3, axis=1)
        attended = attend(*projected, heads=3, causal=causal)
        expected = attended @ w["out_proj.weight"].T + w["out_proj.bias"]
        assert largest_difference(found[n], expected) < EXACT
        assert largest_difference(at_ends[n, 0], expected[ends[n]]) < EXACT
        assert largest_difference(at_two[n, 0], expected[2]) < EXACT


def test_attention_pool_equals_full_attention() -> None:
    pool = randomize(AttentionPool2d((2, 3), 24, 4, 10).double())
    w = weights_of(pool)
    random = torch.Generator().manual_seed(2)
    maps = torch.randn(3, 24, 2, 3, dtype=torch.float64, generator=random)
    with torch.no_grad():
        found = pool(maps)
    for n in range(3):
        x = maps[n].numpy().reshape(24, 6).T  # rows of the map one after another
        x = np.concatenate([x.mean(0, keepdims=True), x]) + w["positional_embedding"]
        q, k, v = (x @ w[f"{part}_proj.weight"].T + w[f"{part}_proj.bias"] for part in "qkv")
        expected = attend(q, k, v, heads=4) @ w["c_proj.weight"].T + w["c_proj.bias"]
        assert largest_difference(found[n], expected[0]) < EXACT
        assert largest_difference(found[n], expected[1]) > 1e-2
