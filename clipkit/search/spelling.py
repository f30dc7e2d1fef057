"""Lead from the paths of files to the names that an index has for them, and back."""

import os
from collections.abc import Callable
from pathlib import Path, PurePath

from clipkit.search.entries import NO_ROW, Entries


class Spelling:
    """Spell paths as an index does: below the folder of its images, or absolute in a list.

    Args:
        root: the folder of the images; None if they were given as a list.
        entries: of the index.
    """

    def __init__(self, root: str | None, entries: Entries) -> None:
        self.root = root
        self._entries = entries

    def path_of(self, name: str) -> str:
        """Return the path at which an image can be opened from here."""
        return name if self.root is None else os.path.normpath(os.path.join(self.root, name))

    def name_of(self, path: Path) -> str | None:
        """Return how the index spells a path, or None if it has no feature of what is there now."""
        place = self.place_of(path)
        if place is None or self._entries.rows[place] == NO_ROW:
            return None
        return self._entries.paths[place] if self._is_unchanged(path, place) else None

    def place_of(self, path: Path) -> int | None:
        """Return the place of a path among the entries, which may lead there through links."""
        place = self._entries.places.get(self._spell(os.path.abspath(path), os.path.abspath))
        if place is None:
            real = self._spell(os.path.realpath(path), os.path.realpath)
            place = self._entries.places.get(real)
        return place

    def _spell(self, path: str, spell_root: Callable[[str], str]) -> str:
        """Return how the index would spell an absolute path."""
        if self.root is None:
            return path
        root = PurePath(spell_root(self.root))
        return PurePath(path).relative_to(root).as_posix() if root in PurePath(path).parents else ""

    def _is_unchanged(self, path: Path, place: int) -> bool:
        """Return whether a file is what it was when it was encoded; one that is gone is, too."""
        try:
            about = path.stat()
        except OSError:
            return True
        known = (self._entries.sizes[place], self._entries.modified[place])
        return (about.st_size, about.st_mtime_ns) == known
