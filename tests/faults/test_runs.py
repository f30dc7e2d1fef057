"""A run is known by its start, model and data, and holds its folder for itself."""

import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import CLIP, Trainer, train
from clipkit.errors import DataError, OutputError, TrainingError
from clipkit.files import lock
from clipkit.training.batches import Batch
from clipkit.training.losses import sigmoid_loss
from clipkit.training.run import RunConfig
from clipkit.training.tasks import ContrastiveTask
from tests.helpers import training_worker
from tests.helpers.models import assert_same
from tests.helpers.processes import launch, start
from tests.helpers.run_files import TRAIN, write_run_file
from tests.helpers.toy_data import toy_config
from tests.helpers.training_worker import (
    losses,
    quick_config,
    run,
    state_of,
    toy_batches,
    toy_model,
)

WORKER = str(Path(training_worker.__file__))
ONE_STEP = TRAIN | {"steps": 1}
STARTS: dict[str, dict[str, Any]] = {
    "random": {"init": None, "model": toy_config(49408, 77).to_dict()},
    "start": {"init": "start"},
    "other": {"init": "other"},
}


def read(place: Path, changes: dict[str, Any]) -> RunConfig:
    return RunConfig.read(write_run_file(place, {"train": ONE_STEP} | changes))


def randomized(seed: int) -> CLIP:
    """Return the toy model with other weights."""
    model = toy_model()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    return model


# Kind Y1: a run continued from other weights.
def test_a_run_of_another_start_is_refused(place: Path) -> None:
    torch.manual_seed(5)
    CLIP(toy_config(49408, 77)).save_pretrained(place / "start")
    torch.manual_seed(6)
    CLIP(toy_config(49408, 77)).save_pretrained(place / "other")
    for first, others in (("random", ["start"]), ("start", ["random", "other"])):
        out = {"out": f"run-{first}"}
        before = train(read(place, STARTS[first] | out), "cpu").state_dict()
        for second in others:
            with pytest.raises(TrainingError, match=r"is of another run \(another start"):
                train(read(place, STARTS[second] | out), "cpu")
        again = train(read(place, STARTS[first] | out), "cpu").state_dict()
        assert all(torch.equal(again[name], value) for name, value in before.items())


def test_a_trainer_of_other_weights_is_refused(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    with pytest.raises(TrainingError, match=r"another start: other weights"):
        Trainer(randomized(1), toy_batches, quick_config(steps=4), tmp_path, device="cpu")
    task = ContrastiveTask(toy_model(), sigmoid_loss)
    assert Trainer(task, toy_batches, quick_config(steps=4), tmp_path, device="cpu").step == 2


def test_weights_that_an_identity_names_are_not_compared(tmp_path: Path) -> None:
    for model, steps in ((toy_model(), 2), (randomized(1), 4)):
        config = quick_config(steps=steps)
        trainer = Trainer(model, toy_batches, config, tmp_path, device="cpu", identity="mine")
        assert trainer.step == steps - 2
        trainer.fit()
    with pytest.raises(TrainingError, match="another start"):
        run(tmp_path, steps=6)


def test_other_data_and_another_model_are_named(tmp_path: Path) -> None:
    class Others:
        identity = "others"

        def __call__(self, step: int) -> Iterator[Batch]:
            return toy_batches(step)

    run(tmp_path, steps=2)
    with pytest.raises(TrainingError, match=r"another run \(other data\)"):
        run(tmp_path, Others(), steps=4)
    state = state_of(tmp_path)
    state["identity"][0]["embed_dim"] = 16
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match=r"another run \(another model\)"):
        run(tmp_path, steps=4)


def as_0_1_0_wrote_it(folder: Path, data: str | None = None) -> None:
    """Take from a checkpoint what version 0.1.0 did not write: the start, and shards."""
    state = state_of(folder)
    del state["start"]
    state["identity"][1] = ""
    state["identity"][2] = state["identity"][2] if data is None else data
    torch.save(state, folder / "checkpoint.pt")


@pytest.mark.parametrize("start", ["random", "start"])
def test_runs_of_0_1_0_go_on_whatever_they_started_from(start: str, place: Path) -> None:
    train(read(place, STARTS[start]), "cpu")
    as_0_1_0_wrote_it(place / "run")
    train(read(place, STARTS[start] | {"train": TRAIN | {"steps": 2}}), "cpu")
    assert losses(place / "run").keys() == {1, 2}
    assert "start" in state_of(place / "run")


def test_runs_of_0_1_0_on_shards_go_on(tmp_path: Path) -> None:
    class Shards:
        identity = "shards"

        def __call__(self, step: int) -> Iterator[Batch]:
            return toy_batches(step)

    run(tmp_path, Shards(), steps=2)
    as_0_1_0_wrote_it(tmp_path, data="")
    run(tmp_path, Shards(), steps=4)
    assert losses(tmp_path).keys() == {1, 2, 3, 4}
    with pytest.raises(TrainingError, match="other data"):
        run(tmp_path, steps=6)


def test_a_finished_run_says_that_nothing_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = run(tmp_path, steps=2)
    assert "Nothing is left" not in caplog.text
    log = (tmp_path / "log.jsonl").read_text()

    def no_batches(step: int) -> Iterator[Batch]:
        raise AssertionError("there is no step to make")

    assert_same(run(tmp_path, no_batches, steps=2), first)
    assert f"Nothing is left to do in {tmp_path}: all 2 steps are made" in caplog.text
    assert (tmp_path / "log.jsonl").read_text() == log


# Kinds X7 and X11: several runs in one folder.
def test_a_second_run_in_the_same_folder_is_told_the_process(tmp_path: Path) -> None:
    values = json.dumps({"steps": 100000, "save_every": 0})
    process = start([WORKER, str(tmp_path), values])
    try:
        wait_for(tmp_path / "log.jsonl", process)
        (tmp_path / f".checkpoint.pt.{'0' * 32}.tmp").write_bytes(b"being written")
        with pytest.raises(OutputError, match=f"process {process.pid} is writing there"):
            run(tmp_path, steps=2)
        assert (tmp_path / f".checkpoint.pt.{'0' * 32}.tmp").exists()
    finally:
        process.kill()
        process.communicate()
    run(tmp_path, steps=2)
    assert losses(tmp_path).keys() == {1, 2}
    assert not list(tmp_path.glob(".*.tmp"))
    assert not (tmp_path / ".lock").exists()


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    while not path.exists():
        assert process.poll() is None
        os.sched_yield()


HELD = """
import sys
from clipkit.errors import OutputError
from tests.helpers.training_worker import run
from pathlib import Path
try:
    run(Path(sys.argv[1]), steps=2)
except OutputError as error:
    assert "is writing there" in str(error)
    sys.exit(3)
"""


def test_a_held_folder_ends_all_processes_of_a_run(tmp_path: Path) -> None:
    with lock(tmp_path):
        launch(2, ["-c", HELD, str(tmp_path)], code=3)


def test_the_folder_is_free_after_an_error(tmp_path: Path) -> None:
    def broken(step: int) -> Iterator[Batch]:
        raise DataError("no images today")

    with pytest.raises(DataError, match="no images today"):
        run(tmp_path, broken, steps=2)
    run(tmp_path, steps=2)
