"""Give names integer keys, for indexes that know no others."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import DataError
from clipkit.search.arrays import map_arrays, write_arrays

_ARRAYS = {"names", "ends", "keys"}


class KeyTable:
    """Hold names and their keys. A key is never given twice, so keys rise in the order of names.

    A table of a file stays on the disk: the name of a key is found there. What needs all names,
    such as a change, reads them.

    Args:
        text: the names in UTF-8, one after the other, (bytes,) uint8.
        ends: where each ends, (n,) int64.
        keys: the key of each, (n,) int64, rising.
        following: the next key to give.
    """

    def __init__(
        self,
        text: NDArray[np.uint8],
        ends: NDArray[np.int64],
        keys: NDArray[np.int64],
        following: int,
    ) -> None:
        self._text, self._ends, self._sorted = text, ends, keys
        self._following = following
        self._changed = False

    @classmethod
    def empty(cls) -> "KeyTable":
        """Return a table without names."""
        return cls(np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64), 0)

    @classmethod
    def read(cls, path: Path, count: int, following: int) -> "KeyTable":
        """Map the table in a file.

        Args:
            path: the file.
            count: how many names it must have.
            following: the next key to give.

        Raises:
            DataError: if it is missing or damaged.
        """
        arrays = map_arrays(path)
        if arrays.keys() != _ARRAYS or not len(arrays["ends"]) == len(arrays["keys"]) == count:
            raise DataError(f"{path} is damaged: it does not hold {count} names")
        return cls(arrays["names"], arrays["ends"], arrays["keys"], following)

    def write(self, path: Path) -> None:
        """Write the table as safetensors: what `__init__` takes, as "names", "ends" and "keys"."""
        parts = [_encode(name) for name in self.names]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)  # (n,)
        text = np.frombuffer(b"".join(parts), np.uint8)
        write_arrays({"names": text, "ends": ends, "keys": self.keys}, path)

    @property
    def following(self) -> int:
        """Return the next key to give."""
        return self._following

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._by_name) if self._changed else len(self._sorted)

    @property
    def names(self) -> Sequence[str]:
        """Return all names, in the order of their keys."""
        return list(self._by_name)

    @property
    def keys(self) -> NDArray[np.int64]:
        """Return all keys, (n,), in their order."""
        if self._changed:
            return np.fromiter(self._by_name.values(), np.int64, len(self._by_name))
        return self._sorted

    def name_of(self, key: int) -> str:
        """Return the name of a key that was given."""
        if self._changed:
            return self._by_key[key]
        place = int(np.searchsorted(self._sorted, key))
        return self._name_at(place)

    def add(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Give each of some new names a key, and return these, (n,)."""
        keys = range(self._following, self._following + len(names))
        self._by_key.update(zip(keys, names, strict=True))
        self._by_name.update(zip(names, keys, strict=True))
        self._following += len(names)
        self._changed = True
        return np.arange(keys.start, keys.stop, dtype=np.int64)

    def remove(self, names: Iterable[str]) -> NDArray[np.int64]:
        """Forget names, and return the keys that they had, (n,). Unknown ones are no error."""
        known, known_keys = self._by_name, self._by_key
        keys = [known.pop(name) for name in dict.fromkeys(names) if name in known]
        for key in keys:
            del known_keys[key]
        self._changed = self._changed or bool(keys)
        return np.array(keys, np.int64)

    @cached_property
    def _by_name(self) -> dict[str, int]:
        """The key of each name, in the order of keys."""
        names = [self._name_at(place) for place in range(len(self._sorted))]
        keys: list[int] = self._sorted.tolist()
        return dict(zip(names, keys, strict=True))

    @cached_property
    def _by_key(self) -> dict[int, str]:
        return {key: name for name, key in self._by_name.items()}

    def _name_at(self, place: int) -> str:
        start = int(self._ends[place - 1]) if place else 0
        return _decode(self._text[start : int(self._ends[place])].tobytes())


def _encode(name: str) -> bytes:
    """Return a name as UTF-8 that takes any text of Python's, undecodable file names too."""
    return name.encode("utf-8", "surrogatepass")


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")
