"""Find what a command line speaks of: images, lists of images, and labels from files."""

import argparse
import glob
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from clipkit.commands.display import is_terminal, tell, warn
from clipkit.data.decode import image_suffixes
from clipkit.data.folders import list_images
from clipkit.errors import ConfigError, DataError
from clipkit.prompts import (
    TEMPLATES,
    ClassNames,
    Templates,
    is_wordnet_id,
    name_ids,
    wordnet_name,
)

STANDARD_INPUT = "-"

_MAX_LIST = 64 << 20  # bytes of a list of labels or paths
_MAX_IMAGE = 256 << 20  # bytes of an image from standard input


@dataclass(frozen=True)
class Found:
    """Hold the images of a command line.

    Attributes:
        images: paths, and the bytes of the image from standard input.
        problems: what led to no image.
    """

    images: list[Path | bytes]
    problems: list[str]

    def names(self) -> dict[str, str]:
        """Return what `Features.paths` calls the image from standard input, and its name here."""
        return {
            str(index): STANDARD_INPUT
            for index, image in enumerate(self.images)
            if isinstance(image, bytes) and Path(str(index)) not in self.images
        }


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add the images of a command, and the file of a list of them."""
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="files, folders or globs; - is one image from standard input",
    )
    parser.add_argument(
        "--images-from",
        metavar="FILE",
        help="a list of images, one in each line or separated by NUL; - is standard input",
    )


def check_standard_input(
    images: list[str], images_from: str | None, labels_file: str | None
) -> None:
    """Raise `ConfigError` if standard input would have to be two things at once."""
    uses = [*images, images_from, labels_file].count(STANDARD_INPUT)
    if uses > 1:
        raise ConfigError(
            f"- stands for standard input, which can be one thing only, and is given {uses} times"
        )


def find_inputs(images: list[str], images_from: str | None) -> Found:
    """Return the images of `add_images`, in the order of the patterns, also of standard input.

    Raises:
        DataError: if standard input, or the file of a list, cannot be read or holds nothing.
    """
    patterns = [*images, *([] if images_from is None else read_paths(images_from))]
    if STANDARD_INPUT not in patterns:
        files, problems = find_images(patterns)
        return Found([*files], problems)
    place = patterns.index(STANDARD_INPUT)
    before, problems = find_images(patterns[:place])
    after, more_problems = find_images(patterns[place + 1 :])
    known = set(before)
    rest = [file for file in after if file not in known]
    return Found([*before, read_image(), *rest], problems + more_problems)


def find_images(patterns: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the images that the patterns lead to, in order and once each; and what led nowhere.

    Args:
        patterns: files, folders to search for images, or globs.
    """
    found: dict[Path, None] = {}
    problems: list[str] = []
    for pattern in patterns:
        matches = _matches(pattern)
        if not matches:
            problems.append(f"no image at {pattern}")
        found |= dict.fromkeys(matches)
    return list(found), problems


def _matches(pattern: str) -> list[Path]:
    if not pattern or "\0" in pattern:
        return []  # Path("") would be the working directory
    # A name that is too long for the file system raises an error in methods of Path.
    if os.path.isdir(pattern):
        return list_images(pattern)
    if os.path.exists(pattern):
        return [Path(pattern)]
    # A file whose name holds brackets exists, so only what is no file is taken as a glob.
    return sorted(p for p in map(Path, glob.glob(pattern, recursive=True)) if p.is_file())


def read_image() -> bytes:
    """Return the bytes of one image from standard input.

    Raises:
        DataError: if there are none, or more than an image can have.
    """
    return _read_standard_input("an image", _MAX_IMAGE)


def read_paths(source: str) -> list[str]:
    """Return the paths in a list, which are separated by line ends, or by NUL as `find -print0`.

    Args:
        source: a file, or "-" for standard input.

    Raises:
        DataError: if it cannot be read or holds no path.
    """
    content = _read_list(source, "a list of images")
    if b"\0" in content:
        parts = content.split(b"\0")
    else:
        parts = content.removeprefix(b"\xef\xbb\xbf").splitlines()
    # Names of files are bytes, which need not be UTF-8.
    paths = [part.decode("utf-8", "surrogateescape") for part in parts if part.strip()]
    if not paths:
        raise DataError(f"{_shown(source)} lists no images")
    return ["./-" if path == STANDARD_INPUT else path for path in paths]  # in a list it is a file


def read_lines(what: str) -> Iterator[str]:
    """Yield the lines of standard input that are not empty, each as soon as it is there.

    Args:
        what: they are, for messages.

    Raises:
        DataError: if there are none, or one is not UTF-8 or too long.
    """
    stream = _open_standard_input(what)
    is_empty = True
    while content := _check_size(stream.readline(_MAX_LIST + 1), STANDARD_INPUT, _MAX_LIST):
        try:
            line = content.decode("utf-8").strip("\ufeff").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"standard input is not text in UTF-8: {error}") from error
        if line:
            is_empty = False
            yield line
    if is_empty:
        raise DataError(f"standard input is empty, where {what} should be")


def read_labels(labels: list[str] | None, source: str | None) -> ClassNames:
    """Return the labels of a command line, or of a file, with names in place of WordNet ids.

    Args:
        labels: as they were given to `--labels`.
        source: a file with a label in each line, a JSON list of labels, or a JSON object of labels
            and their names; "-" for standard input.

    Raises:
        ConfigError: if both are given, or a label is empty or comes twice.
        DataError: if the file cannot be read, or holds no labels.
    """
    if labels is not None and source is not None:
        raise ConfigError("--labels and --labels-file both give labels: leave one out")
    if source is not None:
        found = _parse_labels(_read_list(source, "labels"), source)
        if isinstance(found, dict):
            return found
        labels = found
    labels = labels or []
    if not all(label.strip() for label in labels):
        raise ConfigError("a label is empty: leave it out, or name the class")
    if repeated := [label for label, count in Counter(labels).items() if count > 1]:
        raise ConfigError(f"the label {repeated[0]} is given more than once: leave the others out")
    tell_unknown_ids(labels)
    return name_ids(labels)


def read_templates(texts: list[str] | None) -> Templates:
    """Return templates, or the name of a prompt set: a single text with no place for the label."""
    if texts is None:
        return TEMPLATES
    if len(texts) == 1 and "{}" not in texts[0]:
        return texts[0]
    return texts


def tell_unknown_ids(labels: Sequence[str]) -> None:
    """Tell which labels look like WordNet ids and are none that has a name."""
    unknown = [label for label in labels if is_wordnet_id(label) and wordnet_name(label) is None]
    if unknown:
        warn(f"WordNet has no noun of the id {', '.join(unknown[:5])}, so that is taken as a name")


def images_among(labels: Sequence[str]) -> list[str]:
    """Return which labels are the names of image files: they were meant as images to classify."""
    suffixes = image_suffixes()
    return [
        label
        for label in labels
        if Path(label).suffix.lower() in suffixes and os.path.isfile(label)
    ]


def _parse_labels(content: bytes, source: str) -> list[str] | dict[str, Any]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{_shown(source)} is not text in UTF-8: {error}") from error
    if text.lstrip().startswith(("[", "{")):
        return _parse_json(text, source)
    labels = [line.strip() for line in text.splitlines()]
    if not any(labels):
        raise DataError(f"{_shown(source)} holds no labels: one is needed in each line")
    return [label for label in labels if label]


def _parse_json(text: str, source: str) -> list[str] | dict[str, Any]:
    """Return a list of labels, or a mapping from labels to a name or a list of names each."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{_shown(source)} is not JSON, as it begins: {error}") from error
    if isinstance(values, list):
        labels = cast("list[Any]", values)
        if labels and all(isinstance(label, str) for label in labels):
            return cast("list[str]", labels)
    elif isinstance(values, dict):
        names = cast("dict[str, Any]", values)
        if names and all(label.strip() and _are_names(own) for label, own in names.items()):
            return names
    raise DataError(
        f'{_shown(source)} must hold labels, as ["cat", "dog"], or labels with their names, as '
        '{"cat": ["cat", "kitten"], "dog": "dog"}'
    )


def _are_names(value: Any) -> bool:
    """Return whether this is a name, or a list of names."""
    names: list[Any] = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        return False
    return all(isinstance(name, str) and name.strip() for name in names)


def _read_list(source: str, what: str) -> bytes:
    """Return the content of a file, or of standard input for "-"."""
    if source == STANDARD_INPUT:
        return _read_standard_input(what, _MAX_LIST)
    try:
        path = Path(source)
        # A pipe that a shell makes, `<(command)`, lies there; any other might wait for ever.
        if not (stat.S_ISREG(path.stat().st_mode) or source.startswith("/dev/")):
            raise DataError(f"{source} is no file, so {what} cannot be read from it")
        with path.open("rb") as file:
            content = file.read(_MAX_LIST + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{source} cannot be read: {reason}") from error
    return _check_size(content, source, _MAX_LIST)


def _open_standard_input(what: str) -> BinaryIO:
    if sys.stdin is None or sys.stdin.closed:  # the shell's <&-
        raise DataError(f"standard input is closed, so {what} cannot be read from it")
    if is_terminal(sys.stdin):
        tell(f"Reading {what} from standard input; Ctrl-D ends it.")
    return sys.stdin.buffer


def _read_standard_input(what: str, limit: int) -> bytes:
    content = _check_size(_open_standard_input(what).read(limit + 1), STANDARD_INPUT, limit)
    if not content:
        raise DataError(f"standard input is empty, where {what} should be")
    return content


def _check_size(content: bytes, source: str, limit: int) -> bytes:
    if len(content) > limit:
        raise DataError(f"{_shown(source)} holds more than {limit:,} bytes: it is something else")
    return content


def _shown(source: str) -> str:
    return "standard input" if source == STANDARD_INPUT else source
