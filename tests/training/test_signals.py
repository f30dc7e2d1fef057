"""SIGTERM and Ctrl-C end the step and save it; a second Ctrl-C stops at once."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from clipkit import CLIP, Tokenizer
from clipkit.tokenizer import default_merges
from clipkit.training.signals import STOP_SIGNALS, stop_requests
from tests.helpers import training_worker
from tests.helpers.processes import launch, start
from tests.helpers.training_worker import CONFIG, losses, rows_of_log, run, state_of, toy_batches

WORKER = str(Path(training_worker.__file__))


@pytest.mark.parametrize("log_every", [1, 7])
@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (signal.SIGTERM, SystemExit, "143"),
        (signal.SIGINT, KeyboardInterrupt, r"step 10 is saved in .*checkpoint.pt"),
    ],
)
def test_a_signal_saves_the_step(
    number: signal.Signals,
    error: type[BaseException],
    message: str,
    log_every: int,
    tmp_path: Path,
) -> None:
    """In the middle of a logged interval too; the mean of that interval is not lost."""
    run(tmp_path / "whole", steps=20, log_every=log_every)
    part = tmp_path / "part"
    before = [signal.getsignal(stop) for stop in STOP_SIGNALS]
    with pytest.raises(error, match=message):
        run(
            part,
            lambda step: toy_batches(step, 9, [number]),
            steps=20,
            log_every=log_every,
            save_every=0,
        )
    assert state_of(part)["step"] == 10
    assert [signal.getsignal(stop) for stop in STOP_SIGNALS] == before
    run(part, steps=20, log_every=log_every)
    assert losses(part) == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("signals", "code", "saved"),
    [
        (["SIGTERM"], 128 + signal.SIGTERM, True),
        (["SIGTERM", "SIGTERM"], 128 + signal.SIGTERM, True),
        (["SIGINT"], -signal.SIGINT, True),
        (["SIGINT", "SIGINT"], -signal.SIGINT, False),
    ],
)
def test_processes_end_as_their_signal_says(
    signals: list[str], code: int, saved: bool, tmp_path: Path
) -> None:
    """Python ends by SIGINT itself after a KeyboardInterrupt: a shell sees the code 130."""
    values = json.dumps({"steps": 100, "save_every": 0})
    process = start([WORKER, str(tmp_path), values, "5", *signals])
    error = process.communicate(timeout=120)[1]
    assert process.returncode == code, error
    assert (tmp_path / "checkpoint.pt").exists() == saved
    assert len(rows_of_log(tmp_path)) == (6 if saved else 5)
    if saved:
        assert state_of(tmp_path)["step"] == 6


def test_ctrl_c_in_one_process_stops_all(tmp_path: Path) -> None:
    """Every process is sent the signal at its own moment; they agree on the step."""
    values = json.dumps({"steps": 100, "save_every": 0})
    launch(2, [WORKER, str(tmp_path), values, "3", "SIGINT"], code=-signal.SIGINT)
    assert state_of(tmp_path)["step"] == 4


def write_run(folder: Path) -> Path:
    """Write a run file, with all that it names, for a run that does not end by itself."""
    for name, level in (("dark", 0), ("light", 100)):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(8):
            image = Image.new("RGB", (40, 40), (level + number,) * 3)
            image.save(folder / "images" / name / f"{number}.png")
    tokenizer = Tokenizer(default_merges()[:86], context_length=16)
    CLIP(CONFIG, tokenizer).save_pretrained(folder / "start")
    values = {"data": "images", "out": "run", "init": "start", "batch_size": 4, "workers": 2}
    train = {"steps": 100000, "log_every": 1, "save_every": 0}
    (folder / "run.json").write_text(json.dumps({**values, "train": train}))
    return folder / "run.json"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_the_group_reaches_no_worker(number: signal.Signals, tmp_path: Path) -> None:
    """torchrun and terminals signal the whole group of a process.

    Workers that read ahead must outlive that, or nothing is saved.
    """
    file = write_run(tmp_path)
    process = start(["-m", "clipkit", "train", str(file), "--device", "cpu"], own_group=True)
    log = tmp_path / "run" / "log.jsonl"
    while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 3):
        time.sleep(0.02)
    os.killpg(process.pid, number)
    error = process.communicate(timeout=120)[1]
    # The command line may end by the signal, or with the code that a shell makes of it.
    assert process.returncode in (128 + number, -number), error
    assert state_of(tmp_path / "run")["step"] == len(rows_of_log(tmp_path / "run")) >= 3


def test_an_ignored_signal_stays_ignored() -> None:
    """A shell starts jobs in the background with SIGINT ignored: Ctrl-C is for another program."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests() as request:
            os.kill(os.getpid(), signal.SIGINT)
            assert request.signal is None
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_trains_without_signals(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def train() -> None:
        try:
            run(tmp_path, steps=1)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert errors == []
    assert losses(tmp_path).keys() == {1}
