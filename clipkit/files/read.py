"""Read text and JSON with care, and tell files by their digests."""

import errno
import hashlib
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any, cast

from clipkit.errors import ClipkitError, DataError

_MAX_DEPTH = 64  # of brackets in a JSON file


def check_file(path: str | os.PathLike[str]) -> int:
    """Return the size of a regular file in bytes, without opening it.

    Raises:
        OSError: for anything else. A pipe would wait for ever, and a device never end.
    """
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return about.st_size


def spell_path(given: object, name: str, *, error: type[ClipkitError] = DataError) -> str:
    """Return a path as it is spelled.

    Args:
        given: a text or a path.
        name: of the argument, for the message.
        error: what to raise.

    Raises:
        error: for anything else.
    """
    if isinstance(given, str | os.PathLike):
        spelled = os.fspath(cast("str | os.PathLike[Any]", given))
        if isinstance(spelled, str):
            return spelled
    raise error(f"{name} must be a path, not {given!r:.99}")


def address_scheme(text: str) -> str | None:
    """Return the scheme of an address, or None for a path. A drive of Windows is a path.

    Example:
        >>> address_scheme("https://host/a.tar")
        'https'
        >>> address_scheme("pipe:cat a.tar")
        'pipe'
        >>> address_scheme("C:/photos/a.tar"), address_scheme("./pipe:a.tar")
        (None, None)
    """
    found = re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]+):", text)
    return found[1].lower() if found else None


def read_text(
    path: str | os.PathLike[str],
    *,
    error: type[ClipkitError] = DataError,
    max_bytes: int = 64 << 20,
) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Args:
        path: the file.
        error: what to raise.
        max_bytes: the largest size that such a file can have.

    Raises:
        error: if there is no such file, or it may not be read, is no regular file, is larger, or is
            not UTF-8. The message names it.
    """
    shown = os.fspath(path)
    try:
        size = check_file(path)
        if size > max_bytes:
            raise error(
                f"{shown} has {size:,} bytes, more than the {max_bytes:,} that such a "
                "file may have: it is another file, or damaged"
            )
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise error(f"{shown} is not text in UTF-8: {failure}") from failure
    except ClipkitError:
        raise
    except (OSError, ValueError) as failure:  # a path with a null byte is a ValueError
        reason = getattr(failure, "strerror", None) or failure
        raise error(f"{shown} cannot be read: {reason}") from failure


def read_json(
    path: str | os.PathLike[str],
    *,
    error: type[ClipkitError] = DataError,
    max_bytes: int = 64 << 20,
) -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        path: the file.
        error: what to raise.
        max_bytes: the largest size that such a file can have.

    Raises:
        error: if `read_text` cannot read the file, or it holds no JSON, nests deeper than 64, or
            holds no object. The message names it.
    """
    text = read_text(path, error=error, max_bytes=max_bytes)
    return parse_json(text, os.fspath(path), error=error)


def parse_json(
    text: str | bytes, name: str, *, error: type[ClipkitError] = DataError
) -> dict[str, Any]:
    """Parse a JSON object. Arguments and errors are those of `read_json`.

    Args:
        text: the JSON.
        name: where it is from, for the message.
        error: what to raise.
    """
    try:
        values: Any = json.loads(text)
        depth = _depth(values)
    except RecursionError:  # its traceback has a thousand lines
        depth = sys.getrecursionlimit()
        values = None
    except ValueError as failure:
        raise error(f"{name} is not JSON: {failure}") from failure
    if depth > _MAX_DEPTH:
        raise error(f"{name} nests deeper than {_MAX_DEPTH} levels: it is damaged")
    if not isinstance(values, dict):
        raise error(f"{name} must hold a JSON object, not {type(values).__name__}")
    return cast("dict[str, Any]", values)


def _depth(values: object) -> int:
    """Return how deep lists and dicts nest. It stops at the first level that is too deep."""
    depth = 0
    level = [values]
    while level and depth <= _MAX_DEPTH:
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (
                cast("dict[str, object]", outer).values()
                if isinstance(outer, dict)
                else cast("list[object]", outer)
            )
        ]
        depth += 1
    return depth


def sha256(path: str | os.PathLike[str]) -> str:
    """Return a file's SHA-256 digest in lower-case hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
