"""What a run writes: refused before the work, whole on a full disk, with all rows of its log."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipkit import CLIP, Pairs, Trainer, finetune, finetune_captions, train
from clipkit.errors import OutputError
from clipkit.training.run import RunConfig, finetune_from
from tests.helpers.training_worker import (
    losses,
    quick_config,
    rows_of_log,
    run,
    state_of,
    toy_batches,
    toy_model,
)


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
        finetune_from(pairs, out, toy)
    if "\0" not in below:
        config = RunConfig(
            data="no data", out=str(out), batch_size=2, train=quick_config(), init="no model"
        )
        with pytest.raises(OutputError, match="cannot write"):
            train(config, "cpu")


# Kind X6: a full disk.
@pytest.mark.parametrize("at", ["checkpoint", "log", "board", "closing"])
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
        "closing": "torch.utils.tensorboard.writer.SummaryWriter.close",
    }[at]
    if at in ("board", "closing"):
        pytest.importorskip("tensorboard")
    with monkeypatch.context() as patch:
        patch.setattr(target, SimpleNamespace(dumps=full) if at == "log" else full)
        with pytest.raises(OutputError, match="No space left.*Free some space"):
            run(tmp_path, steps=4)
    assert before["step"] == 2
    assert state_of(tmp_path)["step"] == (4 if at == "closing" else 2)
    assert not list(tmp_path.glob(".*.tmp"))
    run(tmp_path, steps=4)
    assert losses(tmp_path).keys() == {1, 2, 3, 4}


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


# Kind Z: what no test noticed.
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
