"""Find images that look alike among all pairs of a collection."""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ConfigError
from clipkit.search.memory import MemoryStore
from clipkit.search.results import Duplicates
from clipkit.search.store import Floats

_ROWS = 1024  # of a block: 4 MB of cosines of two blocks
_NOISE = 1e-5  # what rounding takes off the cosine of a feature with itself


def find_duplicates(store: MemoryStore, threshold: float) -> list[Duplicates]:
    """Return groups of names of which each is alike to another one of its group.

    Args:
        store: the features.
        threshold: the lowest cosine of two that are alike, above 0 and at most 1.

    Raises:
        ConfigError: if the threshold is out of its range.
    """
    if not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise ConfigError(f"threshold must be above 0 and at most 1, not {threshold!r:.60}")
    names: list[str] = []
    blocks: list[Floats] = []
    for own, features in store.blocks(_ROWS):
        names += own
        blocks.append(features / np.linalg.norm(features, axis=1, keepdims=True))
    groups = _Groups(len(names))
    for i, rows in enumerate(blocks):
        for j in range(i, len(blocks)):
            cosines = rows @ np.transpose(blocks[j])  # (rows, columns)
            _join(groups, cosines, i * _ROWS, j * _ROWS, threshold)
    return [
        Duplicates([names[place] for place in places], cosine)
        for places, cosine in groups.of_several()
    ]


def of_several_files(groups: Sequence[Duplicates]) -> list[Duplicates]:
    """Return groups of paths with one path for each file. What is then alone is no group."""
    found: list[Duplicates] = []
    for group in groups:
        firsts: dict[object, str] = {}
        for path in group.paths:
            firsts.setdefault(_file_at(path), path)
        if len(firsts) > 1:
            found.append(Duplicates(list(firsts.values()), group.cosine))
    return found


def _file_at(path: str) -> object:
    """Return what is the same for all links to one file, be they symbolic or hard."""
    try:
        about = os.stat(path)
    except OSError:
        return path
    return (about.st_dev, about.st_ino) if about.st_ino else path  # not all file systems count


def _join(groups: "_Groups", cosines: Floats, row: int, column: int, threshold: float) -> None:
    """Join the pairs of two blocks that are alike, the most alike first."""
    alike = cosines >= min(threshold, 1 - _NOISE)  # (rows, columns)
    if not alike.any():
        return
    # Where most images are alike, most pairs are in one group already.
    rows, columns = alike.shape
    alike &= groups.firsts(row, rows)[:, None] != groups.firsts(column, columns)
    places = np.flatnonzero(alike)
    places = places[np.argsort(-cosines.reshape(-1)[places])]
    for place in places.tolist():
        i, j = divmod(place, columns)
        groups.join(row + i, column + j, min(float(cosines[i, j]), 1.0))


class _Groups:
    """Hold disjoint groups of places, and the lowest cosine by which one of a group was joined."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))
        self._cosines: dict[int, float] = {}

    def join(self, one: int, other: int, cosine: float) -> None:
        """Make one group of the groups of two places."""
        first, second = sorted((self._first_of(one), self._first_of(other)))
        if first == second:
            return
        lowest = min(self._cosines.pop(first, 1.0), self._cosines.pop(second, 1.0), cosine)
        self._parents[second] = first
        self._cosines[first] = lowest

    def firsts(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the first place of the group of each of some places, (count,)."""
        places = range(start, start + count)
        return np.fromiter((self._first_of(place) for place in places), np.int64, count)

    def of_several(self) -> list[tuple[list[int], float]]:
        """Return the groups of at least two places, each with its lowest cosine."""
        members: dict[int, list[int]] = {first: [] for first in self._cosines}
        for place in range(len(self._parents)):
            first = self._first_of(place)
            if first in members:
                members[first].append(place)
        return [(members[first], self._cosines[first]) for first in sorted(members)]

    def _first_of(self, place: int) -> int:
        while self._parents[place] != place:
            self._parents[place] = self._parents[self._parents[place]]
            place = self._parents[place]
        return place
