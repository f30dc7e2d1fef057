"""Define commands, and the options that several of them share."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from clipkit.errors import ConfigError
from clipkit.files import check_output

# Exit codes. argparse leaves with 2 as well where it cannot read the arguments.
DONE = 0
SOME_LEFT_OUT = 1
FAILED = 2
INTERRUPTED = 130  # what shells return for SIGINT


@dataclass(frozen=True)
class Command:
    """Hold what `clipkit --help` says of a command, its arguments and the function behind it.

    Attributes:
        name: the word after `clipkit`.
        examples: command lines that work, shown in its help, one a line.
        add_arguments: adds the arguments to the command's own parser.
        run: takes the values of all arguments by name and returns the exit code.
        details: what its help says at the end.
        prepare: changes the values of the arguments before `run` gets them.
    """

    name: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[..., int]
    details: str = ""
    prepare: Callable[[dict[str, Any]], None] | None = None


class CommandEntry(NamedTuple):
    """Say where a command is, so that nothing is imported for those that nobody called.

    Example:
        CommandEntry("models", "list the checkpoints", "models", "MODELS").load()
    """

    name: str  # the word after `clipkit`
    summary: str  # one line for the list of commands
    module: str  # of `clipkit.commands`
    variable: str  # in the module

    def load(self) -> Command:
        """Import the command."""
        command: Command = getattr(import_module(f"clipkit.commands.{self.module}"), self.variable)
        return command


def path_of(text: str) -> Path:
    """Return the path that an argument names. An empty one would become the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("an empty text names no path; '.' is this folder")
    return Path(text)


def check_page(path: Path | None) -> None:
    """Raise an error before the work is done if `--html` cannot write its page.

    Args:
        path: of the page, None if there is to be none.

    Raises:
        ConfigError: for a file of another kind, such as an image, which it would replace.
        OutputError: if nothing can be written there.
    """
    if path is None:
        return
    check_output(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--html writes a page, so its file ends in .html, not {path.name!r}")


def add_class_folders(parser: argparse.ArgumentParser) -> None:
    """Add the argument for a folder of class folders."""
    parser.add_argument(
        "data",
        type=path_of,
        metavar="FOLDERS",
        help="a folder with one folder of images for each class, named like the class",
    )


def add_out(parser: argparse.ArgumentParser, help: str) -> None:
    """Add the option for the folder to write."""
    parser.add_argument("-o", "--out", type=path_of, required=True, metavar="DIR", help=help)


def add_classifier(parser: argparse.ArgumentParser) -> None:
    """Add the choice of a fitted classifier."""
    parser.add_argument(
        "--classifier",
        type=path_of,
        metavar="DIR",
        help="a folder that `clipkit fit` or `clipkit finetune` wrote, in place of a model",
    )


def add_templates(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the texts around class names."""
    parser.add_argument(
        "--templates",
        nargs="+",
        metavar="TEXT",
        help="texts with {} where the label goes, averaged; or the name of a prompt set such as "
        "imagenet (default: 'a photo of a {}.')",
    )
    parser.add_argument(
        "--descriptors",
        type=path_of,
        metavar="FILE",
        help="in their place a JSON object from labels to lists of texts that describe them, as "
        "CuPL and DCLIP have them",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the choice of a device."""
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: CUDA if there is one)"
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the number of processes that read images."""
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that read images (default: 0, none beside the main one)",
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add the seed of whatever is drawn at random."""
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of all random draws (default: 0)"
    )


def add_json(parser: argparse.ArgumentParser, help: str) -> None:
    """Add the switch for JSON output, under a name that does not hide the module."""
    parser.add_argument("--json", action="store_true", dest="as_json", help=help)
