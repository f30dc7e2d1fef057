"""Weights between those of two modules."""

import copy

import pytest
import torch
from torch import Tensor, nn

from clipkit import CLIP
from clipkit.classify.heads import CacheHead, CosineHead, LinearHead
from clipkit.config import CLIPConfig
from clipkit.errors import ConfigError
from clipkit.tokenizer import Tokenizer
from clipkit.training.interpolation import interpolate_weights
from tests.helpers.models import assert_same_weights


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def random_heads() -> tuple[CosineHead, LinearHead]:
    """Return two heads of 3 classes for features of width 8."""
    random = torch.Generator().manual_seed(0)
    weight = nn.functional.normalize(torch.randn(3, 8, generator=random), dim=-1)
    other = torch.randn(3, 8, generator=random)
    return CosineHead(weight, torch.tensor(2.0)), LinearHead(other, other[:, 0].clone())


def test_it_is_exact_at_the_ends_and_linear_between(
    resnet_config: CLIPConfig, small_tokenizer: Tokenizer
) -> None:
    torch.manual_seed(0)
    first, second = (CLIP(resnet_config, small_tokenizer) for _ in range(2))
    second.visual.get_buffer("bn1.num_batches_tracked").fill_(9)
    kept = state(first), state(second)
    floating = {name for name, value in kept[0].items() if value.is_floating_point()}
    start = interpolate_weights(first, second, 0).state_dict()
    for name in floating:
        assert torch.equal(start[name], kept[0][name]), name
    assert_same_weights(interpolate_weights(first, second, 1).state_dict(), kept[1])
    quarter = interpolate_weights(first, second, 0.25).state_dict()
    for name in floating:
        expected = 0.75 * kept[0][name].double() + 0.25 * kept[1][name].double()
        torch.testing.assert_close(quarter[name].double(), expected, rtol=1e-6, atol=1e-7)
    assert_same_weights(state(first), kept[0])
    assert_same_weights(state(second), kept[1])


def test_it_keeps_the_precision_of_the_second(model: CLIP) -> None:
    tuned = copy.deepcopy(model)
    nn.init.normal_(tuned.visual.get_parameter("proj"))
    mixed = interpolate_weights(copy.deepcopy(model).half(), tuned, 1.0)
    assert_same_weights(mixed.state_dict(), tuned.state_dict())


@pytest.mark.parametrize("alpha", [0, 0.25, 1])
@pytest.mark.parametrize("swap", [False, True])
def test_heads_become_linear_ones(alpha: float, swap: bool) -> None:
    first, second = random_heads()
    features = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    heads = (second, first) if swap else (first, second)
    between = interpolate_weights(*heads, alpha)
    assert isinstance(between, LinearHead)
    expected = (1 - alpha) * heads[0](features) + alpha * heads[1](features)
    torch.testing.assert_close(between(features), expected, rtol=1e-5, atol=1e-5)


def test_the_scale_of_a_head_is_between_too() -> None:
    """It is known only if both have one."""
    weight = torch.eye(3, 8)
    first = LinearHead(weight, scale=10.0)
    second = LinearHead(2 * weight, scale=20.0)
    assert interpolate_weights(first, second, 0.25).scale == pytest.approx(12.5)
    assert interpolate_weights(first, LinearHead(weight), 0.25).scale is None
    assert interpolate_weights(LinearHead(weight), second, 1).scale is None


def test_a_head_that_is_not_linear_is_refused() -> None:
    number = torch.tensor(1.0)
    cache = CacheHead(torch.eye(3, 8), number, torch.eye(5, 8), torch.eye(5, 3), number, number)
    with pytest.raises(ConfigError, match="CacheHead is not linear"):
        interpolate_weights(random_heads()[0], cache, 0.5)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_an_alpha_outside_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match=f"alpha must be from 0.* not {alpha}"):
        interpolate_weights(nn.Linear(2, 3), nn.Linear(2, 3), alpha)


@pytest.mark.parametrize("other", [nn.Linear(3, 2), nn.Linear(2, 3, bias=False)])
def test_other_weights_are_refused(other: nn.Module) -> None:
    with pytest.raises(ConfigError, match="two modules of the same weights"):
        interpolate_weights(nn.Linear(2, 3), other, 0.5)
