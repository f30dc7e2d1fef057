"""Say what cannot be written, before the work where that can be told, and else as one error."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from clipkit.errors import ClipkitError, OutputError

_REMEDIES = {
    errno.ENOSPC: "Free some space, or choose another place",
    errno.EDQUOT: "Free some space, or choose another place",
    errno.EFBIG: "Choose a file system that takes files of this size",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.EACCES: "Choose a place that you may write to",
    errno.EPERM: "Choose a place that you may write to",
    errno.EROFS: "Choose a place that you may write to",
}


def check_output(path: str | os.PathLike[str], kind: Literal["file", "folder"] = "file") -> None:
    """Raise `OutputError` if a file or folder cannot be written, before the work is done.

    It writes nothing. A disk that is too full shows only later.

    Args:
        path: where the output is to go. Neither it nor its folders need exist.
        kind: "file" or "folder".
    """
    given: object = path
    if not isinstance(given, str | os.PathLike):
        raise output_error(f"{given!r:.99}", "it is no path", None)
    spelled = os.fspath(path)
    if not spelled or "\0" in spelled:
        raise output_error(spelled, "it is no path", None)
    path = Path(spelled)
    try:
        if path.exists() and path.is_dir() != (kind == "folder"):
            found = "folder" if kind == "file" else "file"
            raise output_error(path, f"a {found} of that name is in the way", None)
        place = path if kind == "folder" else path.parent
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise output_error(path, f"{place} is a file, not a folder", None)
        if not os.access(place, os.W_OK | os.X_OK):
            raise output_error(path, f"{place} must not be written to", errno.EACCES)
        _check_lengths(path, place)
    except ClipkitError:
        raise
    except OSError as error:
        raise output_error(path, error.strerror or str(error), error.errno) from error


def _check_lengths(path: Path, place: Path) -> None:
    """Raise `OutputError` if a part of a path is longer than the file system at `place` takes."""
    longest = os.pathconf(place, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    for part in path.parts:
        if len(os.fsencode(part)) > longest:
            raise output_error(path, "File name too long", errno.ENAMETOOLONG)


def output_error(path: object, reason: str, number: int | None) -> OutputError:
    """Make the error that says what cannot be written, why, and what to do."""
    remedy = _REMEDIES.get(number or 0, "Choose another place")
    shown = os.fspath(path) if isinstance(path, Path) else path
    if len(str(shown)) > 300:
        shown = f"{str(shown)[:300]}..."
    error = OutputError(f"cannot write {shown!r}: {reason}. {remedy}")
    error.errno = number
    return error


@contextmanager
def typed_write_errors(path: Path, partial: Path) -> Generator[None, None, None]:
    """Turn the errors of writing into `OutputError`. Those of other files pass.

    Args:
        path: what is to be written, for the message.
        partial: where it is written for the time being.
    """
    try:
        yield
    except ClipkitError:
        raise
    except Exception as error:
        cause = _find_write_error(error, (str(partial), str(path.parent)))
        if cause is None:
            raise
        number = cause.errno if isinstance(cause, OSError) else None
        reason = cause.strerror if isinstance(cause, OSError) else None
        raise output_error(path, reason or str(cause), number) from error


def _find_write_error(error: BaseException, places: tuple[str, str]) -> BaseException | None:
    """Return the error of writing in one of the places that is, or led to, an error; else None."""
    partial, parent = places
    seen: BaseException | None = error
    for _ in range(5):  # torch.save hides the system's error behind one of its own
        if seen is None:
            return None
        if isinstance(seen, OSError) and not isinstance(seen, ClipkitError):
            name = seen.filename
            is_here = name is None or str(name).startswith(partial) or str(name) == parent
            return seen if is_here else None
        if type(seen).__name__ == "SafetensorError" or "PytorchStreamWriter" in str(seen):
            return seen
        seen = seen.__context__
    return None
