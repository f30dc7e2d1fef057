"""Hold what an index knows of each image: path, size, time, content, and the row of its feature."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import DataError
from clipkit.files import parse_json
from clipkit.search.arrays import map_arrays, write_arrays

DIGEST = 16  # bytes of BLAKE2 of a file's content
NO_ROW = -1  # of an image that could not be read

_ARRAYS = {"paths", "sizes", "modified", "digests", "rows", "problems"}


class Entry(NamedTuple):
    """Hold one image."""

    path: str  # as the index spells it: below the folder, or as it was given
    size: int  # bytes; -1 if a list has it, and nothing is there
    modified: int  # nanoseconds since 1970; -1 likewise
    digest: bytes  # of the content; zeros where that could not be read
    row: int  # of its feature, or `NO_ROW`
    problem: str = ""  # why it could not be read


@dataclass(frozen=True, eq=False)
class Entries:
    """Hold all images of an index as arrays, sorted by path. Row i of each is image i.

    Attributes:
        paths: the paths.
        sizes: (n,) int64, bytes.
        modified: (n,) int64, nanoseconds.
        digests: (n, DIGEST) uint8.
        rows: (n,) int64. Images of the same content share a row.
        problems: why images could not be read, by path.
    """

    path_bytes: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    modified: NDArray[np.int64]
    digests: NDArray[np.uint8]
    rows: NDArray[np.int64]
    problems: dict[str, str]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Entries":
        """Return entries in the order of their paths."""
        ordered = sorted(entries)
        paths = "\0".join(entry.path for entry in ordered).encode("utf-8", "surrogateescape")
        digests = b"".join(entry.digest for entry in ordered)
        return cls(
            path_bytes=np.frombuffer(paths, np.uint8),
            sizes=np.array([entry.size for entry in ordered], np.int64),
            modified=np.array([entry.modified for entry in ordered], np.int64),
            digests=np.frombuffer(digests, np.uint8).reshape(-1, DIGEST),
            rows=np.array([entry.row for entry in ordered], np.int64),
            problems={entry.path: entry.problem for entry in ordered if entry.problem},
        )

    @classmethod
    def read(cls, path: Path) -> "Entries":
        """Map the entries in a file.

        Raises:
            DataError: if it is missing or damaged.
        """
        arrays = map_arrays(path)
        if arrays.keys() != _ARRAYS:
            raise DataError(f"{path} is damaged: it holds {sorted(arrays)}")
        entries = cls(
            path_bytes=arrays["paths"],
            sizes=arrays["sizes"],
            modified=arrays["modified"],
            digests=arrays["digests"],
            rows=arrays["rows"],
            problems=parse_json(arrays["problems"].tobytes(), f"the JSON in {path}"),
        )
        count = len(entries.paths)
        if any(len(array) != count for array in (entries.sizes, entries.digests, entries.rows)):
            raise DataError(f"{path} is damaged: its arrays are of different lengths")
        return entries

    def write(self, path: Path) -> None:
        """Write the entries into a file, whole or not at all."""
        problems = json.dumps(self.problems).encode()
        write_arrays(
            {
                "paths": self.path_bytes,
                "sizes": self.sizes,
                "modified": self.modified,
                "digests": self.digests,
                "rows": self.rows,
                "problems": np.frombuffer(problems, np.uint8),
            },
            path,
        )

    def __len__(self) -> int:
        """Return the number of images, with those that could not be read."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Entry:
        """Return one image."""
        path = self.paths[index]
        return Entry(
            path=path,
            size=int(self.sizes[index]),
            modified=int(self.modified[index]),
            digest=self.digests[index].tobytes(),
            row=int(self.rows[index]),
            problem=self.problems.get(path, ""),
        )

    def is_unread(self, index: int) -> bool:
        """Return whether a file could not even be read, as without the right to."""
        return self.rows[index] == NO_ROW and not self.digests[index].any()

    @cached_property
    def paths(self) -> list[str]:
        """Return the paths, in order."""
        if not len(self.path_bytes):
            return []
        return self.path_bytes.tobytes().decode("utf-8", "surrogateescape").split("\0")

    @cached_property
    def places(self) -> dict[str, int]:
        """Return the place of each path."""
        return {path: place for place, path in enumerate(self.paths)}
