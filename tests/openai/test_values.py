"""Test the numbers of clipkit.openai against float64 NumPy, and the layout in which parts work."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipkit.openai.model import (
    CLIP,
    AttentionPool2d,
    ResidualAttentionBlock,
    VisionTransformer,
)
from tests.helpers.random_weights import assert_distinct
from tests.openai import oracle
from tests.openai.small import LENGTH, images_for, make_resnet, make_vit, some_ids

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


def assert_near(found: Tensor, expected: oracle.Array) -> None:
    """Fail unless a result is the oracle's up to float32's noise, and its rows are distinct."""
    assert_distinct(found)
    largest = float(np.abs(expected).max())
    assert np.abs(found.double().numpy() - expected).max() / largest < 1e-5


@torch.no_grad()
def test_image_features_are_those_of_the_oracle(model: CLIP) -> None:
    images = images_for(model)
    assert_near(model.encode_image(images), oracle.image_features(model.visual, images))


@torch.no_grad()
def test_text_features_are_those_of_the_oracle(model: CLIP) -> None:
    ids = some_ids()
    assert_near(model.encode_text(ids), oracle.text_features(model, ids))


@torch.no_grad()
def test_logits_are_those_of_the_oracle(model: CLIP) -> None:
    images, ids = images_for(model, 2), some_ids(3)
    per_image, per_text = model(images, ids)
    scale = float(model.logit_scale.exp())
    expected = oracle.logits(
        oracle.image_features(model.visual, images), oracle.text_features(model, ids), scale
    )
    assert per_image.shape == (2, 3)
    assert np.abs(per_image.numpy() - expected).max() < 2e-4
    assert torch.equal(per_text, per_image.t())


def test_features_are_the_same_with_gradients(model: CLIP) -> None:
    """torch has another path of attention for each case."""
    images, ids = images_for(model), some_ids()
    with torch.no_grad():
        expected = model.encode_image(images), model.encode_text(ids)
    torch.testing.assert_close(model.encode_image(images), expected[0], **CLOSE)
    torch.testing.assert_close(model.encode_text(ids), expected[1], **CLOSE)


@torch.no_grad()
def test_images_of_another_dtype_are_cast(model: CLIP) -> None:
    images = images_for(model)
    assert torch.equal(model.encode_image(images.double()), model.encode_image(images))


@torch.no_grad()
def test_the_resnet_itself_casts_its_images_too(resnet: CLIP) -> None:
    images = images_for(resnet)
    assert torch.equal(resnet.visual(images.double()), resnet.visual(images))


def tokens_of(count: int, length: int, width: int = 128) -> Tensor:
    """Return tokens (length, count, width)."""
    random = torch.Generator().manual_seed(3)
    return torch.randn(length, count, width, generator=random)


@torch.no_grad()
def test_transformers_take_positions_first(vit: CLIP) -> None:
    assert isinstance(vit.visual, VisionTransformer)
    x = tokens_of(count=2, length=5)
    found = vit.visual.transformer(x)
    w = oracle.weights_of(vit.visual.transformer)
    for sample in range(2):
        expected = oracle.run_blocks(x[:, sample].double().numpy(), w)
        assert_near(found[:, sample], expected)


@torch.no_grad()
def test_blocks_run_one_by_one(vit: CLIP) -> None:
    x = tokens_of(count=2, length=LENGTH)
    stepwise = x
    for block in vit.transformer.resblocks:
        stepwise = block(stepwise)
    assert torch.equal(stepwise, vit.transformer(x))
    w = oracle.weights_of(vit.transformer)
    assert_near(stepwise[:, 1], oracle.run_blocks(x[:, 1].double().numpy(), w, causal=True))


@torch.no_grad()
def test_a_mask_that_a_program_sets_counts() -> None:
    model = make_vit()
    x = tokens_of(count=1, length=LENGTH)
    for block in model.transformer.resblocks:
        assert isinstance(block, ResidualAttentionBlock)
        block.attn_mask = None
    w = oracle.weights_of(model.transformer)
    found = model.transformer(x)[:, 0]
    assert_near(found, oracle.run_blocks(x[:, 0].double().numpy(), w, causal=False))


def test_hooks_see_all_tokens_of_every_block(vit: CLIP) -> None:
    assert isinstance(vit.visual, VisionTransformer)
    shapes: list[tuple[int, ...]] = []

    def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        shapes.append(tuple(output.shape))

    blocks = [*vit.visual.transformer.resblocks, *vit.transformer.resblocks]
    handles = [block.register_forward_hook(note) for block in blocks]
    with torch.no_grad():
        vit(images_for(vit), some_ids(2))
    for handle in handles:
        handle.remove()
    assert shapes == [(10, 3, 128)] * 2 + [(LENGTH, 2, 128)] * 2


class PromptEncoder(nn.Module):
    """Encode embeddings of prompts by the parts of a model, as programs for prompt learning do."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.transformer = model.transformer
        self.positional_embedding = model.positional_embedding
        self.ln_final = model.ln_final
        self.text_projection = model.text_projection
        self.dtype = model.dtype

    def forward(self, prompts: Tensor, ids: Tensor) -> Tensor:
        x = (prompts + self.positional_embedding.type(self.dtype)).permute(1, 0, 2)
        x = self.ln_final(self.transformer(x).permute(1, 0, 2)).type(self.dtype)
        return x[torch.arange(x.shape[0]), ids.argmax(dim=-1)] @ self.text_projection


def test_a_text_encoder_built_of_the_parts_gives_features_and_gradients(vit: CLIP) -> None:
    ids = some_ids()
    with torch.no_grad():
        prompts = vit.token_embedding(ids).type(vit.dtype)
    prompts.requires_grad_()
    features = PromptEncoder(vit)(prompts, ids)
    torch.testing.assert_close(features, vit.encode_text(ids), **CLOSE)
    features.sum().backward()
    assert prompts.grad is not None
    ends = ids.argmax(dim=-1)
    for row, end in enumerate(ends.tolist()):
        assert prompts.grad[row, : end + 1].abs().sum(-1).min() > 0
        assert prompts.grad[row, end + 1 :].abs().sum() == 0


def test_a_prompt_embedding_gets_the_gradient_that_differences_give(vit: CLIP) -> None:
    encoder, ids = PromptEncoder(vit), some_ids(1)
    prompts = vit.token_embedding(ids).detach().requires_grad_()
    encoder(prompts, ids)[0, 0].backward()
    step = torch.zeros_like(prompts)
    step[0, 1, 5] = 1e-2
    with torch.no_grad():
        up, down = encoder(prompts + step, ids)[0, 0], encoder(prompts - step, ids)[0, 0]
    assert prompts.grad is not None
    assert float((up - down) / 2e-2) == pytest.approx(float(prompts.grad[0, 1, 5]), rel=1e-2)


def test_every_parameter_gets_a_gradient(model: CLIP) -> None:
    model.zero_grad()
    model(images_for(model), some_ids())[0].diagonal().sum().backward()
    missing = [name for name, value in model.named_parameters() if value.grad is None]
    model.zero_grad()
    assert missing == []


@torch.no_grad()
def test_without_its_projection_a_vit_gives_wide_features() -> None:
    model = make_vit()
    assert isinstance(model.visual, VisionTransformer)
    assert model.visual.proj is not None
    images, proj = images_for(model), model.visual.proj
    projected = model.encode_image(images)
    model.visual.proj = None
    wide = model.encode_image(images)
    assert wide.shape == (3, 128)
    torch.testing.assert_close(wide @ proj, projected, **CLOSE)


@torch.no_grad()
def test_without_its_pool_a_resnet_gives_a_map() -> None:
    model = make_resnet()
    images, pool = images_for(model), model.visual.get_submodule("attnpool")
    pooled = model.encode_image(images)
    model.visual.attnpool = nn.Identity()
    feature_map = model.encode_image(images)
    assert feature_map.shape == (3, 512, 2, 2)
    assert torch.equal(pool(feature_map), pooled)


def test_a_pool_without_a_width_of_its_own_keeps_the_channels() -> None:
    pool = AttentionPool2d(2, 64, 1)
    assert pool(torch.randn(2, 64, 2, 2)).shape == (2, 64)
