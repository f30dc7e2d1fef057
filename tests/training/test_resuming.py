"""A run that was stopped, anywhere, goes on as if it had not been; another run is refused."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import CLIP
from clipkit.errors import TrainingError
from clipkit.training.config import TrainConfig
from clipkit.training.loop import Trainer
from tests.helpers import training_worker
from tests.helpers.models import assert_same
from tests.helpers.processes import start
from tests.helpers.training_worker import (
    CONFIG,
    losses,
    quick_config,
    run,
    state_of,
    toy_batches,
    toy_model,
)

STEPS = 40


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIP]:
    out = tmp_path_factory.mktemp("uninterrupted")
    return out, run(out, steps=STEPS, ema=0.9)


def wait_for_rows(log: Path, count: int, process: "subprocess.Popen[str]") -> None:
    """Wait until a log has so many rows, or the process has ended."""
    while process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= count:
            return
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_bit(
    uninterrupted: tuple[Path, CLIP], tmp_path: Path
) -> None:
    """SIGKILL three times, wherever it hits: in a step, while saving, while the log is written."""
    whole, model = uninterrupted
    values: dict[str, Any] = {"steps": STEPS, "ema": 0.9, "save_every": 3}
    arguments = [str(Path(training_worker.__file__)), str(tmp_path), json.dumps(values)]
    chance = random.Random(os.getpid())
    for target in (3, 10, 20):
        process = start(arguments, {"THREADS": str(torch.get_num_threads())})
        wait_for_rows(tmp_path / "log.jsonl", target, process)
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    left = losses(tmp_path)
    assert left
    assert max(left) < STEPS
    resumed = run(tmp_path, **values)
    assert losses(tmp_path) == losses(whole)
    assert_same(resumed, model)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    first = run(tmp_path, steps=3)
    log = (tmp_path / "log.jsonl").read_text()
    assert_same(run(tmp_path, steps=3), first)
    assert (tmp_path / "log.jsonl").read_text() == log


def test_a_run_goes_on_for_more_steps(tmp_path: Path) -> None:
    """The warm-up follows the steps where none is given, and is no reason to refuse."""
    for steps in (20, 40):
        config = TrainConfig(steps=steps, log_every=1, save_every=10)
        trainer = Trainer(toy_model(), toy_batches, config, tmp_path, device="cpu")
        assert trainer.step == steps - 20
        trainer.fit()
    assert len(losses(tmp_path)) == 40


def test_another_run_is_not_continued(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    message = r"of another run \(lr 0.003 there, 0.1 here\): give another out"
    with pytest.raises(TrainingError, match=message):
        run(tmp_path, steps=2, lr=0.1)
    wider = CLIP(dataclasses.replace(CONFIG, embed_dim=16), toy_model().tokenizer)
    for model, identity, what in (
        (wider, "", "another model"),
        (toy_model(), "the same of other prompts", "another start: .*"),
    ):
        with pytest.raises(TrainingError, match=rf"of another run \({what}\)"):
            Trainer(model, toy_batches, quick_config(), tmp_path, device="cpu", identity=identity)


def test_a_run_is_known_by_its_former_identities_too(tmp_path: Path) -> None:
    config = quick_config(steps=2)
    old = Trainer(toy_model(), toy_batches, config, tmp_path, device="cpu", identity="old")
    old.fit()
    longer = quick_config(steps=4)
    trainer = Trainer(
        toy_model(),
        toy_batches,
        longer,
        tmp_path,
        device="cpu",
        identity="new",
        former_identities=["older", "old"],
    )
    assert trainer.step == 2
    trainer.fit()
    assert state_of(tmp_path)["identity"][1] == "new"


def as_0_1_0_wrote_it(state: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's content with the config of version 0.1.0."""
    config = dict(state["config"])
    config["gradient_checkpointing"] = config.pop("recompute")
    config["warm_up"] = 2
    return state | {"config": config}


@pytest.mark.parametrize("values", [{"recompute": True}, {"gradient_checkpointing": True}, {}])
def test_a_checkpoint_of_0_1_0_goes_on_to_the_bit(values: dict[str, Any], tmp_path: Path) -> None:
    """Its fields have other names and values; saving memory is no other run."""
    whole = run(tmp_path / "whole", steps=20, warm_up=None)
    part = tmp_path / "part"
    with pytest.raises(SystemExit, match="143"):
        run(part, lambda step: toy_batches(step, 9), steps=20, warm_up=None)
    torch.save(as_0_1_0_wrote_it(state_of(part)), part / "checkpoint.pt")
    resumed = run(part, steps=20, warm_up=None, **values)
    assert losses(part) == losses(tmp_path / "whole")
    assert_same(resumed, whole)


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_named(damage: bytes | None, tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:20000] if damage is None else damage)
    with pytest.raises(TrainingError, match=r"checkpoint.pt cannot be resumed \(.*remove it"):
        run(tmp_path, steps=2)


def test_what_is_no_training_checkpoint_is_named(tmp_path: Path) -> None:
    torch.save({"weights": torch.ones(3)}, tmp_path / "checkpoint.pt")
    with pytest.raises(
        TrainingError, match="checkpoint.pt cannot be resumed .it has no entry 'config'"
    ):
        run(tmp_path, steps=2)


def test_a_log_without_a_checkpoint_starts_again(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 9}\n{"step": 2, "lo')
    whole = run(tmp_path / "whole", steps=2)
    assert_same(run(tmp_path, steps=2), whole)
    assert losses(tmp_path) == losses(tmp_path / "whole")
