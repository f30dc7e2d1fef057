"""Compare an index with the files that it is of, by their paths, sizes and times."""

import functools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from clipkit.data.decode import image_suffixes
from clipkit.data.folders import find_files
from clipkit.errors import ConfigError, DataError
from clipkit.plurals import number_of
from clipkit.search.entries import Entries, Entry

_LOG = logging.getLogger("clipkit")

# What phones and browsers write and Pillow reads only with help, and the help.
_REMEDIES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "pip install pillow-heif"),
    **dict.fromkeys((".avif", ".avifs"), "pip install --upgrade Pillow, which reads it from 11.3"),
}
_MISSING = (-1, -1)  # size and time of what is not there


@dataclass(frozen=True)
class Found:
    """Hold a file as it was found.

    Attributes:
        name: as the index spells it.
        path: from here.
        size: bytes.
        modified: nanoseconds since 1970.
    """

    name: str
    path: str
    size: int
    modified: int


@dataclass(frozen=True)
class Scan:
    """Hold what differs between an index and its files.

    Attributes:
        unchanged: images that are as they were.
        todo: files that are new, or that were changed.
        gone: images that are not there any more, or were changed.
    """

    unchanged: list[Entry]
    todo: list[Found]
    gone: list[Entry]

    @property
    def is_clean(self) -> bool:
        """Return whether the index is as its files are."""
        return not self.todo and not self.gone


def scan_folder(
    root: Path, entries: Entries, exclude: Sequence[str] = (), include_hidden: bool = False
) -> Scan:
    """Compare an index with a folder.

    Args:
        root: the folder.
        entries: of the index.
        exclude, include_hidden: as in `list_images`.

    Raises:
        DataError: if there is no such folder, or a folder in it cannot be listed.
    """
    paths = _list_readable(root, exclude, include_hidden)
    found = _look(((path.relative_to(root).as_posix(), str(path)) for path in paths), entries)
    if len(entries) and not paths:
        raise DataError(
            f"{root} holds no image any more, and the index has {len(entries)}: is the disk of the "
            "images there? If they are gone for good, delete the index's folder"
        )
    return found


def scan_list(
    paths: Iterable[str | os.PathLike[str]], entries: Entries, *, is_given: bool = False
) -> Scan:
    """Compare an index with a list of files.

    Args:
        paths: of the files.
        entries: of the index.
        is_given: whether the caller gives the list now. What is not there is then told, as an image
            that cannot be read. In the list that the index has of itself, it is one that went away.

    Raises:
        DataError: if nothing of the list is there.
    """
    names = list(dict.fromkeys(os.fspath(path) for path in paths))
    check_list(names)
    return _look(((name, name) for name in names), entries, keeps_missing=is_given)


def check_folder_has_images(root: Path, exclude: Sequence[str], include_hidden: bool) -> None:
    """Raise `ConfigError` if a folder holds no image. It looks no further than the first one.

    Args:
        root, exclude, include_hidden: as in `scan_folder`.

    Raises:
        DataError: as `scan_folder`.
    """
    files = find_files(root, image_suffixes(), exclude=exclude, include_hidden=include_hidden)
    if next(files, None) is None:
        _list_readable(root, exclude, include_hidden)  # which tells what cannot be read here
        raise ConfigError(f"an index needs at least one image, and there is none in {root}")


def check_list(paths: Sequence[str]) -> None:
    """Raise `DataError` if there is a list of paths, and nothing at any of them."""
    if paths and not any(map(os.path.exists, paths)):
        raise DataError(
            f"nothing is at {number_of(len(paths), 'path')} of the list, of which the first is "
            f"{paths[0]!r:.300}: check its spelling and the working directory, or the disk"
        )


def absolute_paths(images: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return the paths of a list as absolute ones.

    Raises:
        ConfigError: if it is no list of paths, or one of them is that of a folder, or could be that
            of no file. A single text would be a list of its letters.
    """
    given: object = images
    paths = list(images) if isinstance(given, Iterable) and not isinstance(given, str) else [None]
    if not all(isinstance(path, str | os.PathLike) for path in paths):
        raise ConfigError(f"images must be a folder or a list of paths, not {images!r:.99}")
    for path in paths:
        if not _can_be_path(os.fspath(cast("str", path))):
            raise ConfigError(f"no file can have the path {path!r:.300}: leave it out")
        if os.path.isdir(cast("str", path)):
            raise ConfigError(
                f"a list of images holds the folder {os.fspath(cast('str', path))!r:.300}: pass a "
                "folder by itself, or the list that clipkit.list_images gives of it"
            )
    return [os.path.abspath(cast("str", path)) for path in paths]


def _can_be_path(text: str) -> bool:
    """Return whether a file could have a path, and the index could keep it."""
    try:
        return text != "" and b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _list_readable(root: Path, exclude: Sequence[str], include_hidden: bool) -> list[Path]:
    """Return the images of a folder, and tell in the log which need a plug-in that is missing."""
    suffixes = image_suffixes()
    wanted = suffixes | _REMEDIES.keys()
    files = sorted(find_files(root, wanted, exclude=exclude, include_hidden=include_hidden))
    counts = Counter(path.suffix.lower() for path in files)
    for suffix in sorted(counts.keys() - suffixes):
        _tell_left_out(str(root), suffix, counts[suffix])
    return [path for path in files if path.suffix.lower() in suffixes]


@functools.lru_cache(maxsize=256)  # once, unless there are more
def _tell_left_out(root: str, suffix: str, count: int) -> None:
    _LOG.warning(
        "%s of %s left out, since Pillow reads no %s here: %s",
        number_of(count, "image"),
        f"{root} {'is' if count == 1 else 'are'}",
        suffix,
        _REMEDIES[suffix],
    )


def _look(
    files: Iterable[tuple[str, str]], entries: Entries, *, keeps_missing: bool = False
) -> Scan:
    """Compare an index with files, which come with the names that the index has for them.

    Args:
        files: the names and the paths.
        entries: of the index.
        keeps_missing: whether what is not there is to be tried, so that the index tells of it.
    """
    places = entries.places
    sizes: list[int] = entries.sizes.tolist()
    times: list[int] = entries.modified.tolist()
    kept: set[int] = set()
    todo: list[Found] = []
    for name, path in files:
        place = places.get(name, -1)
        about = _about(path)
        if about == _MISSING and not keeps_missing:
            was_missing = place >= 0 and (sizes[place], times[place]) == _MISSING
            if not (was_missing and entries.is_unread(place)):
                continue  # it was removed
        is_same = place >= 0 and about == (sizes[place], times[place])
        # The right to read a file may come without a change of it.
        if is_same and not (entries.is_unread(place) and os.access(path, os.R_OK)):
            kept.add(place)
        else:
            todo.append(Found(name, path, *about))
    gone = [entries[place] for place in range(len(entries)) if place not in kept]
    return Scan([entries[place] for place in sorted(kept)], todo, gone)


def _about(path: str) -> tuple[int, int]:
    """Return the size of a file and the time at which it was changed, or `_MISSING`."""
    try:
        about = os.stat(path)
    except OSError:
        return _MISSING
    return about.st_size, about.st_mtime_ns
