"""What is logged: the same for TensorBoard, and any kind of number that an evaluation gives."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipkit import CLIP
from clipkit.errors import ConfigError
from clipkit.training.log import Log, as_row
from clipkit.training.loop import Trainer
from tests.helpers.training_worker import (
    losses,
    quick_config,
    rows_of_log,
    run,
    state_of,
    toy_batches,
    toy_model,
)


def test_tensorboard_has_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, steps=4)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = {event.step: event.value for event in events.Scalars("loss")}
    assert logged == pytest.approx(losses(tmp_path))


def test_rows_of_later_steps_are_dropped(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": float(step)})
    Log(tmp_path, 2).write(3, {"loss": 9.0})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 1}, {"step": 2, "loss": 2}, {"step": 3, "loss": 9}]


NUMBERS = [
    (0.5, 0.5),
    (1, 1),
    (True, 1),
    (np.float32(0.5), 0.5),
    (np.float64(0.5), 0.5),
    (np.float16(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), 1),
    (np.array(0.5), 0.5),
    (torch.tensor(0.5), 0.5),
    (torch.tensor([0.5]), 0.5),
    (torch.tensor(3), 3),
    (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
    (torch.nn.Parameter(torch.tensor(0.5)), 0.5),
]


@pytest.mark.parametrize(("number", "expected"), NUMBERS, ids=repr)
def test_any_kind_of_number_is_taken(number: Any, expected: float) -> None:
    row = as_row({"figure": number})
    assert type(row["figure"]) is float
    assert row["figure"] == expected


def test_what_is_not_finite_is_a_number_too() -> None:
    assert math.isnan(as_row({"figure": np.float32("nan")})["figure"])


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        (0.5, "numbers by name, not 0.5"),
        (None, "numbers by name, not None"),
        ([("figure", 1.0)], r"numbers by name, not \[\('figure', 1.0\)\]"),
        ({3: 1.0}, "no name may be 3"),
        ({"step": 1.0}, "no name may be 'step'"),
        ({"figure": "0.5"}, "'figure' is '0.5'"),
        ({"figure": None}, "'figure' is None"),
        ({"figure": 1j}, "'figure' is 1j"),
        ({"figure": [0.5]}, r"'figure' is \[0.5\]"),
        ({"figure": torch.ones(2)}, r"'figure' is tensor\(\[1., 1.\]\)"),
        ({"figure": np.ones(2)}, r"'figure' is array\(\[1., 1.\]\)"),
    ],
)
def test_what_is_no_number_is_refused(figures: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_row(figures)


@pytest.mark.parametrize("number", [np.float32(0.5), torch.tensor(0.5)], ids=repr)
def test_a_run_logs_any_kind_of_number(number: Any, tmp_path: Path) -> None:
    def evaluate(model: CLIP) -> dict[str, Any]:
        return {"figure": number, "temperature": model.logit_scale}

    config = quick_config(steps=2, save_every=0)
    Trainer(toy_model(), toy_batches, config, tmp_path, evaluate=evaluate, device="cpu").fit()
    assert rows_of_log(tmp_path)[-1]["figure"] == 0.5
    assert state_of(tmp_path)["step"] == 2


def raise_os_error(model: CLIP) -> dict[str, Any]:
    raise OSError("the evaluation's folder is gone")


def give_a_text(model: CLIP) -> dict[str, Any]:
    return {"figure": "good"}


def give_a_number_alone(model: CLIP) -> Any:
    return 0.5


@pytest.mark.parametrize(
    ("evaluate", "error", "message"),
    [
        (raise_os_error, OSError, "folder is gone"),
        (give_a_text, ConfigError, "'figure' is 'good'"),
        (give_a_number_alone, ConfigError, "numbers by name, not 0.5"),
    ],
)
def test_a_failing_evaluation_loses_no_step(
    evaluate: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    config = quick_config(steps=3, save_every=0)
    with pytest.raises(error, match=message):
        Trainer(toy_model(), toy_batches, config, tmp_path, evaluate=evaluate, device="cpu").fit()
    assert state_of(tmp_path)["step"] == 3
    Trainer(toy_model(), toy_batches, config, tmp_path, device="cpu").fit()
    assert (tmp_path / "model").is_dir()
