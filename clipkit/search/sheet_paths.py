"""Spell paths for a page: as links, and short enough for a small image."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from urllib.parse import quote

from clipkit.visible import visible

_LETTERS = 48  # of a path that is shown, about two lines
_END = 16  # letters of a long name that are shown of its end, with the number and the suffix
_ELLIPSIS = "\u2026"


def link_to(path: str, folder: str | os.PathLike[str]) -> str:
    """Return a link to a file for a page in a folder, percent-encoded.

    It is relative to a file that lies below the folder, so that both can be moved together.

    Example:
        >>> link_to("/photos/50 % off?.jpg", "/photos")
        '50%20%25%20off%3F.jpg'
        >>> link_to("/photos/1.jpg", "/home")
        'file:///photos/1.jpg'
    """
    absolute, here = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    if absolute.is_relative_to(here):
        return quote(os.fsencode(absolute.relative_to(here).as_posix()))
    return absolute.as_uri()


def common_folder(paths: Sequence[str]) -> str:
    """Return the folder in which all paths are; "" if there is none.

    Example:
        >>> common_folder(["a/b/1.jpg", "a/c/2.jpg"])
        'a'
    """
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # some are absolute, or on another drive
        return ""


def short_name(path: str, common: str = "") -> str:
    """Return a path without the folder that is common to all, and with an ellipsis if it is long.

    Whole folders at its beginning are left out first, then the middle of the name.

    Example:
        >>> short_name("photos/2024/cat.jpg", "photos")
        '2024/cat.jpg'
        >>> short_name("a/" * 30 + "cat.jpg")
        '…/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/cat.jpg'
    """
    below = os.path.relpath(path, common) if common else path
    parts = [visible(part) for part in PurePath(below).parts]
    name = parts.pop() if parts else ""
    if len(name) > _LETTERS:
        return f"{name[: _LETTERS - _END - 1]}{_ELLIPSIS}{name[-_END:]}"
    shown = PurePath(*parts, name).as_posix()
    while parts and len(shown) > _LETTERS:
        parts = parts[1:]
        shown = "/".join([_ELLIPSIS, *parts, name])
    return shown
