"""TrainConfig: what it refuses, and that the warm-up follows the steps."""

import dataclasses
import json
import math
from typing import Any

import pytest

from clipkit.errors import ConfigError
from clipkit.training.config import TrainConfig, cosine


@pytest.mark.parametrize(
    ("values", "message"),
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
        ({"warm_up": 1.5}, "warm_up must be an integer of at least 0, not 1.5"),
        ({"save_every": 1.5}, "save_every must be an integer of at least 0, not 1.5"),
        ({"save_every": None}, "save_every must be an integer of at least 0, not None"),
        ({"seed": True}, "seed must be an integer of at least 0, not True"),
        (
            {"precision": "float16"},
            r"precision must be one of \('float32', 'bfloat16'\), not 'float16'",
        ),
        ({"image_blocks": -1}, "image_blocks must be an integer of at least 0, not -1"),
        ({"text_blocks": "2"}, "text_blocks must be an integer of at least 0, not '2'"),
        ({"compile": "yes"}, r"compile must be one of \(True, False\), not 'yes'"),
        ({"recompute": "yes"}, r"recompute must be one of \(True, False\), not 'yes'"),
        ({"betas": ("a", "b")}, "betas must be two numbers"),
        ({"betas": (0.9,)}, r"betas must be two numbers from 0 to below 1, not \(0.9,\)"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"betas": 0.9}, "betas must be two numbers from 0 to below 1, not 0.9"),
        ({"ema": 0.9, "shard": True}, "does not go with shard"),
        ({"rate": 1}, r"TrainConfig has no field \['rate'\]"),
    ],
)
def test_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict({"steps": 10, **values})


@pytest.mark.parametrize(("steps", "warm_up"), [(100, 10), (5, 0), (50_000, 2000)])
def test_warm_up_fits_the_steps(steps: int, warm_up: int) -> None:
    assert TrainConfig(steps=steps).warm_up_steps == warm_up
    assert TrainConfig(steps=steps, warm_up=7).warm_up_steps == 7
    assert TrainConfig(steps=steps, warm_up=0).warm_up_steps == 0


def test_a_copy_with_other_steps_has_the_warm_up_of_those() -> None:
    copied = dataclasses.replace(TrainConfig(steps=100), steps=100_000)
    assert copied == TrainConfig(steps=100_000)
    assert copied.warm_up_steps == 2000
    assert copied.rate_factor(999) == pytest.approx(0.5)
    given = dataclasses.replace(TrainConfig(steps=100, warm_up=7), steps=100_000)
    assert given.warm_up_steps == 7


def test_lists_of_json_become_tuples() -> None:
    assert TrainConfig.from_dict({"steps": 1, "betas": [0.8, 0.9]}).betas == (0.8, 0.9)


def test_every_field_survives_json() -> None:
    config = TrainConfig(steps=7, betas=(0.5, 0.6), image_blocks=1, ema=0.9, recompute=True)
    assert TrainConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize("on", [True, False])
def test_the_old_name_of_recompute_is_read(on: bool) -> None:
    values: dict[str, Any] = {"steps": 1, "gradient_checkpointing": on}
    assert TrainConfig.from_dict(values).recompute == on
    assert "gradient_checkpointing" in values  # they are the caller's
    with pytest.raises(ConfigError, match="gradient_checkpointing is the old name of recompute"):
        TrainConfig.from_dict({**values, "recompute": True})


def test_cosine() -> None:
    rates = [cosine(step, 110, 10) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10] == 1
    assert rates[60] == pytest.approx(0.5)
    assert rates[35] == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert 0 < rates[-1] < 0.001
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert cosine(0, 1, 0) == 1
    assert cosine(4, 5, 5) == 1
