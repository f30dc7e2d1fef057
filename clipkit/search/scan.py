"""Compare an index with the files that it is of, by their paths, sizes and times."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from clipkit.data.folders import list_images
from clipkit.errors import ConfigError, DataError
from clipkit.search.entries import Entries, Entry


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
        """Whether the index is as its files are."""
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
    paths = list_images(root, exclude=exclude, include_hidden=include_hidden)
    found = _look(((path.relative_to(root).as_posix(), str(path)) for path in paths), entries)
    if len(entries) and not paths:
        raise DataError(
            f"{root} holds no image any more, and the index has {len(entries)}: is the disk of the "
            "images there? If they are gone for good, delete the index's folder"
        )
    return found


def scan_list(paths: Iterable[str | os.PathLike[str]], entries: Entries) -> Scan:
    """Compare an index with a list of files. One that is not there is left out."""
    names = dict.fromkeys(os.fspath(path) for path in paths)
    return _look(((name, name) for name in names), entries)


def absolute_paths(images: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return the paths of a list as absolute ones.

    Raises:
        ConfigError: if it is no list of paths. A single text would be a list of its letters.
    """
    given: object = images
    paths = list(images) if isinstance(given, Iterable) and not isinstance(given, str) else [None]
    if not all(isinstance(path, str | os.PathLike) for path in paths):
        raise ConfigError(f"images must be a folder or a list of paths, not {images!r:.99}")
    return [os.path.abspath(cast("str", path)) for path in paths]


def _look(files: Iterable[tuple[str, str]], entries: Entries) -> Scan:
    """Compare an index with files, which come with the names that the index has for them."""
    places = entries.places
    sizes: list[int] = entries.sizes.tolist()
    times: list[int] = entries.modified.tolist()
    kept: set[int] = set()
    todo: list[Found] = []
    for name, path in files:
        try:
            about = os.stat(path)
        except (OSError, ValueError):  # it was removed in this moment, or is no path
            continue
        place = places.get(name, -1)
        is_same = place >= 0 and (about.st_size, about.st_mtime_ns) == (sizes[place], times[place])
        # The right to read a file may come without a change of it.
        if is_same and not (entries.is_unread(place) and os.access(path, os.R_OK)):
            kept.add(place)
        else:
            todo.append(Found(name, path, about.st_size, about.st_mtime_ns))
    gone = [entries[place] for place in range(len(entries)) if place not in kept]
    return Scan([entries[place] for place in sorted(kept)], todo, gone)
