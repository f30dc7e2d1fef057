"""The models against float64 NumPy written from the paper, and the shortcuts of the pooled towers against full ones."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.clip import CLIP
from clipkit.config import Activation, CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.models import layers
from clipkit.models.layers import Attention, QuickGELU, ResidualAttentionBlock, Transformer
from clipkit.models.resnet import AttentionPool2d
from tests.helpers.numpy_clip import activate, attend, encode_image, encode_text, weights_of
from tests.helpers.random_weights import assert_distinct, randomize, some_images, some_tokens

EXACT = 1e-12  # float64, features of order one
VOCAB, CONTEXT = 60, 16


def vit_config(
    activation: Activation = "quick_gelu", size: int | tuple[int, int] = (24, 32)
) -> CLIPConfig:
    return CLIPConfig(
        embed_dim=20,
        vision=ViTConfig(
            resolution=size,
            patch_size=8,
            width=24,
            layers=3,
            head_width=8,
            mlp_ratio=3,
            activation=activation,
        ),
        text=TextConfig(
            width=36,
            layers=3,
            head_width=12,
            mlp_ratio=2,
            activation=activation,
            context_length=CONTEXT,
            vocab_size=VOCAB,
        ),
    )


def resnet_config(size: int | tuple[int, int] = (64, 96)) -> CLIPConfig:
    return CLIPConfig(
        embed_dim=20,
        vision=ResNetConfig(resolution=size, layers=(1, 2, 1, 1), width=8, head_width=64),
        text=vit_config().text,
    )


def make(config: CLIPConfig, seed: int = 0) -> CLIP:
    """A random model in float64, where exact means exact."""
    return randomize(CLIP(config).double(), seed)


@pytest.fixture(scope="module")
def vit() -> CLIP:
    return make(vit_config())


@pytest.fixture(scope="module")
def resnet() -> CLIP:
    return make(resnet_config())


@pytest.fixture(params=["vit", "resnet"])
def model(request: pytest.FixtureRequest) -> CLIP:
    return request.getfixturevalue(request.param)


def images_for(model: CLIP, count: int = 4) -> Tensor:
    return some_images(count, model.config.vision.resolution).double()


def tokens_for(model: CLIP, count: int = 6, pad: int = 0) -> Tensor:
    return some_tokens(count, model.context_length, model.vocab_size, pad=pad)


def largest(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def oracle_difference(
    activation: Activation = "quick_gelu", change: Callable[[CLIP], Any] | None = None
) -> float:
    """How far a model, changed after the oracle looked at it, is from the oracle, in both towers and by both routes."""
    model = make(vit_config(activation))
    images, tokens = images_for(model, 2), tokens_for(model, 3)
    expected = encode_image(model, images), encode_text(model, tokens), encode_text(model, tokens)
    if change:
        change(model)
    with torch.no_grad():
        found = [model.encode_image(images), model.encode_text(tokens)]
    found.append(model.encode_text(tokens).detach())  # with gradients, row by row
    for features in found:
        assert_distinct(features)
    return max(largest(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_both_towers_equal_the_paper(activation: Activation) -> None:
    assert oracle_difference(activation) < EXACT


def swap_queries_and_keys(model: CLIP) -> None:
    for module in model.modules():
        if isinstance(module, Attention):
            q, k, v = module.in_proj_weight.detach().chunk(3)
            module.in_proj_weight = nn.Parameter(torch.cat([k, q, v]))


def transpose_output(model: CLIP) -> None:
    for module in model.modules():
        if isinstance(module, Attention):
            module.out_proj.weight = nn.Parameter(module.out_proj.weight.detach().T)


def halve_heads(model: CLIP) -> None:
    for module in model.modules():
        if isinstance(module, Attention):
            module.num_heads = 1


@pytest.mark.parametrize("change", [swap_queries_and_keys, transpose_output, halve_heads])
def test_a_wrong_weight_is_seen(change: Callable[[CLIP], None]) -> None:
    assert oracle_difference(change=change) > 1e-2


ATTEND = F.scaled_dot_product_attention


@pytest.mark.parametrize(
    "target, name, broken",
    [
        (F, "scaled_dot_product_attention", lambda q, k, v, attn_mask=None, **_: ATTEND(q, k, v, attn_mask)),
        (F, "scaled_dot_product_attention", lambda q, k, v, is_causal=False, **_: ATTEND(q, k, v, is_causal=is_causal)),
        (QuickGELU, "forward", lambda self, x: F.gelu(x)),
        (nn.LayerNorm, "forward", lambda self, x: F.layer_norm(x, self.normalized_shape, self.weight, self.bias, 1e-3)),
    ],
    ids=["no causal mask", "no mask in the last block", "GELU", "another epsilon"],
)  # fmt: skip
def test_a_wrong_layer_is_seen(
    monkeypatch: pytest.MonkeyPatch, target: Any, name: str, broken: Any
) -> None:
    monkeypatch.setattr(target, name, broken)
    assert oracle_difference() > 1e-4


def test_activations() -> None:
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    assert largest(QuickGELU()(x), activate(x.numpy(), "quick_gelu")) < EXACT
    assert largest(layers.ACTIVATIONS["gelu"]()(x), activate(x.numpy(), "gelu")) < EXACT
    assert largest(QuickGELU()(x), F.gelu(x)) > 0.02


def test_attention_and_its_single_query_equal_the_oracle() -> None:
    attention, causal_attention = (
        randomize(Attention(24, 3, causal).double()) for causal in (False, True)
    )
    causal_attention.load_state_dict(attention.state_dict())
    w = weights_of(attention)
    x = torch.randn(2, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ends = torch.tensor([3, 6])
    with torch.no_grad():
        found = {False: attention(x), True: causal_attention(x)}
        queries = causal_attention(x, ends)
        unmasked = attention(x, 0)
    for n in range(2):
        projected = np.split(x[n].numpy() @ w["in_proj_weight"].T + w["in_proj_bias"], 3, axis=1)
        for causal in (False, True):
            attended = attend(*projected, heads=3, causal=causal)
            expected = attended @ w["out_proj.weight"].T + w["out_proj.bias"]
            assert largest(found[causal][n], expected) < EXACT
            assert (
                largest(
                    queries[n, 0] if causal else unmasked[n, 0], expected[ends[n] if causal else 0]
                )
                < EXACT
            )


def test_attention_pool_equals_full_attention() -> None:
    pool = randomize(AttentionPool2d((2, 3), 24, 4, 10).double())
    w = weights_of(pool)
    maps = torch.randn(3, 24, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = pool(maps)
    for n in range(3):
        x = maps[n].numpy().reshape(24, 6).T  # rows of the map one after another
        x = np.concatenate([x.mean(0, keepdims=True), x]) + w["positional_embedding"]
        q, k, v = (x @ w[f"{part}_proj.weight"].T + w[f"{part}_proj.bias"] for part in "qkv")
        expected = attend(q, k, v, heads=4) @ w["c_proj.weight"].T + w["c_proj.bias"]
        assert largest(found[n], expected[0]) < EXACT
        assert largest(found[n], expected[1]) > 1e-2


def gradients(output: Tensor, *modules: nn.Module) -> dict[str, Tensor]:
    """Of a fixed random sum of `output`, for every parameter."""
    for module in modules:
        module.zero_grad()
    random = torch.Generator().manual_seed(3)
    (output * torch.randn(output.shape, dtype=output.dtype, generator=random)).sum().backward()
    found = {
        f"{i}.{k}": p.grad for i, module in enumerate(modules) for k, p in module.named_parameters()
    }
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        assert gradient.abs().max() > 0, name
        assert largest(gradient, other[name]) < 1e-11 * max(1, float(gradient.abs().max())), name


@pytest.mark.parametrize("causal", [False, True])
def test_pooled_transformer_equals_the_full_one(causal: bool) -> None:
    stack = randomize(Transformer(24, 3, 3, 60, "quick_gelu", causal).double())
    source = nn.Embedding(
        5 * 9, 24, dtype=torch.float64
    )  # stands for the input, so that its gradient is compared too
    x = source.weight.view(5, 9, 24)
    at: Tensor | int = torch.tensor([8, 0, 3, 7, 1]) if causal else 0
    pooled = stack(x, at)
    full = stack(x)[torch.arange(5), at]
    assert pooled.shape == (5, 24)
    assert largest(pooled.detach(), full.detach()) < EXACT
    by_pooled = gradients(pooled, stack, source)
    assert_same_gradients(by_pooled, gradients(full, stack, source))
    assert len(by_pooled) == 3 * 12 + 1


def full_text(model: CLIP, tokens: Tensor) -> Tensor:
    """The text tower with nothing cut: every position through every block."""
    text = model.text
    x = text.token_embedding(tokens) + text.positional_embedding[: tokens.shape[1]]
    x = text.ln_final(text.transformer(x))
    return x[torch.arange(len(tokens)), tokens.argmax(dim=-1)] @ text.text_projection


def full_image(model: CLIP, images: Tensor) -> Tensor:
    visual: Any = model.visual
    return visual.ln_post(visual.transformer(visual.embed(images)))[:, 0] @ visual.proj


@pytest.mark.parametrize("longest", [3, 9, CONTEXT])
def test_trimmed_text_equals_untrimmed(vit: CLIP, longest: int) -> None:
    tokens = torch.zeros(5, CONTEXT, dtype=torch.int64)
    tokens[:, :longest] = some_tokens(5, longest, VOCAB)
    trimmed, full = vit.encode_text(tokens), full_text(vit, tokens)
    assert largest(trimmed.detach(), full.detach()) < EXACT
    by_trimmed = gradients(trimmed, vit.text)
    assert_same_gradients(by_trimmed, gradients(full, vit.text))
    assert not by_trimmed["0.positional_embedding"][longest:].any()


def test_pooled_image_tower_equals_the_full_one(vit: CLIP) -> None:
    images = images_for(vit)
    pooled, full = vit.encode_image(images), full_image(vit, images)
    assert largest(pooled.detach(), full.detach()) < EXACT
    assert_same_gradients(gradients(pooled, vit.visual), gradients(full, vit.visual))


def test_nothing_beyond_the_last_end_of_text_is_computed(vit: CLIP) -> None:
    tokens = torch.zeros(4, CONTEXT, dtype=torch.int64)
    tokens[:, :7] = some_tokens(4, 7, VOCAB)
    seen: list[tuple[int, ...]] = []
    blocks = [
        block
        for block in vit.text.transformer.resblocks
        if isinstance(block, ResidualAttentionBlock)
    ]
    hooks = [
        block.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
        for block in blocks
    ]
    vit.encode_text(tokens)
    for hook in hooks:
        hook.remove()
    assert seen == [(4, 7, 36), (4, 7, 36), (4, 1, 36)]


def test_text_does_not_depend_on_what_follows_its_end(vit: CLIP) -> None:
    tokens = tokens_for(vit)
    expected = vit.encode_text(tokens).detach()
    assert_distinct(expected)
    after = torch.arange(CONTEXT) > tokens.argmax(dim=-1)[:, None]
    words = torch.randint(0, VOCAB, tokens.shape, generator=torch.Generator().manual_seed(4))
    for filling in (
        torch.tensor(VOCAB - 1),
        torch.tensor(VOCAB - 2),
        words,
    ):  # end of text again and again, start, any
        assert torch.equal(vit.encode_text(torch.where(after, filling, tokens)), expected)
    shorter = tokens[:3, : int(tokens[:3].argmax(dim=-1).max()) + 1]
    assert largest(vit.encode_text(shorter).detach(), expected[:3]) < EXACT
    assert torch.equal(vit.encode_text(tokens.int()), expected)
    before = torch.where(torch.arange(CONTEXT) == 1, 5, tokens)
    assert largest(vit.encode_text(before).detach(), expected) > 1e-2


def test_features_do_not_depend_on_the_batch(model: CLIP) -> None:
    """In float32 within 1e-6 a component of a unit vector: other batches are summed in another order."""
    model = copy.deepcopy(model).float()
    images, tokens = images_for(model, 5), tokens_for(model, 5)
    for encode, inputs in ((model.encode_image, images), (model.encode_text, tokens)):
        together = encode(inputs, normalize=True).detach()
        one_by_one = torch.cat([encode(item[None], normalize=True) for item in inputs]).detach()
        assert_distinct(together)
        assert largest(together, one_by_one) < 1e-6


def test_forward_scales_cosines(model: CLIP) -> None:
    images, tokens = images_for(model, 2), tokens_for(model, 3)
    per_image, per_text = model(images, tokens)
    assert per_image.shape == (2, 3) and per_image.dtype == torch.float32
    assert torch.equal(per_image.T, per_text)
    image_features, text_features = (
        model.encode_image(images).detach(),
        model.encode_text(tokens).detach(),
    )
    for features in (image_features, text_features):
        features /= features.norm(dim=-1, keepdim=True)
    expected = math.exp(model.logit_scale.item()) * image_features @ text_features.T
    assert largest(per_image.detach(), expected) < 1e-4
    assert largest(model.encode_image(images, normalize=True).detach(), image_features) < EXACT
    assert largest(model.encode_text(tokens, normalize=True).detach(), text_features) < EXACT


# What models are made of.


def test_parts_are_where_tutorials_expect_them(vit: CLIP, resnet: CLIP) -> None:
    assert vit.visual.input_resolution == (24, 32) and resnet.visual.input_resolution == (64, 96)
    assert make(vit_config(size=16)).visual.input_resolution == 16
    assert make(resnet_config(64)).visual.input_resolution == 64
    assert vit.visual.output_dim == resnet.visual.output_dim == vit.text.output_dim == 20
    assert vit.dtype == torch.float64 and copy.deepcopy(vit).float().dtype == torch.float32
    assert vit.device == torch.device("cpu")
    assert (vit.context_length, vit.vocab_size) == (CONTEXT, VOCAB)
    headless: Any = copy.deepcopy(resnet)
    pooled = resnet.encode_image(images_for(resnet))
    headless.visual.attnpool = nn.Identity()
    maps = headless.encode_image(images_for(resnet))
    assert maps.shape == (4, 256, 2, 3)
    assert torch.equal(resnet.visual.attnpool(maps), pooled)


@pytest.mark.parametrize("size", [32, 63, 64, (95, 100), (96, 33)])
def test_the_grid_of_a_resnet_is_that_of_its_map(size: int | tuple[int, int]) -> None:
    model = make(resnet_config(size))
    height, width = model.config.vision.grid
    assert model.encode_image(images_for(model, 1)).shape == (1, 20)
    model.visual.attnpool = nn.Identity()
    assert model.encode_image(images_for(model, 1)).shape == (1, 256, height, width)


def test_a_vit_does_not_see_a_rest_smaller_than_a_patch() -> None:
    model = make(vit_config(size=(30, 33)))
    images = images_for(model)
    changed = images.clone()
    changed[:, :, 24:] = changed[:, :, :, 32:] = 0
    assert model.config.vision.grid == (3, 4)
    assert torch.equal(model.encode_image(images), model.encode_image(changed))


# Precision and copies.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(model: CLIP, dtype: torch.dtype) -> None:
    images, tokens = images_for(model), tokens_for(model)
    expected = model.encode_image(images).detach(), model.encode_text(tokens).detach()
    half = copy.deepcopy(model).to(dtype)
    found = half.encode_image(images), half.encode_text(tokens)
    single = copy.deepcopy(model).float()
    with torch.autocast("cpu", dtype=dtype):
        automatic = single.encode_image(images), single.encode_text(tokens)
        logits, _ = single(images, tokens)
    assert logits.dtype == half(images, tokens)[0].dtype == torch.float32
    for one, other, exact in zip(found, automatic, expected, strict=True):
        assert one.dtype == dtype
        assert F.cosine_similarity(one.detach().double(), exact).min() > 0.995
        assert F.cosine_similarity(other.detach().double(), exact).min() > 0.995


def test_autocast_trains(model: CLIP) -> None:
    model = copy.deepcopy(model).float().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = model(images_for(model), tokens_for(model, 4))
    F.cross_entropy(logits, torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_copies_are_equal_and_apart(model: CLIP) -> None:
    images, tokens = images_for(model), tokens_for(model)
    expected = model.encode_image(images), model.encode_text(tokens)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.config == model.config and not twin.training
        assert torch.equal(twin.encode_image(images), expected[0])
        assert torch.equal(twin.encode_text(tokens), expected[1])
        with torch.no_grad():
            twin.logit_scale.zero_()
        assert model.logit_scale != 0
