"""A run is known by its start, holds its folder, is refused before the work, and loses no row."""

import errno
import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clipkit import CLIP, Pairs, Trainer, finetune, finetune_captions, train
from clipkit.errors import ConfigError, DataError, OutputError, TrainingError
from clipkit.files import lock
from clipkit.training.batches import Batch, PairBatches
from clipkit.training.losses import sigmoid_loss
from clipkit.training.run import RunConfig, finetune_from
from clipkit.training.tasks import ContrastiveTask
from tests.helpers import training_worker
from tests.helpers.models import assert_same
from tests.helpers.processes import launch, start
from tests.helpers.run_files import TRAIN, write_run_file
from tests.helpers.toy_data import color_folders, toy_config
from tests.helpers.training_worker import (
    losses,
    quick_config,
    rows_of_log,
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


# Kind I: outputs that cannot be written are refused before the work.
@pytest.mark.parametrize("name", ["", "checkpoint.pt", "log.jsonl", "model", "tensorboard"])
def test_what_is_in_the_way_of_a_run_is_told_first(name: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    if name in ("checkpoint.pt", "log.jsonl"):
        (out / name).mkdir(parents=True)
    else:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("a file")
    with pytest.raises(OutputError, match="in the way"):
        Trainer(toy_model(), toy_batches, quick_config(), out, device="cpu")


@pytest.mark.parametrize("below", ["file/x", "n" * 300, "a\0b"])
def test_outputs_are_refused_before_anything_is_read(
    below: str, tmp_path: Path, toy: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / below
    pairs = Pairs([tmp_path / "a.png", tmp_path / "b.png"], [["a"], ["b"]], [0, 1], ["a", "b"])

    def encode(*_: Any, **__: Any) -> Any:
        raise AssertionError("images were encoded")

    monkeypatch.setattr("clipkit.training.finetune.extract_features", encode)
    with pytest.raises(OutputError, match="cannot write"):
        finetune(toy, pairs, out)
    with pytest.raises(OutputError, match="cannot write"):
        finetune(toy, pairs, out, head_only=True)
    with pytest.raises(OutputError, match="cannot write"):
        finetune_captions(toy, pairs, out)
    with pytest.raises(OutputError, match="cannot write"):
        finetune_from(tmp_path / "no data", out, toy)
    if "\0" not in below:
        config = RunConfig(
            data="no data", out=str(out), batch_size=2, train=quick_config(), init="no model"
        )
        with pytest.raises(OutputError, match="cannot write"):
            train(config, "cpu")


# Kind X6: a full disk.
@pytest.mark.parametrize("at", ["checkpoint", "log", "board"])
def test_a_full_disk_ends_a_run_with_a_typed_error(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run(tmp_path, steps=2)
    before = state_of(tmp_path)
    target = {
        "checkpoint": "torch.save",
        "log": "clipkit.training.log.json",
        "board": "torch.utils.tensorboard.writer.SummaryWriter.add_scalar",
    }[at]
    if at == "board":
        pytest.importorskip("tensorboard")
    with monkeypatch.context() as patch:
        patch.setattr(target, SimpleNamespace(dumps=full) if at == "log" else full)
        with pytest.raises(OutputError, match="No space left.*Free some space"):
            run(tmp_path, steps=4)
    assert state_of(tmp_path)["step"] == before["step"] == 2
    assert not list(tmp_path.glob(".*.tmp"))
    run(tmp_path, steps=4)
    assert losses(tmp_path).keys() == {1, 2, 3, 4}


# Kind R: a contrastive batch of one.
def one_pair(step: int) -> Iterator[Batch]:
    for batch in toy_batches(step):
        images, tokens = batch.inputs
        yield Batch((images[:1], tokens[:1]))


def test_a_contrastive_batch_of_one_pair_is_refused(place: Path, toy: CLIP) -> None:
    with pytest.raises(ConfigError, match="batch_size is 1, but .* at least 2"):
        read(place, {"batch_size": 1})
    files = sorted((place / "images").rglob("*.png"))
    pairs = Pairs(files, [["a"]] * len(files))
    with pytest.raises(DataError, match="single pair has a loss of 0.*at least 2"):
        finetune_captions(toy, pairs, place / "out", batch_size=1)
    with pytest.raises(DataError, match="single pair has a loss of 0.*at least 2"):
        finetune_captions(toy, pairs.select([0]), place / "out")
    batches = PairBatches(pairs, 1, toy.preprocess, toy.tokenizer)
    with pytest.raises(DataError, match="single pair has a loss of 0"):
        Trainer(toy, batches, quick_config(), place / "out", device="cpu")
    with pytest.raises(DataError, match="single pair has a loss of 0"):
        run(place / "run", one_pair)
    task = ContrastiveTask(toy, sigmoid_loss)  # a single pair has a loss there
    Trainer(task, batches, quick_config(steps=1), place / "sigmoid", device="cpu").fit()


def test_a_share_of_one_pair_is_part_of_a_batch(toy: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = toy.tokenizer(["a"])
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(DataError, match="single pair"):
        ContrastiveTask(toy)(images, pair)
    monkeypatch.setattr("clipkit.distributed.world_size", lambda: 2)
    assert ContrastiveTask(toy)(images, pair).isfinite()


# A row of the log that a failing evaluation takes with it.
def test_a_failing_evaluation_loses_no_row(tmp_path: Path) -> None:
    def fail(model: CLIP) -> dict[str, float]:
        raise OSError("the images are gone")

    whole = tmp_path / "whole"
    run(whole, steps=4, log_every=2)
    config = quick_config(steps=4, log_every=2, evaluate_every=2, save_every=0)
    part = tmp_path / "part"
    with pytest.raises(OSError, match="the images are gone"):
        Trainer(toy_model(), toy_batches, config, part, evaluate=fail, device="cpu").fit()
    assert losses(part).keys() == {2}
    Trainer(toy_model(), toy_batches, config, part, device="cpu").fit()
    assert losses(part) == losses(whole)


# Kind Y12: rows with an accuracy and without a loss.
def test_every_row_has_the_loss(tmp_path: Path) -> None:
    run(tmp_path, steps=3, log_every=50, evaluate_every=1)
    rows = rows_of_log(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all("answer" in row for row in rows)
    assert all("loss" in row for row in rows)
    run(tmp_path / "plain", steps=3)
    assert losses(tmp_path) == losses(tmp_path / "plain")


# Kind D: what only says where images are.
@pytest.mark.parametrize("pairs", ["photos", Path("photos"), None, [("a.png", 0)]])
def test_fine_tuning_says_how_images_are_read(pairs: Any, toy: CLIP, tmp_path: Path) -> None:
    for tune in (finetune, finetune_captions):
        with pytest.raises(ConfigError, match=r"takes Pairs, .*clipkit.read_pairs\(FOLDER\)"):
            tune(toy, pairs, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": torch.nn.Linear(2, 2)}, "trains a CLIP or a Task, not a Linear"),
        ({"batches": [1, 2]}, "a function from a step .* not a list"),
        ({"config": {"steps": 2}}, "must be a clipkit.TrainConfig, not a dict"),
        ({"evaluate": "accuracy"}, "evaluate must be a function of the model, not a str"),
    ],
)
def test_arguments_of_a_trainer_are_checked(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"task": toy_model(), "batches": toy_batches, "config": quick_config()}
    with pytest.raises(ConfigError, match=message):
        Trainer(**(given | change), out=tmp_path, device="cpu")
    for out in (None, 5, "", b"run"):
        with pytest.raises(OutputError, match="it is no path"):
            Trainer(**given, out=out, device="cpu")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", ["8", 2.5, -1])
def test_a_batch_size_is_a_count(size: Any, toy: CLIP, tmp_path: Path) -> None:
    files = sorted(color_folders(tmp_path / "images", each=1).rglob("*.png"))
    pairs = Pairs(files, [["a"]] * 4, [0, 1, 2, 3], ["a", "b", "c", "d"])
    for tune in (finetune, finetune_captions):
        with pytest.raises(DataError, match="batch_size .* must be an integer of at least 1"):
            tune(toy, pairs, tmp_path / "out", batch_size=size)


@pytest.mark.parametrize("name", ["steps", "seed", "warm_up", "save_every", "micro_batch"])
def test_counts_beyond_all_bounds_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at most"):
        quick_config(**{name: 10**40})


# Kind Z: what no test noticed.
def test_every_step_of_every_process_has_a_seed_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = [
        Trainer(toy_model(), toy_batches, quick_config(seed=seed), tmp_path, device="cpu")
        for seed in (0, 1)
    ]
    monkeypatch.setattr("clipkit.distributed.world_size", lambda: 3)
    drawn: list[float] = []
    for trainer in trainers:
        for step in range(4):
            trainer.state.counters.step = step
            for rank in range(3):
                monkeypatch.setattr("clipkit.distributed.rank", lambda rank=rank: rank)
                trainer._seed()
                drawn.append(torch.rand(()).item())
                trainer._seed()
                assert torch.rand(()).item() == drawn[-1]
    assert len(set(drawn)) == 2 * 4 * 3


def test_a_checkpoint_is_on_the_disk_before_it_replaces_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        calls.append(f"fsync of {os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def replaced(source: Any, target: Any) -> None:
        if Path(target).name == "checkpoint.pt":
            calls.append(f"replace by {os.stat(source).st_size} bytes")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    run(tmp_path, steps=1)
    size = (tmp_path / "checkpoint.pt").stat().st_size
    assert calls == [f"fsync of {size} bytes", f"replace by {size} bytes"]
