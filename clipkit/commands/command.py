"""What a command is, and the options that several commands share."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipkit import CLIP, ImageClassifier
from clipkit.errors import ConfigError
from clipkit.prompts import TEMPLATES, Templates

# Exit codes. argparse leaves with 2 as well where it cannot read the arguments.
DONE = 0
SOME_LEFT_OUT = 1
FAILED = 2


@dataclass(frozen=True)
class Command:
    """Hold what `clipkit --help` says of a command, its arguments and the function behind it.

    Attributes:
        name: the word after `clipkit`.
        summary: one line for the list of commands.
        example: a command line that works, shown in its help.
        add_arguments: adds the arguments to the command's own parser.
        run: takes the values of all arguments by name and returns the exit code.
    """

    name: str
    summary: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[..., int]


def path_of(text: str) -> Path:
    """Return the path that an argument names. An empty one would become the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("an empty text names no path; '.' is this folder")
    return Path(text)


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


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the choice of a model and of the templates around its class names."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a name from `clipkit models`, a hub id, or a path (default: tiny)",
    )
    parser.add_argument(
        "--templates",
        nargs="+",
        metavar="TEXT",
        help="texts with {} where the label goes, averaged; or the name of a prompt set such as "
        "imagenet (default: 'a photo of a {}.')",
    )


def add_classifier(parser: argparse.ArgumentParser) -> None:
    """Add the choice of a fitted classifier."""
    parser.add_argument(
        "--classifier",
        type=path_of,
        metavar="DIR",
        help="a folder that `clipkit fit` or `clipkit finetune` wrote, in place of a model",
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


def choose_classifier(
    folder: Path | None,
    labels: list[str],
    *,
    model: str | None,
    templates: list[str] | None,
    device: str | None,
) -> ImageClassifier:
    """Load the fitted classifier in `folder`, or make a zero-shot one of the labels.

    Raises:
        ConfigError: if a fitted classifier would ignore `model` or `templates`.
    """
    if folder is not None:
        if model is not None or templates is not None:
            raise ConfigError(
                "--classifier brings its own model and texts: leave --model and --templates out"
            )
        return ImageClassifier.load(folder, device=device)
    if model is None:
        tell("Using the small embedded model 'tiny'; --model ViT-L/14 takes a published one.")
    clip = CLIP.from_pretrained(model or "tiny", device=device)
    return ImageClassifier.zero_shot(clip, labels, _read_templates(templates))


def _read_templates(texts: list[str] | None) -> Templates:
    """Return templates, or the name of a prompt set: a single text with no place for the label."""
    if texts is None:
        return TEMPLATES
    if len(texts) == 1 and "{}" not in texts[0]:
        return texts[0]
    return texts


def tell(message: str) -> None:
    """Print a message for people to standard error, so that standard output holds results alone."""
    print(message, file=sys.stderr)


def tell_skipped(problems: Sequence[str]) -> None:
    """Print which images were left out, and why."""
    for problem in problems:
        tell(f"clipkit: skipped: {problem}")
