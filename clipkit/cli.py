"""The `clipkit` program. `clipkit --help` lists its commands, which stand in `clipkit/commands`."""

import argparse
import os
import sys
from collections.abc import Sequence

import clipkit
from clipkit.commands.classify import CLASSIFY
from clipkit.commands.command import DONE, FAILED, Command, tell
from clipkit.commands.fit import EVAL, FIT
from clipkit.commands.models import MODELS_COMMAND
from clipkit.commands.train import FINETUNE, TRAIN
from clipkit.errors import ClipkitError

COMMANDS = (CLASSIFY, FIT, EVAL, TRAIN, FINETUNE, MODELS_COMMAND)
EXIT_CODES = """\
exit codes:
  0  done
  1  `classify` left some images out
  2  the command could not run, or `classify` could read no image
  130  the command was interrupted by Ctrl-C"""

INTERRUPTED = 130  # what shells return for SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: the words after `clipkit`; those of this process if not given.

    Returns:
        0 if all was done, 1 if `classify` left some images out, 2 if the command could not run, 130
        after Ctrl-C.

    Raises:
        SystemExit: with 2 if the arguments cannot be read, with 0 after `--help` and `--version`.

    Example:
        main(["classify", "photo.jpg", "--labels", "cat", "dog"])
    """
    options = vars(make_parser().parse_args(arguments))
    command: Command = options.pop("command")
    try:
        code = command.run(**options)
        sys.stdout.flush()  # or the pipe would break at the end, where nobody catches it
        return code
    except BrokenPipeError:  # what reads our lines, such as `head`, has seen enough
        _silence_output()
        return DONE
    except KeyboardInterrupt as interruption:
        tell(f"clipkit: {interruption or 'interrupted'}")
        return INTERRUPTED
    except (ClipkitError, OSError) as error:  # an OSError is a full disk, a folder without rights
        tell(f"clipkit: {error}")
        return FAILED


def _silence_output() -> None:
    """Let nothing more be written to a pipe that is closed, or Python complains at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole program, with a parser for each command."""
    parser = argparse.ArgumentParser(
        prog="clipkit",
        description="CLIP checkpoints and classifiers.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clipkit {clipkit.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        own = commands.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(own)
        own.set_defaults(command=command)
    return parser
