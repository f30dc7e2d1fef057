"""The command line in pipes and under Ctrl-C: no traceback, and an exit code that says what was."""

import os
import subprocess
import sys

import pytest
import torch

from clipkit import cli
from clipkit.commands import models
from clipkit.commands.command import Command


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`clipkit models | head -1` must end in silence."""
    command = f"{sys.executable} -m clipkit models | head -1; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert run.stderr == ""
    assert run.returncode == 0
    assert run.stdout.startswith("name")


@pytest.mark.parametrize(
    ("arguments", "said"), [(["step 3 is saved"], "step 3 is saved"), ([], "interrupted")]
)
def test_ctrl_c_ends_with_one_line_and_130(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(**options: object) -> int:
        raise KeyboardInterrupt(*arguments)

    command = Command("models", "clipkit models", lambda parser: None, interrupted)
    monkeypatch.setattr(models, "MODELS_COMMAND", command)
    assert cli.main(["models"]) == 130
    assert capsys.readouterr().err == f"clipkit: {said}\n"


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `clipkit models` end in this error."""

    def fail(**options: object) -> int:
        raise error

    command = Command("models", "clipkit models", lambda parser: None, fail)
    monkeypatch.setattr(models, "MODELS_COMMAND", command)


def test_a_pipe_that_breaks_and_is_not_the_output_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that was killed closes a pipe too, and then nothing was done."""
    fail_with(BrokenPipeError(32, "Broken pipe"), monkeypatch)
    assert cli.main(["models"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("clipkit: a process or a connection of this command ended too early")
    assert err.count("\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_long_lines_for_a_reader_that_has_seen_enough_are_no_error(unbuffered: str) -> None:
    """What is longer than a buffer leaves nothing in it by which the pipe would be known."""
    program = (
        "import sys; from clipkit import cli; from clipkit.commands import models\n"
        "from clipkit.commands.command import Command\n"
        "run = lambda **options: print('x' * 10**6, flush=True) or 0\n"
        "models.MODELS_COMMAND = Command('models', '-', lambda parser: None, run)\n"
        "sys.exit(cli.main(['models']))"
    )
    run = subprocess.run(
        [
            "bash",
            "-c",
            '"$@" | head -c 1; exit ${PIPESTATUS[0]}',
            "-",
            sys.executable,
            "-c",
            program,
        ],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stderr == ""
    assert run.returncode == 0
    assert run.stdout == "x"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "there is none left"),
        (MemoryError("weights need more"), "weights need more"),
        (torch.OutOfMemoryError("CUDA out of memory."), "CUDA out of memory."),
    ],
)
def test_too_little_memory_ends_with_one_line_and_2(
    error: Exception,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_with(error, monkeypatch)
    assert cli.main(["models"]) == 2
    assert capsys.readouterr().err == f"clipkit: the memory does not suffice: {said}\n"
