"""A run in the process of an earlier one goes on from what is on the disk now."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import CLIP, Trainer
from clipkit.errors import TrainingError
from tests.helpers.models import assert_same
from tests.helpers.processes import start
from tests.helpers.training_worker import (
    losses,
    quick_config,
    run,
    state_of,
    toy_batches,
    toy_model,
)

STEPS = 6


def trainer_of(model: CLIP, out: Path, stop_at: int = -1, **values: Any) -> Trainer:
    config = quick_config(steps=STEPS, **values)
    signals = (signal.SIGINT,)
    return Trainer(
        model, lambda step: toy_batches(step, stop_at, signals), config, out, device="cpu"
    )


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_same_call_goes_on_after_ctrl_c_and_after_the_end(
    ema: float | None, tmp_path: Path
) -> None:
    """The model was trained in place, so its weights are no longer those of the start."""
    whole = run(tmp_path / "whole", steps=STEPS, ema=ema)
    out = tmp_path / "part"
    model = toy_model()
    with pytest.raises(KeyboardInterrupt, match="the same call goes on from there"):
        trainer_of(model, out, stop_at=2, ema=ema).fit()
    known = state_of(out)["start"]
    assert_same(trainer_of(model, out, ema=ema).fit(), whole)
    assert losses(out) == losses(tmp_path / "whole")
    assert_same(trainer_of(model, out, ema=ema).fit(), whole)
    assert state_of(out)["start"] == known
    assert_same(trainer_of(toy_model(), out, ema=ema).fit(), whole)


def test_weights_between_two_checkpoints_are_another_start(tmp_path: Path) -> None:
    model = run(tmp_path, steps=STEPS)
    with torch.no_grad():
        model.logit_scale.add_(0.1)
    with pytest.raises(TrainingError, match="another start: other weights; .* load it again"):
        trainer_of(model, tmp_path)


def test_a_trainer_goes_on_from_what_another_run_left_meanwhile(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", steps=STEPS)
    out = tmp_path / "run"
    early = trainer_of(toy_model(), out)
    with pytest.raises(KeyboardInterrupt, match="step 4 is saved"):
        trainer_of(toy_model(), out, stop_at=3).fit()
    asked: list[int] = []
    batches = early.batches
    early.batches = lambda step: (asked.append(step), batches(step))[1]
    assert_same(early.fit(), whole)
    assert asked == [4]
    assert losses(out) == losses(tmp_path / "whole")


def test_a_trainer_refuses_what_another_run_left_meanwhile(tmp_path: Path) -> None:
    early = trainer_of(toy_model(), tmp_path)
    run(tmp_path, steps=2, lr=0.1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match=r"of another run \(lr 0.1 there, 0.003 here\)"):
        early.fit()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


CUT_WHILE_RUNNING = """
import os, sys
from tests.helpers.training_worker import run, toy_batches

def batches(step):
    os.truncate(sys.argv[1] + "/checkpoint.pt", 0)
    yield from toy_batches(step)

run(sys.argv[1], batches, steps=4, save_every=0)
"""


def test_a_run_outlives_its_checkpoint_that_is_cut_off(tmp_path: Path) -> None:
    """What the optimizer keeps must not lie in the file. SIGBUS would kill the process."""
    run(tmp_path, steps=2)
    process = start(["-c", CUT_WHILE_RUNNING, str(tmp_path)])
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 0, error
    assert losses(tmp_path).keys() == {1, 2, 3, 4}
