"""Who is trained, at which rate, with which decay."""

import copy
import math

import pytest
import torch

from clipkit import CLIP
from clipkit.errors import ConfigError
from clipkit.training.config import TrainConfig, cosine
from clipkit.training.optimizer import (
    adamw,
    clip_gradients,
    count_blocks,
    depth,
    lock,
    train_mode,
)


def test_depth(clip: CLIP) -> None:
    """Each parameter of both towers has a depth; the order of the forward pass is the order of depths."""
    for tower in (clip.visual, clip.text):
        blocks = count_blocks(tower)
        depths = {name: depth(name, blocks) for name, _ in tower.named_parameters()}
        assert set(depths.values()) == set(range(blocks + 2))
        firsts = {
            "conv1.weight": 0,
            "token_embedding.weight": 0,
            "positional_embedding": 0,
            "ln_pre.weight": 0,
        }
        lasts = (
            "proj",
            "ln_post.weight",
            "ln_final.bias",
            "text_projection",
            "attnpool.positional_embedding",
        )
        expected = {
            **firsts,
            **dict.fromkeys(lasts, blocks + 1),
            "transformer.resblocks.1.ln_1.weight": 2,
        }
        expected |= {"layer1.0.conv1.weight": 1, "layer4.0.bn3.bias": 4, "bn1.weight": 0}
        assert {name: depths[name] for name in expected if name in depths} == {
            name: value for name, value in expected.items() if name in depths
        }


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_lock(clip: CLIP, blocks: int) -> None:
    model = copy.deepcopy(clip)
    lock(model.visual, blocks)
    total = count_blocks(model.visual)
    for name, parameter in model.visual.named_parameters():
        assert parameter.requires_grad == (blocks > 0 and depth(name, total) > total - blocks), name
    assert all(p.requires_grad for p in model.text.parameters())


def test_lock_refuses_more_blocks_than_there_are(vit: CLIP) -> None:
    with pytest.raises(
        ConfigError, match="this VisionTransformer has 2 blocks: 3 of them cannot be trained"
    ):
        lock(vit.visual, 3)


def test_batch_norms_of_locked_stages_keep_their_statistics(resnet: CLIP) -> None:
    model = copy.deepcopy(resnet)
    lock(model.visual, 1)
    train_mode(model)
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.encode_image(torch.randn(4, 3, 64, 64))
    changed = {
        name for name, value in model.named_buffers() if not torch.equal(value, before[name])
    }
    assert changed and all(name.startswith("visual.layer4.") for name in changed)


def test_groups(clip: CLIP) -> None:
    """Vectors and the temperature do not decay, everything stands in one group, rates fall towards the input."""
    optimizer = adamw(clip, lr=1e-3, weight_decay=0.1, layer_decay=0.5, betas=(0.9, 0.98))
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert (
        len(found)
        == sum(len(group["params"]) for group in optimizer.param_groups)
        == len(list(clip.parameters()))
    )
    for name, parameter in clip.named_parameters():
        group = found[id(parameter)]
        assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0), name
        tower, _, rest = name.partition(".")
        if tower == "logit_scale":
            assert group["lr"] == 1e-3
        else:
            blocks = count_blocks(getattr(clip, tower))
            assert group["lr"] == pytest.approx(1e-3 * 0.5 ** (blocks + 1 - depth(rest, blocks))), (
                name
            )
        assert group["betas"] == (0.9, 0.98)


def test_nothing_left_to_train(vit: CLIP) -> None:
    model = copy.deepcopy(vit).requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing is left to train"):
        adamw(model, 1e-3, 0.1, 1.0, (0.9, 0.98))


def test_cosine() -> None:
    rates = [cosine(step, 110, 10) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert (
        rates[10] == 1
        and rates[60] == pytest.approx(0.5)
        and rates[35] == pytest.approx((1 + math.sqrt(0.5)) / 2)
    )
    assert 0 < rates[-1] < 0.001 and sorted(rates[10:], reverse=True) == rates[10:]
    assert cosine(0, 1, 0) == 1 and cosine(4, 5, 5) == 1


@pytest.mark.parametrize(
    "values, message",
    [
        ({"steps": 0}, "steps must be a positive integer, not 0"),
        ({"lr": -1.0}, "lr must be a number from 0 to 10, not -1.0"),
        ({"lr": "1e-3"}, "lr must be a number from 0 to 10, not '1e-3'"),
        ({"lr": math.nan}, "lr must be a number"),
        ({"layer_decay": 2}, "layer_decay must be a number from 1e-06 to 1, not 2"),
        ({"clip_grad": 0}, "clip_grad must be a number from 1e-09"),
        ({"ema": 1.5}, "ema must be a number from 0 to 1, not 1.5"),
        ({"micro_batch": 0}, "micro_batch must be a positive integer, not 0"),
        ({"warm_up": -1}, "warm_up must be an integer of at least 0, not -1"),
        ({"save_every": 1.5}, "save_every must be an integer of at least 0, not 1.5"),
        (
            {"precision": "float16"},
            r"precision must be one of \('float32', 'bfloat16'\), not 'float16'",
        ),
        ({"image_blocks": -1}, "image_blocks must be an integer of at least 0, not -1"),
        ({"text_blocks": "2"}, "text_blocks must be an integer of at least 0, not '2'"),
        ({"compile": "yes"}, r"compile must be one of \(True, False\), not 'yes'"),
        ({"betas": ("a", "b")}, "betas must be two numbers"),
        ({"betas": (0.9,)}, r"betas must be two numbers from 0 to below 1, not \(0.9,\)"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"ema": 0.9, "shard": True}, "does not go with shard"),
    ],
)
def test_config_refuses(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**({"steps": 10} | values))


@pytest.mark.parametrize("steps, warm_up", [(100, 10), (5, 0), (50_000, 2000)])
def test_warm_up_fits_the_steps(steps: int, warm_up: int) -> None:
    assert (
        TrainConfig(steps=steps).warm_up == warm_up
        and TrainConfig(steps=steps, warm_up=7).warm_up == 7
    )


@pytest.mark.parametrize("limit", [None, 1e-3, 1e3])
def test_clip_gradients(vit: CLIP, limit: float | None) -> None:
    model = copy.deepcopy(vit)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.01 * (number + 1))
    exact = math.sqrt(
        sum(p.numel() * (0.01 * (n + 1)) ** 2 for n, p in enumerate(model.parameters()))
    )
    assert clip_gradients(model, limit).item() == pytest.approx(exact, rel=1e-5)
    after = math.sqrt(
        sum(p.grad.double().pow(2).sum().item() for p in model.parameters() if p.grad is not None)
    )
    assert after == pytest.approx(exact if limit is None else min(limit, exact), rel=1e-4)


def test_config_takes_lists_for_tuples() -> None:
    assert TrainConfig(steps=1, betas=[0.8, 0.9]).betas == (0.8, 0.9)  # pyright: ignore[reportArgumentType]
