"""A preprocessing as plain data: every field comes back, and what is no data is marked."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipkit import CLIPConfig, Preprocess, PreprocessConfig
from clipkit.data.saved import absorb_preprocess, describe_preprocess, restore_preprocess
from clipkit.errors import ConfigError
from tests.helpers.models import PREPROCESS, VIT

OWN = Preprocess(VIT.vision.resolution, VIT.preprocess)
OTHERS = {
    "mean": replace(OWN, config=replace(PREPROCESS, mean=(0.1, 0.2, 0.3))),
    "std": replace(OWN, config=replace(PREPROCESS, std=(0.1, 0.2, 0.3))),
    "interpolation": replace(OWN, config=replace(PREPROCESS, interpolation="bicubic")),
    "resize mode": replace(OWN, config=replace(PREPROCESS, resize_mode="longest")),
    "backend": replace(OWN, backend="tensor"),
    "resolution": replace(OWN, resolution=(20, 30)),
}


class Halved(Preprocess):
    """A `Preprocess` that is more than its fields."""

    def __call__(self, image: Any) -> Tensor:
        return super().__call__(image) / 2


class Resize(nn.Module):
    def forward(self, image: Any) -> Tensor:
        return torch.zeros(3, 48, 48)


FUNCTIONS: dict[str, Callable[[Any], Tensor]] = {
    "function": torch.zeros_like,
    "module": Resize(),
    "subclass": Halved(OWN.resolution, OWN.config),
}


def through_json(values: dict[str, Any] | None) -> dict[str, Any] | None:
    return json.loads(json.dumps(values))


def test_the_models_own_needs_no_description() -> None:
    assert describe_preprocess(OWN, VIT) is None
    assert restore_preprocess(None, VIT) == OWN


@pytest.mark.parametrize("preprocess", OTHERS.values(), ids=OTHERS)
def test_every_field_comes_back(preprocess: Preprocess) -> None:
    described = through_json(describe_preprocess(preprocess, VIT))
    assert described is not None
    assert restore_preprocess(described, VIT) == preprocess


def test_the_models_own_resolution_may_change() -> None:
    described = describe_preprocess(OTHERS["backend"], VIT)
    larger = replace(VIT, vision=replace(VIT.vision, resolution=(96, 64)))
    assert restore_preprocess(described, larger) == replace(OTHERS["backend"], resolution=(96, 64))
    described = describe_preprocess(OTHERS["resolution"], VIT)
    assert restore_preprocess(described, larger).resolution == (20, 30)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_leave_a_marker(function: Callable[[Any], Tensor]) -> None:
    described = through_json(describe_preprocess(function, VIT))
    assert described == {"type": "other", "repr": repr(function)}
    with pytest.raises(ConfigError, match=re.escape(repr(function)) + ": pass it as preprocess="):
        restore_preprocess(described, VIT)


@pytest.mark.parametrize(
    "values, told",
    [
        ({}, "type of a saved preprocessing must be 'Preprocess', not None"),
        ({"type": "Compose"}, "must be 'Preprocess', not 'Compose'"),
        ({"type": "Preprocess"}, "cannot be read: 'config'"),
        ({"type": "Preprocess", "config": {"color": 1}}, "cannot be read: .*'color'"),
        ({"type": "Preprocess", "config": {}, "speed": 1}, "cannot be read: .*'speed'"),
        ({"type": "Preprocess", "config": 3}, "cannot be read"),
        ({"type": "Preprocess", "config": {"std": [0, 1, 1]}}, "std must be positive"),
        ({"type": "Preprocess", "config": {}, "backend": "jax"}, "backend must be one of"),
    ],
)
def test_other_data_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        restore_preprocess(values, VIT)


@pytest.mark.parametrize("name", ["mean", "std", "interpolation", "resize mode"])
def test_a_config_can_mean_other_statistics_and_resizing(name: str) -> None:
    absorbed = absorb_preprocess(VIT, OTHERS[name])
    assert absorbed == replace(VIT, preprocess=OTHERS[name].config)
    assert restore_preprocess(None, absorbed) == OTHERS[name]


@pytest.mark.parametrize(
    "preprocess", [OTHERS["backend"], OTHERS["resolution"], *FUNCTIONS.values()]
)
def test_a_config_cannot_mean_the_rest(preprocess: Callable[[Any], Tensor]) -> None:
    config: CLIPConfig = replace(VIT, preprocess=PreprocessConfig())
    assert absorb_preprocess(config, preprocess) == config
