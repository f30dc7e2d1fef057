"""The command line in pipes and under Ctrl-C: no traceback, and an exit code that says what was."""

import subprocess
import sys

import pytest

from clipkit import cli
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

    command = Command("models", "list", "clipkit models", lambda parser: None, interrupted)
    monkeypatch.setattr(cli, "COMMANDS", (command,))
    assert cli.main(["models"]) == 130
    assert capsys.readouterr().err == f"clipkit: {said}\n"
