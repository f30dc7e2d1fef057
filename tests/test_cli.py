"""The program as a whole: its help, its version, its exit codes, and `clipkit models`."""

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

import clipkit
from clipkit.cli import COMMANDS, main, make_parser
from clipkit.commands import models
from clipkit.commands.command import Command, CommandEntry
from clipkit.commands.train import EXAMPLE

README = Path(__file__).parents[1] / "README.md"
NAMES = [command.name for command in COMMANDS]
# Options that the README explains once, by the word that it has for them.
GROUPS = {
    "MODEL": {
        "--model",
        "--config",
        "--activation",
        "--head-width",
        "--revision",
        "--cache-dir",
        "--tokenizer",
        "--device",
    },
    "OUTPUT": {"--json", "--paths", "--null", "--html"},
    "INDEX": {"--index", "--exclude", "--include-hidden", "--no-update"},
}


def stopped(arguments: list[str]) -> int | str | None:
    """Return the code with which argparse leaves."""
    with pytest.raises(SystemExit, match=r"^[02]$") as left:
        main(arguments)
    return left.value.code


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped(["--version"]) == 0
    assert capsys.readouterr().out == f"clipkit {clipkit.__version__}\n"


def test_help_lists_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped(["--help"]) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^ +{command.name}(?: |$)", out, re.M)
    for code in (0, 1, 2):
        assert re.search(rf"^ +{code}  \S", out, re.M)


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_shows_an_example_that_can_be_read(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped([name, "--help"]) == 0
    examples = re.findall(
        rf"^  (?:.*\| )?clipkit ({name} .+|{name})$", capsys.readouterr().out, re.M
    )
    assert examples
    for example in examples:
        options = make_parser([name]).parse_args(shlex.split(example))
        assert options.command.name == name


def command_of(name: str) -> Command:
    """Return a command by the word after `clipkit`."""
    return next(entry for entry in COMMANDS if entry.name == name).load()


def own_parser(name: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments of one command alone."""
    parser = argparse.ArgumentParser(prog=name)
    command_of(name).add_arguments(parser)
    return parser


@pytest.mark.parametrize("name", NAMES)
def test_a_command_has_the_name_of_its_entry(name: str) -> None:
    assert command_of(name).name == name


def test_nothing_is_imported_for_commands_that_nobody_called() -> None:
    program = (
        "import sys; from clipkit.cli import make_parser\n"
        "make_parser([]).format_help()\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False False\n"


def test_ctrl_c_while_a_command_is_imported_ends_with_one_line_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(entry: CommandEntry) -> Command:
        raise KeyboardInterrupt

    monkeypatch.setattr(CommandEntry, "load", interrupted)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "clipkit: interrupted\n"


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_says_what_it_is(name: str) -> None:
    for action in own_parser(name)._actions:
        assert action.help, action.dest


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_shows_every_option(name: str) -> None:
    text = README.read_text("utf-8")
    table = text[text.index("## Command line") :]
    usage = re.search(rf"^    clipkit {name}\b.*(\n {{10,}}.*)*", table, re.M)
    assert usage is not None
    # At the beginning of a line: texts of other options may name options of other commands.
    options = set(re.findall(r"^  (?:-\w.*, )?(--[\w-]+)", own_parser(name).format_help(), re.M))
    shown = set(re.findall(r"--[\w-]+", usage.group()))
    for word, grouped in GROUPS.items():
        if f"[{word}]" in usage.group():
            shown |= grouped
    assert options - {"--help", "--workers", "--out", "--device"} == shown - {"--device"}
    takes_model = command_of(name).prepare is not None
    assert ("[MODEL]" in usage.group()) == takes_model


@pytest.mark.parametrize("word", GROUPS)
def test_the_readme_says_what_the_options_of_a_group_are(word: str) -> None:
    text = README.read_text("utf-8")
    paragraph = re.search(rf"`{word}` is .*?\n\n", text, re.S)
    assert paragraph is not None
    for option in GROUPS[word]:
        assert option in paragraph.group()


@pytest.mark.parametrize(
    "arguments",
    [
        ["paint"],
        ["classify", "photo.jpg", "--labels"],
        ["classify", "photo.jpg", "--labels", "a", "--top", "many"],
        ["fit", "folders"],
        ["train"],
        ["models", "all"],
        ["--device", "cpu"],
    ],
)
def test_arguments_that_cannot_be_read_exit_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: clipkit")


def test_a_folder_that_cannot_be_written_exits_with_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    folders = tmp_path / "images"
    photos = Path(__file__).parents[1] / "examples" / "photos"
    for name in ("cat", "rocket"):
        (folders / name).mkdir(parents=True)
        (folders / name / "a.jpg").write_bytes((photos / f"{name}.jpg").read_bytes())
    out = str(tmp_path / "file" / "inside")
    options = ["--model", "tiny", "--device", "cpu", "--method", "cache"]
    assert main(["fit", str(folders), "--out", out, *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("clipkit: ")
    assert str(tmp_path / "file") in lines[0]


def test_an_error_of_the_disk_exits_with_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*, as_json: bool) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "MODELS_COMMAND", replace(models.MODELS_COMMAND, run=fail))
    assert main(["models"]) == 2
    assert capsys.readouterr().err == "clipkit: [Errno 28] No space left on device\n"


def test_models_lists_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines[1:]] == clipkit.list_models()


def test_python_m_clipkit_is_the_same_program() -> None:
    command = [sys.executable, "-m", "clipkit", "models"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "ViT-L/14@336px" in done.stdout


def test_the_help_of_train_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for config in (clipkit.RunConfig, clipkit.TrainConfig):
        for field in fields(config):
            assert re.search(rf"\b{field.name}\b  ", out), field.name


def test_the_example_in_the_help_of_train_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(EXAMPLE)
    assert clipkit.RunConfig.read(tmp_path / "run.json").train.steps == 20000
