"""Attention maps are the towers' own softmax, for the layers and heads that are asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clipkit import CLIP
from clipkit.errors import ConfigError, ImageError, TokenizerError
from clipkit.inspect.attention import attention_maps, text_attention_maps
from clipkit.inspect.rollout import rollout
from clipkit.inspect.towers import (
    block_of,
    feature_map,
    merge_heads,
    pool_of,
    pool_tokens,
    split_pool_qkv,
    split_qkv,
    tokens_before,
)
from tests.helpers import explain_oracle as oracle
from tests.helpers.models import make_small_tokenizer
from tests.helpers.random_weights import some_images, some_tokens
from tests.helpers.towers import make_resnet, make_vit, with_low_rank_changes


def with_words(model: CLIP) -> CLIP:
    model.tokenizer = make_small_tokenizer()
    return model


def largest(difference: Tensor) -> float:
    return float(difference.detach().abs().max())


def test_maps_of_both_towers_agree_with_numpy() -> None:
    model = make_vit()
    images, ids = some_images(2, 32), some_tokens(3, 8, 600)
    maps, text_maps = attention_maps(model, images), text_attention_maps(model, ids)
    assert maps.shape == (2, 2, 2, 5, 5)
    assert text_maps.shape == (3, 2, 2, 8, 8)
    for row in range(2):
        _, blocks = oracle.image_tower(model, images[row].numpy()).run()
        for layer, block in enumerate(blocks):
            np.testing.assert_allclose(maps[row, layer], block.weights, atol=2e-6)
    for row in range(3):
        _, blocks = oracle.text_tower(model, [int(token) for token in ids[row]]).run()
        for layer, block in enumerate(blocks):
            np.testing.assert_allclose(text_maps[row, layer], block.weights, atol=2e-6)


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (35, 90)])
def test_maps_sum_to_one_and_reproduce_what_a_block_adds(size: tuple[int, int]) -> None:
    model, images = make_vit(), some_images(2, size)
    for layer in (0, 1):
        weights = attention_maps(model, images, layers=layer)[:, 0]  # (N, heads, L, L)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3]))
        block = block_of(model.visual, layer)
        x = block.ln_1(tokens_before(model.visual, images, layer))
        _, _, v = split_qkv(block.attn, x)
        gathered = block.attn.out_proj(merge_heads(weights @ v))
        assert largest(gathered - block.attn(x, at="all")) < 1e-5


@pytest.mark.parametrize("size", [(64, 64), (96, 128)])
def test_the_map_of_a_resnet_reproduces_its_pool(size: tuple[int, int]) -> None:
    model, images = make_resnet(), some_images(3, size)
    weights = attention_maps(model, images)  # (N, 1, heads, 1, L)
    pool = pool_of(model.visual)
    rows, columns = size[0] // 32, size[1] // 32
    assert weights.shape == (3, 1, pool.num_heads, 1, 1 + rows * columns)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:4]))
    tokens = pool_tokens(model.visual, feature_map(model.visual, images))
    _, _, v = split_pool_qkv(pool, tokens)
    pooled = pool.c_proj(merge_heads(weights[:, 0] @ v)[:, 0])
    if size == (64, 64):
        assert largest(pooled - model.encode_image(images)) < 1e-5
    last = attention_maps(model, images, layers=-1, heads=0)
    assert torch.equal(last, weights[:, :, :1])


def test_parity_with_transformers() -> None:
    transformers: Any = pytest.importorskip("transformers")
    from tests.helpers.peers import small, transformers_config
    from tests.helpers.random_weights import randomize

    config = small("ViT-B/16")
    peer = transformers.CLIPModel._from_config(
        transformers_config(config, eos_token_id=639), attn_implementation="eager"
    )
    peer = randomize(peer)
    model = CLIP(config)
    model.load_state_dict(peer.state_dict())
    model.eval()
    images, ids = some_images(2, config.vision.resolution), some_tokens(3, 24, 640)
    with torch.no_grad():
        expected = peer.vision_model(images, output_attentions=True).attentions
        expected_text = peer.text_model(ids, output_attentions=True).attentions
    assert largest(attention_maps(model, images) - torch.stack(expected, dim=1)) < 1e-5
    found = text_attention_maps(model, ids)
    assert largest(found - torch.stack(expected_text, dim=1)) < 1e-5


def test_layers_and_heads_come_in_the_order_that_was_asked_for() -> None:
    model, images = make_vit(), some_images(2, 32)
    maps = attention_maps(model, images)
    assert torch.equal(attention_maps(model, images, layers=[1, 0, -1]), maps[:, [1, 0, 1]])
    assert torch.equal(attention_maps(model, images, 0, 1), maps[:, :1, 1:])
    assert torch.equal(attention_maps(model, images, heads=[1, 0]), maps[:, :, [1, 0]])
    assert not torch.equal(maps[:, 0], maps[:, 1])
    ids = some_tokens(2, 6, 600)
    text_maps = text_attention_maps(model, ids)
    assert torch.equal(text_attention_maps(model, ids, -1, [0]), text_maps[:, 1:, :1])


def test_tokens_run_no_further_than_to_the_layer_that_was_asked_for() -> None:
    model, images = make_vit(), some_images(1, 32)
    calls: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and ".ln_1" in name:

            def count(_module: nn.Module, _inputs: object, name: str = name) -> None:
                calls.append(name)

            module.register_forward_pre_hook(count)
    attention_maps(model, images, layers=0)
    text_attention_maps(model, some_tokens(1, 5, 600), layers=[0, 0])
    assert [name.split(".")[3] for name in calls] == ["0", "0"]


def test_a_text_map_is_as_long_as_the_longest_text() -> None:
    model = with_words(make_vit())
    texts = ["a cat", "a big dog"]
    longest = max(map(model.tokenizer.count, texts))
    maps = text_attention_maps(model, texts)
    assert maps.shape == (2, 2, 2, longest, longest)
    assert maps.triu(1).count_nonzero() == 0
    one = text_attention_maps(model, texts[0])
    count = model.tokenizer.count(texts[0])
    assert one.shape == (1, 2, 2, count, count)
    torch.testing.assert_close(one[0], maps[0, :, :, :count, :count])


def test_modes_statistics_and_gradients_stay_as_they_are() -> None:
    model = make_resnet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = attention_maps(make_resnet(), some_images(2, 64))
    assert torch.equal(attention_maps(model, some_images(2, 64)), expected)
    assert model.training
    assert not expected.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_half_precision_and_autocast_give_float32_rows_that_sum_to_one() -> None:
    images = some_images(2, 32)
    expected = attention_maps(make_vit(), images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = attention_maps(make_vit(), images)
    for maps in (attention_maps(make_vit().bfloat16(), images), cast):
        assert maps.dtype == torch.float32
        assert largest(maps.sum(dim=-1) - 1) < 1e-6
        assert largest(maps - expected) < 0.1


@pytest.mark.parametrize(("layers", "shown"), [(2, "2"), (-3, "-3"), ([0, 5], "5"), (True, "True")])
def test_layers_out_of_range(layers: Any, shown: str) -> None:
    model = make_vit()
    message = f"there is no layer {shown} among 2: pass 0 to 1, or -1 to -2"
    with pytest.raises(ConfigError, match=message):
        attention_maps(model, some_images(1, 32), layers=layers)
    with pytest.raises(ConfigError, match=message):
        text_attention_maps(model, some_tokens(1, 5, 600), layers=layers)


def test_heads_out_of_range_and_no_numbers_at_all() -> None:
    model, images = make_vit(), some_images(1, 32)
    with pytest.raises(ConfigError, match="no head 2 among 2"):
        attention_maps(model, images, heads=2)
    with pytest.raises(ConfigError, match=r"layers must be a number or a list .* not \[\]"):
        attention_maps(model, images, layers=[])
    wrong: Any = 0.5
    last: Any = "last"
    with pytest.raises(ConfigError, match="layers must be .* not 'last': pass -1 for the last"):
        attention_maps(model, images, layers=last)
    with pytest.raises(ConfigError, match=r"heads must be a number or a list of numbers, not 0\.5"):
        attention_maps(model, images, heads=wrong)
    with pytest.raises(ConfigError, match="no layer 1 among 1"):
        attention_maps(make_resnet(), some_images(1, 64), layers=1)


def test_what_is_no_model_image_or_text() -> None:
    model: Any = make_vit()
    wrong: Any = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"attention_maps looks into a .* not a Linear"):
        attention_maps(wrong, some_images(1, 32))
    with pytest.raises(ConfigError, match=r"text_attention_maps looks into a clipkit\.CLIP"):
        text_attention_maps(wrong, "a cat")
    with pytest.raises(ImageError, match="smaller than a patch"):
        attention_maps(model, some_images(1, (15, 32)))
    with pytest.raises(TokenizerError, match="text_attention_maps needs int64"):
        text_attention_maps(model, torch.zeros(1, 5))
    with pytest.raises(ConfigError, match="at least one text"):
        text_attention_maps(model, [])
    model.text.transformer.resblocks[1] = nn.Identity()
    with pytest.raises(ConfigError, match="block 1 is a Identity"):
        text_attention_maps(model, some_tokens(1, 5, 600))


def test_rollout_agrees_with_numpy() -> None:
    model, images = make_vit(), some_images(2, 32)
    found = rollout(model, images)
    for row in range(2):
        expected = oracle.rollout(oracle.image_tower(model, images[row].numpy()))
        np.testing.assert_allclose(found[row], expected, atol=2e-6)
    wide = rollout(model.train(), some_images(2, (32, 64)))
    assert wide.shape == (2, 9, 9)
    torch.testing.assert_close(wide.sum(dim=-1), torch.ones(2, 9))
    assert not wide.requires_grad


def test_rollout_under_autocast_has_float32_rows_that_sum_to_one() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rollout(make_vit(), some_images(2, 32))
    assert found.dtype == torch.float32
    assert largest(found.sum(dim=-1) - 1) < 1e-6


def test_dropout_of_low_rank_changes_is_off() -> None:
    model, images = with_low_rank_changes(make_vit()).train(), some_images(2, 32)
    found = rollout(model, images)
    assert torch.equal(rollout(model, images), found)
    assert model.training
    assert torch.equal(rollout(model.eval(), images), found)


def test_a_resnet_has_no_rollout() -> None:
    with pytest.raises(ConfigError, match=r"rollout follows .* explain\(method='grad_cam'"):
        rollout(make_resnet(), some_images(1, 64))


def test_images_come_as_files_too(tmp_path: Path) -> None:
    model = make_vit()
    path = tmp_path / "image.png"
    Image.new("RGB", (50, 40), "orange").save(path)
    prepared = model.preprocess(path).unsqueeze(0)
    assert torch.equal(attention_maps(model, [path]), attention_maps(model, prepared))
    assert torch.equal(rollout(model, tmp_path), rollout(model, prepared))
    with pytest.raises(ImageError, match="nowhere"):
        attention_maps(model, ["nowhere.png"])
