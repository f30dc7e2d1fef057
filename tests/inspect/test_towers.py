"""The towers run up to any place, for images of any size."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import CLIP, lora
from clipkit.errors import ConfigError, ImageError
from clipkit.inspect import towers
from clipkit.inspect.explanation import seen_size
from clipkit.inspect.views import attention_distance
from tests.helpers.exact import (
    EXACT,
    images_for,
    largest_difference,
    vit_of,
)
from tests.helpers.random_weights import some_images
from tests.helpers.towers import make_inputs, make_resnet, make_vit


def double_images(size: tuple[int, int], count: int = 2) -> Tensor:
    return some_images(count, size).double()


def test_at_its_own_size_the_tokens_are_the_towers_bit_for_bit() -> None:
    model: Any = make_vit()
    images = make_inputs("vit")
    assert torch.equal(towers.embed_any_size(model.visual, images), model.visual.embed(images))


@pytest.mark.parametrize(
    ("size", "grid"), [((40, 72), (5, 9)), ((47, 79), (5, 9)), ((8, 8), (1, 1)), ((24, 33), (3, 4))]
)
def test_positions_follow_the_size_of_the_images(
    exact_vit: CLIP, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """A patch is its embedding and the positions that torch resizes, computed patch by patch."""
    visual, images = vit_of(exact_vit), double_images(size)
    assert towers.grid_of(visual, images) == grid
    found = towers.embed_any_size(visual, images)
    positions = visual.positional_embedding.detach()
    places = positions[1:].view(3, 4, -1).permute(2, 0, 1)[None].float()  # (1, W, 3, 4)
    places = F.interpolate(places, grid, mode="bicubic", antialias=True)[0]  # (W, rows, columns)
    for row in range(grid[0]):
        for column in range(grid[1]):
            patch = images[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            token = torch.einsum("nchw,dchw->nd", patch, visual.conv1.weight)
            expected = visual.ln_pre(token + places[:, row, column]).detach()
            at = 1 + row * grid[1] + column
            assert largest_difference(found[:, at].detach(), expected) < 1e-5
    first = visual.ln_pre(visual.class_embedding + positions[0]).detach()
    assert largest_difference(found[:, 0].detach(), first.expand(2, -1)) < EXACT


def test_tokens_before_a_block_are_what_it_is_given(exact_vit: CLIP) -> None:
    visual, images = vit_of(exact_vit), double_images((40, 72))
    x = towers.embed_any_size(visual, images)
    for number, block in enumerate(visual.transformer.resblocks):
        assert torch.equal(towers.tokens_before(visual, images, number), x)
        assert torch.equal(towers.tokens_before(visual, images, number - 3), x)
        x = block(x, at="all")
        assert torch.equal(towers.tokens_after(visual, images, number), x)


@pytest.mark.parametrize("changed", [False, True])
def test_heads_reproduce_the_attention(exact_vit: CLIP, changed: bool) -> None:
    model = lora(exact_vit, rank=2) if changed else exact_vit
    visual = vit_of(model)
    block = towers.block_of(visual, 1)
    change: Any = block.attn.change
    if changed:
        torch.nn.init.normal_(change.k.up)
    x = block.ln_1(towers.tokens_before(visual, images_for(model), 1))
    q, k, v = towers.split_qkv(block.attn, x)
    assert q.shape == (4, 3, 13, 8)
    weights = (q @ k.transpose(-1, -2) / 8**0.5).softmax(dim=-1)
    found = block.attn.out_proj(towers.merge_heads(weights @ v))
    assert largest_difference(found.detach(), block.attn(x).detach()) < EXACT


def test_the_pool_of_a_resnet_is_fed_for_any_size(exact_resnet: CLIP) -> None:
    visual: Any = exact_resnet.visual
    images = images_for(exact_resnet)
    features = towers.feature_map(visual, images)
    tokens = towers.pool_tokens(visual, features)
    q, k, v = towers.split_pool_qkv(visual.attnpool, tokens)
    heads = visual.attnpool.num_heads
    assert q.shape == (4, heads, 7, 256 // heads)
    weights = (q[:, :, :1] @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    pooled = towers.merge_heads(weights @ v)[:, 0]
    found = visual.attnpool.c_proj(pooled).detach()
    assert largest_difference(found, exact_resnet.encode_image(images).detach()) < EXACT
    other = towers.feature_map(visual, double_images((95, 127)))
    assert other.shape == (2, 256, 3, 4)
    assert towers.grid_of(visual, double_images((95, 127))) == (3, 4)
    assert towers.pool_tokens(visual, other).shape == (2, 13, 256)


def test_positions_of_a_pool_follow_the_map(exact_resnet: CLIP) -> None:
    visual: Any = exact_resnet.visual
    features = towers.feature_map(visual, double_images((96, 160)))
    own = visual.attnpool.positional_embedding.detach()
    places = own[1:].view(2, 3, -1).permute(2, 0, 1)[None].float()
    places = F.interpolate(places, (3, 5), mode="bicubic", antialias=True).flatten(2)[0].T
    tokens = features.flatten(2).transpose(1, 2)
    found = towers.pool_tokens(visual, features)
    assert largest_difference(found[:, 1:].detach(), (tokens + places).detach()) < 1e-5
    assert largest_difference(found[:, 0].detach(), (tokens.mean(1) + own[0]).detach()) < EXACT


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_gradients_reach_the_images(kind: str) -> None:
    model: Any = make_vit() if kind == "vit" else make_resnet()
    images = some_images(2, (64, 96)).requires_grad_()
    if kind == "vit":
        out = towers.tokens_before(model.visual, images, -1)
    else:
        out = towers.pool_tokens(model.visual, towers.feature_map(model.visual, images))
    (gradient,) = torch.autograd.grad(out.square().sum(), images)
    assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0


def test_a_smaller_stride_makes_a_denser_grid() -> None:
    model: Any = copy.deepcopy(make_vit())
    images = make_inputs("vit")
    for stride in ((8, 8), 8):
        model.visual.conv1.stride = stride
        assert towers.grid_of(model.visual, images) == (3, 3)
        assert towers.embed_any_size(model.visual, images).shape == (7, 10, 32)
        assert seen_size(model.visual, images) == (32, 32)
        assert attention_distance(model, images, 0, 0).isfinite().all()


def test_fast_copies_give_the_same_tokens() -> None:
    for model, at in ((make_vit().bfloat16(), -1), (make_vit(), 0)):
        images = some_images(2, (48, 80))
        fast = model.optimize()
        with torch.no_grad():
            found = towers.tokens_before(fast.visual, images, at)
            expected = towers.tokens_before(model.visual, images, at)
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("block", [2, -3, 1.0, None, True])
def test_a_block_that_is_not_there_is_refused(block: Any) -> None:
    with pytest.raises(ConfigError, match=r"no block .* among 2: pass 0 to 1, or -1 to -2"):
        towers.tokens_before(make_vit().visual, make_inputs("vit"), block)


def test_images_that_no_tower_can_take_are_refused() -> None:
    vit, resnet = make_vit().visual, make_resnet().visual
    with pytest.raises(ImageError, match="15 x 40 pixels are smaller.* at least 16 x 16"):
        towers.embed_any_size(vit, some_images(1, (15, 40)))
    with pytest.raises(ImageError, match="40 x 30 pixels are smaller.* at least 31 x 31"):
        towers.feature_map(resnet, some_images(1, (40, 30)))
    assert towers.feature_map(resnet, some_images(1, (31, 31))).shape == (1, 256, 1, 1)
    for wrong in (some_images(1, 32)[0], some_images(1, 32)[:, :2], some_images(1, 32).long()):
        with pytest.raises(ImageError, match=r"\(N, 3, H, W\), not torch\..*unsqueeze"):
            towers.embed_any_size(vit, wrong)
    photo: Any = "cat.jpg"
    with pytest.raises(ImageError, match="not str: torch.stack"):
        towers.grid_of(vit, photo)


def test_what_is_no_clip_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dense_features looks into a clipkit\.CLIP, not a Lin"):
        towers.image_tower_of(torch.nn.Linear(1, 1), "dense_features")
    patched: Any = make_vit()
    patched.visual = torch.nn.Identity()
    with pytest.raises(ConfigError, match="visual is of the class Identity, and VisionTransformer"):
        towers.image_tower_of(patched, "f")
    with pytest.raises(
        ConfigError, match="visual is of the class ModifiedResNet, and VisionTransformer"
    ):
        towers.tokens_before(make_resnet().visual, make_inputs("resnet"), 0)
    with pytest.raises(
        ConfigError, match="visual is of the class VisionTransformer, and ModifiedResNet"
    ):
        towers.feature_map(make_vit().visual, make_inputs("vit"))


def test_parts_that_were_replaced_are_named() -> None:
    vit: Any = make_vit().visual
    vit.transformer.resblocks[1] = torch.nn.Identity()
    with pytest.raises(
        ConfigError, match="block -1 is of the class Identity, and ResidualAttentionBlock"
    ):
        towers.block_of(vit, -1)
    with pytest.raises(ConfigError, match="attn is of the class Linear, and Attention"):
        towers.split_qkv(torch.nn.Linear(1, 1), torch.ones(1, 1, 1))
    resnet: Any = make_resnet().visual
    resnet.attnpool = torch.nn.Identity()
    with pytest.raises(
        ConfigError, match=r"visual\.attnpool is of the class Identity, and AttentionPool2d"
    ):
        towers.pool_tokens(resnet, torch.ones(1, 256, 2, 2))
    vit.positional_embedding = torch.nn.Parameter(torch.ones(8, 32))
    with pytest.raises(ConfigError, match="positions for 7 places, .* a grid of 2 x 2: load"):
        towers.embed_any_size(vit, make_inputs("vit"))
