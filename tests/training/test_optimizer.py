"""Who is trained, at which rate, with which decay."""

import copy
import math

import pytest
import torch

from clipkit import CLIP
from clipkit.errors import ConfigError
from clipkit.training.optimizer import (
    adamw,
    clip_gradients,
    count_blocks,
    depth,
    lock,
    train_mode,
)


def test_depth(clip: CLIP) -> None:
    """Each parameter of both towers has a depth, in the order of the forward pass."""
    for tower in (clip.visual, clip.text):
        blocks = count_blocks(tower)
        depths = {name: depth(name, blocks) for name, _ in tower.named_parameters()}
        assert set(depths.values()) == set(range(blocks + 2))
        expected = {
            "conv1.weight": 0,
            "bn1.weight": 0,
            "token_embedding.weight": 0,
            "positional_embedding": 0,
            "ln_pre.weight": 0,
            "transformer.resblocks.1.ln_1.weight": 2,
            "layer1.0.conv1.weight": 1,
            "layer4.0.bn3.bias": 4,
            "proj": blocks + 1,
            "ln_post.weight": blocks + 1,
            "ln_final.bias": blocks + 1,
            "text_projection": blocks + 1,
            "attnpool.positional_embedding": blocks + 1,
        }
        here = {name: value for name, value in expected.items() if name in depths}
        assert len(here) >= 5
        assert {name: depths[name] for name in here} == here


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_lock(clip: CLIP, blocks: int) -> None:
    model = copy.deepcopy(clip)
    lock(model.visual, blocks)
    total = count_blocks(model.visual)
    for name, parameter in model.visual.named_parameters():
        trained = blocks > 0 and depth(name, total) > total - blocks
        assert parameter.requires_grad == trained, name
    assert all(p.requires_grad for p in model.text.parameters())


def test_lock_refuses_more_blocks_than_there_are(vit: CLIP) -> None:
    message = "this VisionTransformer has 2 blocks: 3 of them cannot be trained"
    with pytest.raises(ConfigError, match=message):
        lock(vit.visual, 3)


def test_batch_norms_of_locked_stages_keep_their_statistics(resnet: CLIP) -> None:
    model = copy.deepcopy(resnet)
    lock(model.visual, 1)
    train_mode(model)
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.encode_image(torch.randn(4, 3, 64, 64))
    after = dict(model.named_buffers())
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all(name.startswith("visual.layer4.") for name in changed)


def test_every_parameter_stands_in_one_group(clip: CLIP) -> None:
    optimizer = adamw(clip, lr=1e-3, weight_decay=0.1, layer_decay=0.5, betas=(0.9, 0.98))
    members = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(p) for p in clip.parameters()}
    keys = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert len(keys) == len(set(keys))


def test_rates_and_decay(clip: CLIP) -> None:
    """Vectors and the temperature do not decay, rates fall towards the input."""
    optimizer = adamw(clip, lr=1e-3, weight_decay=0.1, layer_decay=0.5, betas=(0.9, 0.98))
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in clip.named_parameters():
        group = found[id(parameter)]
        rate = 1e-3
        tower, _, rest = name.partition(".")
        if tower != "logit_scale":
            blocks = count_blocks(clip.get_submodule(tower))
            rate *= 0.5 ** (blocks + 1 - depth(rest, blocks))
        assert group["lr"] == pytest.approx(rate), name
        assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0), name
        assert group["betas"] == (0.9, 0.98)


def test_locked_parameters_are_in_no_group(vit: CLIP) -> None:
    model = copy.deepcopy(vit)
    lock(model.text, 0)
    optimizer = adamw(model, 1e-3, 0.1, 1.0, (0.9, 0.98))
    members = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert members == {id(p) for p in [*model.visual.parameters(), model.logit_scale]}


def test_nothing_left_to_train(vit: CLIP) -> None:
    model = copy.deepcopy(vit).requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing is left to train"):
        adamw(model, 1e-3, 0.1, 1.0, (0.9, 0.98))


@pytest.mark.parametrize("limit", [None, 1e-3, 1e3])
def test_clip_gradients(vit: CLIP, limit: float | None) -> None:
    model = copy.deepcopy(vit)
    squares = 0.0
    for number, parameter in enumerate(model.parameters(), start=1):
        parameter.grad = torch.full_like(parameter, 0.01 * number)
        squares += parameter.numel() * (0.01 * number) ** 2
    exact = math.sqrt(squares)
    assert clip_gradients(model, limit).item() == pytest.approx(exact, rel=1e-5)
    gradients = [p.grad.double() for p in model.parameters() if p.grad is not None]
    after = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
    assert after == pytest.approx(exact if limit is None else min(limit, exact), rel=1e-4)
