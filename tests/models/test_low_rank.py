"""Low-rank changes: they start at nothing, are all that is trained, and merge into the weights."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clipkit
from clipkit import CLIP
from clipkit.errors import ConfigError
from clipkit.models.changes import Change, ChangedLinear, has_changes
from tests.helpers.exact import (
    EXACT,
    images_for,
    largest_difference,
    make_exact,
    resnet_config,
    tokens_for,
    vit_config,
)


@pytest.fixture(scope="module", params=["vit", "resnet"])
def model(request: pytest.FixtureRequest) -> CLIP:
    """Return a model in float64, which tests must not change."""
    return make_exact(vit_config() if request.param == "vit" else resnet_config())


def changes_of(model: nn.Module) -> list[Change]:
    return [module for module in model.modules() if isinstance(module, Change)]


def disturb(model: CLIP) -> CLIP:
    """Give the changes of a model values, in place, as training would."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for change in changes_of(model):
            change.up.copy_(torch.randn(change.up.shape, generator=random, dtype=change.up.dtype))
    return model


def features_of(model: CLIP) -> list[Tensor]:
    images, tokens = images_for(model, 3), tokens_for(model, 4)
    with torch.no_grad():
        return [model.encode_image(images), model.encode_text(tokens)]


def assert_close(model: CLIP, other: CLIP) -> None:
    for found, expected in zip(features_of(model), features_of(other), strict=True):
        assert largest_difference(found, expected) < EXACT


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_it_starts_as_the_model(model: CLIP, rank: int) -> None:
    adapted = clipkit.lora(model, rank)
    for found, expected in zip(features_of(adapted), features_of(model), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("projections", [["q", "k", "v"], ["v"], ["k", "q"]])
def test_merged_equals_unmerged(model: CLIP, projections: Any) -> None:
    adapted = disturb(clipkit.lora(model, 2, alpha=3, projections=projections).double())
    merged = clipkit.merge_lora(adapted)
    assert_close(merged, adapted)
    for found, start in zip(features_of(adapted), features_of(model), strict=True):
        assert largest_difference(found, start) > 1e-3
    assert merged.state_dict().keys() == model.state_dict().keys()
    assert not has_changes(merged)
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_a_change_is_the_product_that_the_paper_says() -> None:
    """W x + alpha / rank x up (down x), for queries and values of a fused projection."""
    model = make_exact(vit_config())
    adapted = disturb(clipkit.lora(model, 2, alpha=5, projections=["q", "v"]).double())
    old: Any = model.text.transformer.resblocks[1]
    new: Any = adapted.text.transformer.resblocks[1]
    q, v = new.attn.change.q, new.attn.change.v
    weight = old.attn.in_proj_weight.detach().clone()
    weight[:36] += 5 / 2 * (q.up @ q.down).detach()
    weight[72:] += 5 / 2 * (v.up @ v.down).detach()
    x = torch.randn(2, 7, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = copy.deepcopy(old)
    expected.attn.in_proj_weight = nn.Parameter(weight)
    with torch.no_grad():
        assert largest_difference(new(x, at="all"), expected(x, at="all")) < EXACT


def test_only_the_changes_are_trained(model: CLIP) -> None:
    adapted = clipkit.lora(model, 2).double()
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trained
    assert all(name.endswith((".up", ".down")) for name in trained)
    features = adapted.encode_image(images_for(model, 2)).sum()
    (features + adapted.encode_text(tokens_for(model, 2)).sum()).backward()
    for name, weight in adapted.named_parameters():
        assert (weight.grad is not None) == (name in trained), name
    ups = [change.up.grad for change in changes_of(adapted)]
    assert all(grad is not None and grad.abs().max() > 0 for grad in ups)


def test_every_block_of_both_towers_is_changed() -> None:
    blocks = 3 + 3
    adapted = clipkit.lora(make_exact(vit_config()))
    assert len(changes_of(adapted)) == 3 * blocks
    assert len(changes_of(clipkit.lora(make_exact(vit_config()), towers=["text"]))) == 3 * 3
    resnet = clipkit.lora(make_exact(resnet_config()))
    pool: Any = resnet.visual.attnpool
    assert len(changes_of(resnet)) == 3 + 3 * 3
    assert isinstance(pool.q_proj, ChangedLinear)
    assert isinstance(pool.c_proj, nn.Linear)


def test_dropout_is_of_training_alone(model: CLIP) -> None:
    adapted = disturb(clipkit.lora(model, 2, dropout=0.5).double())
    images = images_for(model, 2)
    with torch.no_grad():
        assert torch.equal(adapted.encode_image(images), adapted.encode_image(images))
        adapted.train()
        first, second = adapted.encode_image(images), adapted.encode_image(images)
    assert largest_difference(first, second) > 1e-6


def test_the_model_stays_as_it_was(model: CLIP) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clipkit.merge_lora(disturb(clipkit.lora(model, 2)))
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_is_merged_when_it_is_saved(model: CLIP, tmp_path: Path) -> None:
    adapted = disturb(clipkit.lora(model, 2)).float()
    adapted.save_pretrained(tmp_path)
    loaded = CLIP.from_pretrained(tmp_path, device="cpu")
    merged = clipkit.merge_lora(adapted)
    for name, value in merged.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert has_changes(adapted)


def test_it_is_merged_when_it_is_optimized(model: CLIP) -> None:
    adapted = disturb(clipkit.lora(copy.deepcopy(model).float(), 2))
    images = images_for(model, 2).float()
    fast = adapted.optimize()
    assert not has_changes(fast)
    with torch.no_grad():
        assert largest_difference(fast.encode_image(images), adapted.encode_image(images)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_changes_of_a_half_model_are_float32(model: CLIP, dtype: torch.dtype) -> None:
    adapted = clipkit.lora(copy.deepcopy(model).to(dtype), 2)
    features = adapted.encode_text(tokens_for(model, 2))
    assert features.dtype is dtype
    assert {change.up.dtype for change in changes_of(adapted)} == {torch.float32}
    features.float().sum().backward()
    assert all(change.up.grad is not None for change in changes_of(adapted.text))


def test_trees_of_prefixes_are_changed_alike() -> None:
    model = make_exact(vit_config())
    adapted = disturb(clipkit.lora(model, 2).double())
    tokens = tokens_for(model, 6)
    with torch.no_grad():
        by_tree = adapted.encode_text(tokens)
    by_rows = adapted.encode_text(tokens).detach()
    assert largest_difference(by_tree, by_rows) < EXACT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": -1}, "rank must be an integer of at least 0, not -1"),
        ({"rank": 2.0}, "rank must be an integer"),
        ({"rank": True}, "rank must be an integer"),
        ({"alpha": 0}, "alpha must be a number above 0"),
        ({"alpha": float("nan")}, "alpha must be a number above 0, not nan"),
        ({"dropout": 1}, "dropout must be a share"),
        ({"projections": "qkv"}, "projections must be some of q, k, v, not 'qkv'"),
        ({"projections": ["o"]}, r"projections must be some of q, k, v, not \['o'\]"),
        ({"towers": []}, r"towers must be some of visual, text, not \[\]"),
    ],
)
def test_impossible_arguments_are_refused(model: CLIP, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clipkit.lora(model, **options)


def test_a_changed_or_optimized_model_is_refused(model: CLIP) -> None:
    with pytest.raises(ConfigError, match=r"low-rank changes already: merge them by merge_lora"):
        clipkit.lora(clipkit.lora(model))
    with pytest.raises(ConfigError, match="change the model it is of"):
        clipkit.lora(copy.deepcopy(model).float().optimize())


def test_modes_stay_as_they_are(model: CLIP) -> None:
    """Batch norms that were frozen in eval mode, above all."""
    training = copy.deepcopy(model).train()
    for module in training.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    adapted = clipkit.lora(training)
    before = {name: module.training for name, module in training.named_modules()}
    after = {name: module.training for name, module in adapted.named_modules()}
    assert {name: after[name] for name in before if name in after} == {
        name: mode for name, mode in before.items() if name in after
    }
    assert all(change.training for change in changes_of(adapted))


def test_a_tower_without_attention_is_refused() -> None:
    model = make_exact(resnet_config())
    model.visual.attnpool = nn.Identity()
    with pytest.raises(ConfigError, match="no attention to change in visual: name another tower"):
        clipkit.lora(model, towers=["visual"])
    assert len(changes_of(clipkit.lora(model))) == 3 * 3


def test_a_rank_above_the_width_is_refused(model: CLIP) -> None:
    with pytest.raises(ConfigError, match="rank must be at most the width"):
        clipkit.lora(model, 1000)


def test_other_models_are_refused() -> None:
    other: Any = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"lora changes a clipkit\.CLIP, not a Linear"):
        clipkit.lora(other)


def test_a_copy_of_rank_zero_is_merged_too(model: CLIP) -> None:
    merged = clipkit.merge_lora(clipkit.lora(model, 0))
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_statistics_of_batch_norms_stay_while_changes_are_trained() -> None:
    adapted = clipkit.lora(make_exact(resnet_config())).train()
    images = images_for(adapted, 3)
    before = {name: value.clone() for name, value in adapted.named_buffers()}
    adapted.encode_image(images)
    outer = nn.ModuleDict({"clip": adapted}).train()
    adapted.encode_image(images)
    assert outer.training
    assert before
    for name, value in adapted.named_buffers():
        assert torch.equal(value, before[name]), name
