"""The `clipkit` program. `clipkit --help` lists its commands, which stand in `clipkit/commands`."""

import argparse
import contextlib
import os
import select
import sys
from collections.abc import Collection, Sequence
from typing import Any

import clipkit
from clipkit.commands.command import DONE, FAILED, INTERRUPTED, Command, CommandEntry
from clipkit.commands.display import lossless_streams, tell_error, warn
from clipkit.commands.logs import told_logs
from clipkit.commands.wording import NO_OPTIONS, in_options
from clipkit.errors import ClipkitError

# Only the one that is called is imported: most of them bring torch along.
COMMANDS = (
    CommandEntry(
        "classify",
        "rank labels for images, without training or by a fitted classifier",
        "classify",
        "CLASSIFY",
    ),
    CommandEntry(
        "fit", "make a classifier from class folders of images, a few each or many", "fit", "FIT"
    ),
    CommandEntry(
        "eval", "measure a classifier, or zero-shot, on class folders of images", "evaluate", "EVAL"
    ),
    CommandEntry(
        "segment",
        "paint the class of each pixel over photos, without training",
        "segment",
        "SEGMENT",
    ),
    CommandEntry(
        "finetune",
        "adapt a model to your captioned images or class folders",
        "finetune",
        "FINETUNE",
    ),
    CommandEntry(
        "train", "train as a JSON file says; under torchrun on many processes", "train", "TRAIN"
    ),
    CommandEntry("search", "find images by a text, an image, or sums of both", "search", "SEARCH"),
    CommandEntry("similar", "find the images that look most like one", "search", "SIMILAR"),
    CommandEntry("duplicates", "find images that look alike", "search", "DUPLICATES"),
    CommandEntry("index", "build the index that searches use, or update it", "search", "INDEX"),
    CommandEntry(
        "models",
        "list the checkpoints that can be loaded by name, with their sizes",
        "models",
        "MODELS_COMMAND",
    ),
    CommandEntry(
        "prompts", "list the prompt sets that --templates takes by name", "models", "PROMPTS"
    ),
)
EPILOG = """\
examples:
  clipkit classify photo.jpg --labels cat dog "cup of coffee"
  clipkit fit train_folders/ -o pets/ --model ViT-B/32
  clipkit classify photo.jpg --classifier pets/
  clipkit search "a cat in jeans" photos/

exit codes:
  0  done
  1  `classify`, `segment` or `index` left some images out, or a search found none
  2  the command could not run, or could read no image
  130  the command was interrupted by Ctrl-C"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Without any argument it prints the help.

    Args:
        arguments: the words after `clipkit`; those of this process if not given.

    Returns:
        0 if all was done; 1 if `classify`, `segment` or `index` left some images out, or a search
        found none; 2 if the command could not run; 130 after Ctrl-C.

    Raises:
        SystemExit: with 2 if the arguments cannot be read, with 0 after `--help` and `--version`.

    Example:
        main(["classify", "photo.jpg", "--labels", "cat", "dog"])
    """
    with lossless_streams():
        try:
            return _read_and_run(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt as interruption:  # which may come while a command is imported
            warn(str(interruption) or "interrupted")
            return INTERRUPTED


def _read_and_run(words: Sequence[str]) -> int:
    """Run the command of a command line."""
    parser = make_parser(words)
    options = vars(parser.parse_args(words))
    command: Command | None = options.pop("command")
    if command is None:
        parser.print_help()
        return DONE
    return _run(command, options)


def _run(command: Command, options: dict[str, Any]) -> int:
    """Run a command with the values of its arguments; whatever goes wrong ends in one line."""
    names = [name for name in options if name not in NO_OPTIONS]
    if command.prepare is not None:
        command.prepare(options)
    try:
        with told_logs():
            code = command.run(**options)
        _flush_output()  # or the pipe would break at the end, where nobody catches it
        return code
    except BrokenPipeError as error:
        if _is_output_broken():  # what reads our lines, such as `head`, has seen enough
            _silence_output()
            return DONE
        tell_error(f"a process or a connection of this command ended too early: {error}")
        return FAILED
    except (ClipkitError, OSError) as error:  # an OSError is a full disk, a folder without rights
        tell_error(in_options(str(error), names))
        with contextlib.suppress(OSError):
            _flush_output()
            return FAILED
        _silence_output()  # it is the output that cannot be written
        return FAILED
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error) or "there is none left"
        tell_error(f"the memory does not suffice: {reason}")
        return FAILED


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether the memory did not suffice, of the computer or of a device.

    The latter is torch.OutOfMemoryError, for which torch would have to be imported.
    """
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _flush_output() -> None:
    if sys.stdout is not None:  # the shell closes it by >&-
        sys.stdout.flush()


def _is_output_broken() -> bool:
    """Return whether standard output is a pipe that nobody reads any more."""
    try:
        _flush_output()  # what broke it is still in its buffer, unless that was too long for one
        descriptor = sys.stdout.fileno()
    except BrokenPipeError:
        return True
    except (AttributeError, OSError, ValueError):  # closed, or no file at all
        return False
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(descriptor, 0)  # of errors it tells in any case
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _silence_output() -> None:
    """Let nothing more be written to an output that is closed, or Python complains at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_parser(words: Collection[str]) -> argparse.ArgumentParser:
    """Return the parser of the whole program, with the arguments of the commands among `words`.

    Args:
        words: of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="clipkit",
        description="CLIP checkpoints and classifiers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clipkit {clipkit.__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    for entry in COMMANDS:
        own = commands.add_parser(
            entry.name,
            help=entry.summary,
            description=f"{entry.summary[0].upper()}{entry.summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if entry.name in words:
            command = entry.load()
            own.epilog = _epilog(command)
            command.add_arguments(own)
            own.set_defaults(command=command)
    return parser


def _epilog(command: Command) -> str:
    """Return what the help of a command says behind its arguments."""
    lines = command.examples.splitlines()
    title = "example:" if len(lines) == 1 else "examples:"
    examples = "\n".join([title, *(f"  {line}" for line in lines)])
    return "\n\n".join(part for part in (command.details, examples) if part)
