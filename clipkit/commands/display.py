"""Write for people: tables, bars and colors on a terminal, and plain text everywhere else."""

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from clipkit.visible import visible

BAR_WIDTH = 24  # characters of a whole bar
_FULL = "\u2501"  # a heavy line over the whole character, and over its left half
_HALF = "\u2578"

_LINE_END = "\n"
_RESET = "\x1b[0m"
_BOLD = "\x1b[1m"
_DIM = "\x1b[2m"
_RED = "\x1b[31m"
_GREEN = "\x1b[32m"
_CYAN = "\x1b[36m"


@dataclass(frozen=True)
class Style:
    """Say how to write to a stream, and write words and bars that way.

    Attributes:
        for_people: whether people look at it: there are bars, and space between results. A pipe
            gets plain text, always of the same form.
        has_color: whether there are colors and bold letters.
        has_bars: whether its encoding has the characters of bars.
    """

    for_people: bool
    has_color: bool
    has_bars: bool

    @classmethod
    def of(cls, stream: object) -> "Style":
        """Return the style for a stream, usually `sys.stdout` or `sys.stderr`.

        NO_COLOR takes the colors away; FORCE_COLOR writes into pipes as to a terminal; TERM=dumb is
        a terminal that knows no colors.
        """
        forced = bool(os.environ.get("FORCE_COLOR"))
        has_color = forced or (is_terminal(stream) and _knows_color())
        if os.environ.get("NO_COLOR"):
            has_color = False
        for_people = is_terminal(stream) or forced
        return cls(for_people, has_color, for_people and _can_write(stream, _FULL + _HALF))

    def bold(self, text: str) -> str:
        """Return a text in bold."""
        return self._in(_BOLD, text)

    def dim(self, text: str) -> str:
        """Return a text in a fainter color."""
        return self._in(_DIM, text)

    def strong(self, text: str) -> str:
        """Return a text as the best of several."""
        return self._in(_BOLD + _GREEN, text)

    def name(self, text: str) -> str:
        """Return a text as a name that can be typed."""
        return self._in(_CYAN, text)

    def warning(self, text: str) -> str:
        """Return a text as one that tells of an error."""
        return self._in(_BOLD + _RED, text)

    def bar(self, share: float) -> str:
        """Return a bar of constant width for a share from 0 to 1; nothing where there are none."""
        if not self.has_bars:
            return ""
        halves = round(min(max(share, 0.0), 1.0) * 2 * BAR_WIDTH)
        filled = _FULL * (halves // 2) + _HALF * (halves % 2)
        rest = BAR_WIDTH - len(filled)
        if not self.has_color:
            return filled + " " * rest
        return self._in(_GREEN, filled) + self._in(_DIM, _FULL * rest)

    def _in(self, code: str, text: str) -> str:
        return f"{code}{text}{_RESET}" if self.has_color and text else text


def is_terminal(stream: object) -> bool:
    """Return whether people look at a stream. One that is closed is None, and nobody does."""
    return isinstance(stream, io.TextIOBase) and not stream.closed and stream.isatty()


def _knows_color() -> bool:
    if os.environ.get("TERM") == "dumb":
        return False
    # The old console of Windows prints escape codes as they are; its newer ones tell of themselves.
    return sys.platform != "win32" or bool(os.environ.keys() & {"WT_SESSION", "TERM", "ANSICON"})


def _can_write(stream: object, text: str) -> bool:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


@contextmanager
def lossless_streams() -> Generator[None, None, None]:
    """Write what the encoding of stdout or stderr lacks as escapes, where Python raises an error.

    Names of files and labels are of any script, and one that cannot be written must not end the
    command and take all later results with it.

    Example:
        with lossless_streams():
            print("\u732b")  # under ASCII: \\u732b
    """
    changed: list[tuple[io.TextIOWrapper[Any], str]] = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            wrapper = cast("io.TextIOWrapper[Any]", stream)
            changed.append((wrapper, wrapper.errors or "strict"))
            wrapper.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in changed:
            stream.reconfigure(errors=errors)


def tell(message: str) -> None:
    """Print a message for people to standard error, so that standard output holds results alone."""
    _print(Style.of(sys.stderr).dim(visible(message, keep=_LINE_END)))


def warn(message: str) -> None:
    """Print what a user should know of the results, such as what was left out."""
    _print(f"{Style.of(sys.stderr).bold('clipkit:')} {visible(message, keep=_LINE_END)}")


def tell_error(message: str) -> None:
    """Print why a command cannot go on."""
    _print(f"{Style.of(sys.stderr).warning('clipkit:')} {visible(message, keep=_LINE_END)}")


def tell_skipped(problems: Sequence[str]) -> None:
    """Print which images were left out, and why, each in one line."""
    for problem in problems:
        warn(f"skipped: {visible(problem)}")


def _print(line: str) -> None:
    if sys.stderr is None:  # closed; print would take standard output then
        return
    with contextlib.suppress(BrokenPipeError):  # nobody reads it any more
        print(line, file=sys.stderr, flush=True)


def typed(*words: object) -> str:
    """Return words as they are typed in a shell, with quotes where they need them.

    Example:
        >>> typed("cat", "cup of coffee")
        "cat 'cup of coffee'"
    """
    return visible(shlex.join(str(word) for word in words))
