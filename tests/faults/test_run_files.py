"""Damaged files of a run are named by one typed error, and never give a wrong result."""

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import Trainer
from clipkit.errors import ConfigError, TrainingError
from clipkit.training.run import RunConfig
from tests.helpers.models import assert_same
from tests.helpers.toy_data import within
from tests.helpers.training_worker import (
    losses,
    quick_config,
    run,
    state_of,
    toy_batches,
    toy_model,
)

State = dict[str, Any]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two steps, with a moving average."""
    out = tmp_path_factory.mktemp("stopped")
    run(out, steps=2, ema=0.5)
    return out


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Return a trainer of the same run, which has made no step. It may be asked again and again."""
    config = quick_config(steps=2, ema=0.5)
    out = tmp_path_factory.mktemp("other")
    return Trainer(toy_model(), toy_batches, config, out, device="cpu")


def resume(folder: Path, trainer: Trainer) -> None:
    trainer.state.resume(folder / "checkpoint.pt")


# Kind X5: our own files, changed. Bytes of a checkpoint:
def test_a_changed_byte_of_a_checkpoint_is_found(
    stopped: Path, trainer: Trainer, tmp_path: Path
) -> None:
    """Nearly all of its bytes are weights, where a change would otherwise be a wrong result."""
    sound = (stopped / "checkpoint.pt").read_bytes()
    chance = random.Random(0)
    for _ in range(30):
        damaged = bytearray(sound)
        for place in chance.sample(range(len(sound)), 3):
            damaged[place] ^= chance.randrange(1, 256)
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"checkpoint.pt cannot be resumed .*remove it"):
            resume(tmp_path, trainer)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 0.999])
def test_a_checkpoint_that_was_cut_off_is_found(
    share: float, stopped: Path, trainer: Trainer, tmp_path: Path
) -> None:
    sound = (stopped / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(sound[: int(len(sound) * share)])
    with pytest.raises(TrainingError, match=r"checkpoint.pt cannot be resumed .*remove it"):
        resume(tmp_path, trainer)


# Its entries:
def set_entry(name: str, value: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name] = value

    return change


def drop_entry(name: str) -> Callable[[State], None]:
    return lambda state: state.pop(name)


def change_group(name: str, value: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        state["optimizers"][0]["param_groups"][0][name] = value

    return change


def change_moment(name: str, value: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        state["optimizers"][0]["state"][0][name] = value

    return change


def change_weight(value: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        state["task"]["model.visual.proj"] = value

    return change


NAMES = "config identity task optimizers average step losses counted skipped".split()
CHANGES: list[Callable[[State], None]] = [
    *[drop_entry(name) for name in NAMES],
    *[set_entry(name, "a text") for name in NAMES],
    *[set_entry(name, True) for name in ("step", "losses")],
    *[set_entry(name, -1) for name in ("step", "counted", "skipped")],
    set_entry("step", 2**70),
    set_entry("identity", [[1]]),
    *[set_entry("losses", value) for value in (float("nan"), float("inf"), torch.ones(2))],
    set_entry("step", 1.5),
    set_entry("step", torch.tensor(2)),
    set_entry("start", 5),
    set_entry("average", None),
    set_entry("average", {}),
    set_entry("optimizers", {"state": {}, "param_groups": []}),
    set_entry("optimizers", [{"state": {}, "param_groups": []}]),
    set_entry("optimizers", [{}]),
    set_entry("config", {"lr": torch.ones(3)}),
    set_entry("identity", [{}, "", torch.ones(2)]),
    set_entry("identity", [{"a": torch.ones(2)}, "", ""]),
    change_weight(torch.ones(3)),
    change_weight(torch.ones(32, 32, dtype=torch.float64)),
    change_weight(torch.ones(32, 32, dtype=torch.int32)),
    change_weight("no tensor"),
    change_weight(torch.ones(1).expand(10**6, 10**6)),
    change_group("params", [0]),
    change_group("params", "all"),
    change_group("betas", 0.9),
    change_group("betas", (0.9,)),
    change_group("eps", "small"),
    change_group("weight_decay", [0.1]),
    change_moment("exp_avg", torch.ones(7)),
    change_moment("exp_avg", 0.5),
    change_moment("step", "two"),
    change_moment("exp_avg_sq", None),
]


def test_changed_entries_of_a_checkpoint_are_found(
    stopped: Path, trainer: Trainer, tmp_path: Path
) -> None:
    sound = state_of(stopped)
    for number, change in enumerate(CHANGES):
        state = copy.deepcopy(sound)
        change(state)
        torch.save(state, tmp_path / "checkpoint.pt")
        try:
            resume(tmp_path, trainer)
        except TrainingError as error:
            assert "checkpoint.pt" in str(error)
            assert "remove it, or give another out" in str(error) or "of another run" in str(error)
        else:
            pytest.fail(f"change {number} was not found")


@pytest.mark.parametrize("content", [5, None, [1, 2], torch.ones(3), {}, {"state_dict": {}}])
def test_what_is_no_state_of_a_training_is_named(
    content: Any, trainer: Trainer, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match=r"cannot be resumed \(it (holds a|has no entry)"):
        resume(tmp_path, trainer)


def test_a_pipe_in_place_of_a_file_of_a_run_does_not_hang(tmp_path: Path) -> None:
    for name in ("checkpoint.pt", "log.jsonl"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(TrainingError, match=rf"{name} .*no regular file"), within(30):
            run(tmp_path, steps=2)
        (tmp_path / name).unlink()


def test_a_mistake_of_ours_is_not_taken_for_a_damaged_file(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_: Any, **__: Any) -> None:
        raise KeyError("a mistake in the code")

    (tmp_path / "checkpoint.pt").write_bytes((stopped / "checkpoint.pt").read_bytes())
    monkeypatch.setattr("clipkit.training.state.TrainingState._restore", mistaken)
    with pytest.raises(KeyError, match="a mistake in the code"):
        run(tmp_path, steps=2, ema=0.5)


def test_a_sound_checkpoint_is_resumed_to_the_bit(stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((stopped / "checkpoint.pt").read_bytes())
    assert_same(run(tmp_path, steps=2, ema=0.5), run(stopped, steps=2, ema=0.5))


# Its log:
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b"[1, 2]\n", "line 1 .*log.jsonl must hold a JSON object"),
        (b"no JSON\n", "line 1 .*log.jsonl is not JSON"),
        (b'{"loss": 1}\n', "line 1 .*log.jsonl is no row of a run: move the file away"),
        (b'{"step": "2"}\n', "line 1 .*log.jsonl is no row of a run"),
        (b'{"step": true}\n', "line 1 .*log.jsonl is no row of a run"),
        (b'{"step": null}\n', "line 1 .*log.jsonl is no row of a run"),
        (b'{"step": 1}\n{"step":' + b"[" * 100_000 + b"\n", "line 2 .*(nests deeper|not JSON)"),
        (b'{"step": ' + b"1" * 5000 + b"}\n", "line 1 .*log.jsonl is not JSON"),
        (b"\xff\xfe\n", "log.jsonl is not text in UTF-8"),
        (b"\n", "line 1 .*log.jsonl is not JSON"),
    ],
)
def test_a_damaged_log_is_named(damage: bytes, message: str, stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(damage)
    with pytest.raises(TrainingError, match=message):
        run(tmp_path, steps=2)
    assert (tmp_path / "log.jsonl").read_bytes() == damage


def test_a_row_that_was_cut_off_is_dropped(stopped: Path, tmp_path: Path) -> None:
    for name in ("checkpoint.pt", "log.jsonl"):
        (tmp_path / name).write_bytes((stopped / name).read_bytes())
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 0.')
    run(tmp_path, steps=2, ema=0.5)
    assert losses(tmp_path) == losses(stopped)


# Its run file:
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"null",
        b"\xff\xfe{}",
        b'{"data":' * 100_000,
        b'{"data": ' + b"[" * 70 + b"]" * 70 + b"}",
        b'{"train": []}',
        b'{"train": {"steps": 1e400}}',
        b'{"train": {"steps": ' + b"9" * 4000 + b"}}",
        b'{"train": {"steps": 1, "lr": true}}',
        b'{"train": {"steps": 1, "betas": [NaN, 0.9]}}',
        b'{"train": {"steps": 1, "seed": ' + b"9" * 400 + b"}}",
        b'{"augment": {"area": "all"}}',
        b'{"model": {"vision": 5}}',
        b'{"data": "a", "out": "b", "batch_size": 1e9, "train": {"steps": 1}, "init": "x"}',
        b'{"data": "a\\u0000", "out": "b", "batch_size": 2, "train": {"steps": 1}, "init": "x"}',
    ],
)
def test_a_damaged_run_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"run.json|RunConfig|TrainConfig|Augment|CLIPConfig"):
        RunConfig.read(tmp_path / "run.json")


def test_a_path_that_is_too_long_is_a_typed_error(tmp_path: Path) -> None:
    values = {"data": "a", "out": "b", "batch_size": 2, "train": {"steps": 1}, "init": "n" * 5000}
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert RunConfig.read(tmp_path / "run.json").init == "n" * 5000  # perhaps a name
    with pytest.raises(ConfigError, match="cannot be read"):
        RunConfig.read(tmp_path / ("n" * 5000))
