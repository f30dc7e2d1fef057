"""Dense maps against float64 NumPy, written from the papers, and the tower's own pooling."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit import CLIP, inspect, lora, merge_lora
from clipkit.config import ViTConfig
from clipkit.errors import ConfigError, ImageError
from clipkit.inspect import towers
from tests.helpers import numpy_clip
from tests.helpers.exact import (
    EXACT,
    images_for,
    largest_difference,
    make_exact,
    resnet_config,
    vit_config,
    vit_of,
)
from tests.helpers.package import TESTS
from tests.helpers.random_weights import some_images
from tests.helpers.towers import make_inputs, make_resnet, make_vit

Array = numpy_clip.Array
PHOTOS = TESTS.parent / "examples" / "photos"


def softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def gather_by_hand(
    q: Array, k: Array, v: Array, heads: int, grid: tuple[int, int], method: str
) -> Array:
    """Return what each place gathers, place by place and head by head: (1 + P, W) -> (P, W)."""
    size = v.shape[1] // heads
    out = np.zeros((len(v) - 1, v.shape[1]))
    for place in range(len(v) - 1):
        row, column = divmod(place, grid[1])
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            if method == "values":
                out[place, part] = v[1 + place, part]
                continue
            side = k if method == "neighbors" else q
            scores = side[:, part] @ side[1 + place, part] / math.sqrt(size)
            if method == "neighbors":
                for other in range(len(v) - 1):
                    down, right = divmod(other, grid[1])
                    distance = (row - down) ** 2 + (column - right) ** 2
                    scores[1 + other] += math.exp(-distance / (2 * 5**2))
            out[place, part] = softmax(scores) @ v[:, part]
    return out


def vit_by_hand(model: CLIP, images: Tensor, method: str) -> Array:
    """Return the dense maps of a vision transformer at its own size, (N, D, rows, columns)."""
    w, config = numpy_clip.weights_of(model.visual), model.config.vision
    assert isinstance(config, ViTConfig)
    maps: list[Array] = []
    for image in images.numpy():
        patches = numpy_clip.embed_patches(image, w["conv1.weight"], config.grid)
        x = np.concatenate([w["class_embedding"][None], patches]) + w["positional_embedding"]
        x = numpy_clip.layer_norm(x, w, "ln_pre")
        first = replace(config, layers=config.layers - 1)
        x = numpy_clip.transform(x, numpy_clip.below(w, "transformer."), first, causal=False)
        b = numpy_clip.below(w, f"transformer.resblocks.{config.layers - 1}.")
        h = numpy_clip.layer_norm(x, b, "ln_1")
        q, k, v = np.split(h @ b["attn.in_proj_weight"].T + b["attn.in_proj_bias"], 3, axis=1)
        h = gather_by_hand(q, k, v, config.heads, config.grid, method)
        h = h @ b["attn.out_proj.weight"].T + b["attn.out_proj.bias"]
        if method == "values":
            h = x[1:] + h
            m = numpy_clip.layer_norm(h, b, "ln_2") @ b["mlp.c_fc.weight"].T + b["mlp.c_fc.bias"]
            m = numpy_clip.activate(m, config.activation)
            h = h + m @ b["mlp.c_proj.weight"].T + b["mlp.c_proj.bias"]
        h = numpy_clip.layer_norm(h, w, "ln_post") @ w["proj"]
        maps.append(h.T.reshape(-1, *config.grid))
    return np.stack(maps)


def pool_by_hand(model: CLIP, features: Array, method: str) -> Array:
    """Return the dense maps of a ResNet's pool for maps of its own size, (N, D, rows, columns)."""
    w = numpy_clip.weights_of(model.visual)
    heads = towers.pool_of(model.visual).num_heads
    pool = numpy_clip.below(w, "attnpool.")
    maps: list[Array] = []
    for one in features:
        x = one.reshape(one.shape[0], -1).T  # (P, C)
        x = np.concatenate([x.mean(0, keepdims=True), x]) + pool["positional_embedding"]
        q, k, v = (x @ pool[f"{n}_proj.weight"].T + pool[f"{n}_proj.bias"] for n in "qkv")
        h = gather_by_hand(q, k, v, heads, (one.shape[1], one.shape[2]), method)
        h = h @ pool["c_proj.weight"].T + pool["c_proj.bias"]
        maps.append(h.T.reshape(-1, *one.shape[1:]))
    return np.stack(maps)


@pytest.mark.parametrize("method", ["neighbors", "values", "queries"])
def test_vits_agree_with_numpy(exact_vit: CLIP, method: Any) -> None:
    images = images_for(exact_vit)
    found = inspect.dense_features(exact_vit, images, method)
    assert found.shape == (4, 20, 3, 4)
    expected = vit_by_hand(exact_vit, images, method)
    assert largest_difference(found.detach(), expected) < EXACT


@pytest.mark.parametrize("method", ["neighbors", "values", "queries"])
def test_resnets_agree_with_numpy(exact_resnet: CLIP, method: Any) -> None:
    images = images_for(exact_resnet)
    found = inspect.dense_features(exact_resnet, images, method)
    assert found.shape == (4, 20, 2, 3)
    features = inspect.dense_features(exact_resnet, images, "raw").detach().numpy()
    expected = pool_by_hand(exact_resnet, features, method)
    assert largest_difference(found.detach(), expected) < EXACT


def test_the_tower_decides_the_method(exact_vit: CLIP, exact_resnet: CLIP) -> None:
    images = images_for(exact_vit)
    expected = inspect.dense_features(exact_vit, images, "neighbors")
    assert torch.equal(inspect.dense_features(exact_vit, images), expected)
    images = images_for(exact_resnet)
    expected = inspect.dense_features(exact_resnet, images, "values")
    assert torch.equal(inspect.dense_features(exact_resnet, images), expected)


def test_values_of_a_resnet_pooled_by_its_own_attention_are_the_feature() -> None:
    """Each head pools what the others leave out. The mean of the map has a value too."""
    model = make_exact(resnet_config())
    images, visual = images_for(model), model.visual
    pool = towers.pool_of(visual)
    tokens = towers.pool_tokens(visual, towers.feature_map(visual, images))
    expected = model.encode_image(images).detach()
    q, k, v = towers.split_pool_qkv(pool, tokens)
    size = q.shape[-1]
    attention = (q[:, :, :1] @ k.transpose(-1, -2) / size**0.5).softmax(-1).detach()
    weight, bias = pool.c_proj.weight.detach().clone(), pool.c_proj.bias.detach().clone()
    total = bias.expand(len(images), -1).clone()
    with torch.no_grad():
        pool.c_proj.bias.zero_()
        for head in range(pool.num_heads):
            part = slice(head * size, (head + 1) * size)
            pool.c_proj.weight.zero_()
            pool.c_proj.weight[:, part] = weight[:, part]
            own = attention[:, head, 0]  # (N, 1 + P)
            values = inspect.dense_features(model, images, "values").flatten(2)  # (N, D, P)
            total += torch.einsum("np,ndp->nd", own[:, 1:], values)
            total += own[:, :1] * (v[:, head, 0] @ weight[:, part].T)
    assert pool.num_heads > 1
    assert largest_difference(total, expected) < EXACT


def test_one_patch_that_attends_to_itself_is_known_exactly() -> None:
    """Of an image of one patch, NACLIP's weights are those of keys and one for no distance."""
    model: Any = make_exact(vit_config())
    images = some_images(2, (8, 8)).double()
    found = inspect.dense_features(model, images).detach()
    visual = vit_of(model)
    block = towers.block_of(visual, -1)
    _, k, v = towers.split_qkv(block.attn, block.ln_1(towers.tokens_before(visual, images, -1)))
    scores = (k[:, :, 1:] @ k.transpose(-1, -2)) / 8**0.5 + torch.tensor([0.0, 1.0])
    gathered = block.attn.out_proj(towers.merge_heads(scores.softmax(-1) @ v))
    expected = visual.ln_post(gathered)[:, 0] @ model.visual.proj
    assert largest_difference(found[:, :, 0, 0], expected.detach()) < EXACT


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("method", ["neighbors", "values", "queries", "raw"])
def test_any_size_gives_a_map_of_its_grid(kind: str, method: Any) -> None:
    model = make_vit() if kind == "vit" else make_resnet()
    grid = (3, 6) if kind == "vit" else (2, 3)
    images = some_images(2, (63, 97)).half()
    found = inspect.dense_features(model, images, method)
    width = {"vit": 32, "resnet": 256}[kind] if method == "raw" else 16
    assert found.shape == (2, width, *grid)
    assert found.dtype is torch.float32
    assert found.isfinite().all()


def test_raw_maps_are_the_tokens_of_the_tower(exact_vit: CLIP, exact_resnet: CLIP) -> None:
    images, visual = images_for(exact_vit), vit_of(exact_vit)
    for block in (0, 1, 2, -1, -3):
        found = inspect.dense_features(exact_vit, images, "raw", after_block=block)
        tokens = visual.tokens(images, block=block, norm=False)[:, 1:]
        assert torch.equal(found.flatten(2).transpose(1, 2), tokens)
    images, resnet = images_for(exact_resnet), towers.resnet_of(exact_resnet.visual)
    for stage in (0, 3, -1, -2):
        found = inspect.dense_features(exact_resnet, images, "raw", after_block=stage)
        assert torch.equal(found.flatten(2).transpose(1, 2), resnet.tokens(images, stage=stage))
    last = inspect.dense_features(exact_resnet, images, "raw")
    assert torch.equal(last, inspect.dense_features(exact_resnet, images, "raw", after_block=3))


def test_another_models_affinities_take_the_place_of_attention(exact_vit: CLIP) -> None:
    images = images_for(exact_vit)
    seen: list[Any] = []

    def itself(given: Tensor, grid: tuple[int, int]) -> Tensor:
        seen.append((given, grid))
        return 3 * torch.eye(12).expand(4, -1, -1)

    found = inspect.dense_features(exact_vit, images, affinity=itself).detach()
    assert torch.equal(seen[0][0], images)
    assert seen[0][1] == (3, 4)
    visual = vit_of(exact_vit)
    block = towers.block_of(visual, -1)
    _, _, v = towers.split_qkv(block.attn, block.ln_1(towers.tokens_before(visual, images, -1)))
    values = block.attn.out_proj(towers.merge_heads(v)[:, 1:])
    assert visual.proj is not None
    expected = (visual.ln_post(values) @ visual.proj).transpose(1, 2).detach()
    assert largest_difference(found.flatten(2), expected) < 1e-7

    def first(given: Tensor, grid: tuple[int, int]) -> Tensor:
        return torch.eye(12)[0].expand(4, 12, 12)

    found = inspect.dense_features(exact_vit, images, affinity=first).detach()
    assert largest_difference(found.flatten(2), expected[:, :, :1].expand(-1, -1, 12)) < 1e-7


def test_affinities_of_a_resnet_weigh_its_places(exact_resnet: CLIP) -> None:
    images = images_for(exact_resnet)
    weights = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    found = inspect.dense_features(exact_resnet, images, affinity=lambda *_: weights)
    values = inspect.dense_features(exact_resnet, images, "values").flatten(2)
    mixed = values @ (weights / weights.sum(-1, keepdim=True)).transpose(1, 2)  # c_proj is affine
    assert largest_difference(found.flatten(2).detach(), mixed.detach()) < 1e-6


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(7, 4, 3), r"a tensor \(7, 4, 4\), .* 2 x 2 places, not \(7, 4, 3\)"),
        ([1.0], r"a tensor \(7, 4, 4\), .*not list"),
        (-torch.ones(7, 4, 4), "weights from 0, finite"),
        (torch.zeros(7, 4, 4), "one above 0 in each row: take a softmax"),
        (torch.full((7, 4, 4), math.nan), "weights from 0, finite"),
        (torch.full((7, 4, 4), math.inf), "weights from 0, finite"),
    ],
)
def test_affinities_that_are_none_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        inspect.dense_features(make_vit(), make_inputs("vit"), affinity=lambda *_: weights)


def test_gradients_reach_the_weights_and_the_images() -> None:
    model = make_vit()
    images = make_inputs("vit").requires_grad_()
    inspect.dense_features(model, images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    assert towers.block_of(model.visual, -1).attn.in_proj_weight.grad is not None


def test_training_mode_changes_nothing_and_stays() -> None:
    for model, kind in ((make_vit(), "vit"), (make_resnet(), "resnet")):
        images = make_inputs(kind)  # pyright: ignore[reportArgumentType]
        expected = inspect.dense_features(model, images)
        statistics = {name: value.clone() for name, value in model.named_buffers()}
        model.train()
        assert torch.equal(inspect.dense_features(model, images), expected)
        assert model.visual.training
        for name, value in model.named_buffers():
            assert torch.equal(value, statistics[name])


def test_low_rank_changes_count(exact_vit: CLIP) -> None:
    adapted = lora(exact_vit, rank=2)
    for name, value in adapted.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(value, std=0.3)
    images = images_for(exact_vit)
    for method in ("neighbors", "queries", "values"):
        found = inspect.dense_features(adapted, images, method).detach()
        expected = inspect.dense_features(merge_lora(adapted), images, method).detach()
        assert largest_difference(found, expected) < 1e-6
        other = inspect.dense_features(exact_vit, images, method).detach()
        assert largest_difference(found, other) > 1e-3


def test_fast_copies_make_the_same_maps() -> None:
    for model, images in ((make_vit(), some_images(2, 48)), (make_resnet(), some_images(2, 96))):
        for cast in (model, model.bfloat16()):
            with torch.no_grad():
                found = inspect.dense_features(cast.optimize(), images).float()
                expected = inspect.dense_features(cast, images).float()
            slack = 1e-4 if cast.dtype is torch.float32 else 0.1
            torch.testing.assert_close(found, expected, rtol=slack, atol=slack)


def test_images_are_prepared_as_embed_images_does() -> None:
    model = CLIP.from_pretrained("tiny", device="cpu")
    paths = sorted(PHOTOS.glob("*.jpg"))
    found = inspect.dense_features(model, paths)
    batch = torch.stack([model.preprocess(path) for path in paths])
    assert torch.equal(found, inspect.dense_features(model, batch))
    with pytest.raises(ImageError, match=r"cannot find .*none\.jpg"):
        inspect.dense_features(model, ["none.jpg"])


def test_a_tower_without_its_projection_gives_its_own_width() -> None:
    model: Any = make_vit()
    model.visual.proj = None
    assert inspect.dense_features(model, make_inputs("vit")).shape == (7, 32, 2, 2)


def test_unknown_methods_and_settings_that_would_be_ignored_are_refused() -> None:
    model, images = make_vit(), make_inputs("vit")
    method: Any = "naclip"
    with pytest.raises(ConfigError, match="neighbors, values, queries, raw, not 'naclip'"):
        inspect.dense_features(model, images, method)
    with pytest.raises(ConfigError, match="after_block=1 is of raw maps, and method=None"):
        inspect.dense_features(model, images, after_block=1)
    with pytest.raises(ConfigError, match="affinity would be ignored by method='values'"):
        inspect.dense_features(model, images, "values", affinity=lambda *_: images)
    number: Any = 3
    with pytest.raises(ConfigError, match="affinity must be a function of images .* not 3: pass"):
        inspect.dense_features(model, images, affinity=number)
    with pytest.raises(ConfigError, match="no block 2 among 2"):
        inspect.dense_features(model, images, "raw", after_block=2)
    with pytest.raises(ConfigError, match="no stage 4 in a ResNet"):
        inspect.dense_features(make_resnet(), make_inputs("resnet"), "raw", after_block=4)
    with pytest.raises(ImageError, match="15 x 32 pixels are smaller"):
        inspect.dense_features(model, images[:, :, :15])
    other: Any = torch.nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"dense_features looks into a clipkit\.CLIP"):
        inspect.dense_features(other, images)
