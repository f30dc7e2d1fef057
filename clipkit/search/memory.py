"""Find the nearest features exactly, in memory or mapped from files.

Features are kept as float16, half the size, which moves a cosine by less than 0.001. Processors
multiply float32. NumPy's own conversion takes ten times as long as the products, so rows are
widened here by three operations on whole blocks, exactly:

    float16   s eeeee mmmmmmmmmm                   s: sign, e: exponent, m: mantissa
    float32   s eeeeeeee mmmmmmmmmm 0000000000000

Shifted by 13 bits, exponent and mantissa are where float32 has them. The exponent then counts from
127 where float16's counts from 15: the number is too small by 2**112.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ConfigError
from clipkit.fields import read_count
from clipkit.search.store import Floats, Hit, check_features, matches

Halves: TypeAlias = NDArray[np.float16]
_Part: TypeAlias = tuple[int, Halves]  # the number of the first row, and rows of a block

_SHIFT = 13
_MASK = np.array([0x8FFF_E000], np.uint32).view(np.int32)[0]  # without copies of the sign
_SCALE = np.float32(2.0**112)
_BYTES = 1 << 18  # of a block of widened rows, which a processor's own cache holds
_THREADS = 2
_KEPT = 1 << 30  # bytes of widened features that are kept for the next query


def widen(rows: Halves, out: Floats) -> None:
    """Write float16 numbers into a float32 array of the same shape, exactly. All must be finite."""
    bits = out.view(np.int32)
    np.copyto(bits, rows.view(np.int16))  # the sign goes through all upper bits
    np.left_shift(bits, _SHIFT, out=bits)
    np.bitwise_and(bits, _MASK, out=bits)
    np.multiply(out, _SCALE, out=out)


class MemoryStore:
    """Keep features as float16, and compare a query with all of them.

    Args:
        width: of the features, D.
        kept: bytes of float32 copies that the second search may make, to speed up the next ones.

    Raises:
        ConfigError: if `width` is below 1.

    Example:
        store = MemoryStore(512)
        store.add(["cat.jpg", "dog.jpg"], features)
        store.search(model.embed_texts(["a cat"]).numpy(), k=1)
    """

    def __init__(self, width: int, *, kept: int = _KEPT) -> None:
        if width < 1:
            raise ConfigError(f"width must be at least 1, not {width}")
        self.width = width
        self._kept = kept
        self._blocks: list[Halves] = []
        self._places: dict[str, int] | None = {}  # made from the names when it is needed
        self._names: list[str] = []
        self._rows: NDArray[np.int64] = np.empty(0, np.int64)
        self._wide: Floats | None = None
        self._was_asked = False

    @classmethod
    def of(
        cls, blocks: Sequence[Halves], names: Sequence[str], rows: NDArray[np.int64]
    ) -> "MemoryStore":
        """Return a store of features that are there already, perhaps mapped from files.

        Args:
            blocks: float16, (n, D) each; their rows are counted through all of them.
            names: of the features, each once.
            rows: the row of each name. Several names may share one.
        """
        store = cls(blocks[0].shape[1])
        store._blocks = list(blocks)
        store._names = list(names)
        store._rows = rows
        store._places = None
        return store

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._names)

    def add(self, names: Sequence[str], features: Floats) -> None:
        """Add features, (n, D) float32. A name that is there already gets the new one.

        Raises:
            DataError: if features are of another width or not of unit length.
        """
        checked = check_features(features, self.width, len(names))
        own = dict(zip(names, range(len(names)), strict=True))  # of a name's last feature
        self.remove(list(own))
        start = sum(map(len, self._blocks))
        rows = start + np.fromiter(own.values(), np.int64, len(own))
        self._blocks.append(checked.astype(np.float16))
        self._set([*self._names, *own], np.concatenate([self._rows, rows]))

    def remove(self, names: Sequence[str]) -> None:
        """Remove features by name. A name that is not there is no error."""
        gone = {self._place_of(name) for name in names} - {None}
        if not gone:
            return
        kept = [place for place in range(len(self._names)) if place not in gone]
        self._set([self._names[place] for place in kept], self._rows[kept])
        self._drop_dead_rows()

    def search(self, queries: Floats, k: int, where: str | None = None) -> list[list[Hit]]:
        """Return the `k` nearest of each query, the nearest first; see `Store`.

        Args:
            queries, k, where: as in `Store.search`, queries (q, D) float32.

        Raises:
            DataError: if queries are of another width or not of unit length.
            ConfigError: if `k` is no positive integer.
        """
        return [self.best(row, k, where) for row in self.cosines(queries)]

    def best(self, cosines: Floats, k: int, where: str | None = None) -> list[Hit]:
        """Return the names of the `k` largest of one query's cosines, (n,), the largest first.

        Raises:
            ConfigError: if `k` is no positive integer.
        """
        k = read_count("k", k, 1)
        if where is not None:
            cosines = np.where(matches(self._names, where), cosines, -np.inf)
        count = min(k, len(cosines))
        places = np.argpartition(cosines, len(cosines) - count)[len(cosines) - count :]
        places.sort()  # so that equals come in the order of their names
        places = places[np.argsort(-cosines[places], kind="stable")]  # (count,)
        found = [place for place in places.tolist() if cosines[place] > -np.inf]
        return [Hit(self._names[place], float(cosines[place])) for place in found]

    def cosines(self, queries: Floats) -> Floats:
        """Return the cosine of each query with each feature, (q, n), in the order of the names.

        Raises:
            DataError: if queries are of another width or not of unit length.
        """
        checked = check_features(queries, self.width)
        rows = sum(map(len, self._blocks))
        if not rows:
            return np.empty((len(checked), 0), np.float32)
        # To fill large memory takes longer than the search itself. Many processes search once.
        if self._wide is None and self._was_asked and rows * self.width * 4 <= self._kept:
            self._wide = self._widen_all(rows)
        self._was_asked = True
        if self._wide is None:
            scores = self._multiply(checked)
        else:
            scores = self._wide @ np.transpose(checked)  # (rows, q)
        return np.ascontiguousarray(np.transpose(scores[self._rows]))

    def features(self, names: Sequence[str]) -> Floats:
        """Return features by name, (n, D) float32.

        Raises:
            ConfigError: for a name that is not there.
        """
        places = [self._place_of(name) for name in names]
        found = np.empty((len(places), self.width), np.float32)
        for index, place in enumerate(places):
            if place is None:
                raise ConfigError(f"there is no feature of {names[index]!r:.99}")
            found[index] = self._row(int(self._rows[place]))
        return found

    def blocks(self, size: int = 4096) -> Iterator[tuple[list[str], Floats]]:
        """Yield names and features in parts of (size, D) float32, as `features` has them."""
        for start in range(0, len(self._names), size):
            names = self._names[start : start + size]
            yield names, self.features(names)

    def _set(self, names: list[str], rows: NDArray[np.int64]) -> None:
        self._names, self._rows, self._places, self._wide = names, rows, None, None

    def _drop_dead_rows(self) -> None:
        """Copy the rows that a name has, once those that none has are in the majority."""
        total = sum(map(len, self._blocks))
        used = np.unique(self._rows)
        if 2 * len(used) >= total:
            return
        self._blocks = [np.stack([self._half(row) for row in used.tolist()])] if len(used) else []
        self._rows = np.searchsorted(used, self._rows)

    def _place_of(self, name: str) -> int | None:
        if self._places is None:
            self._places = {one: place for place, one in enumerate(self._names)}
        return self._places.get(name)

    def _half(self, row: int) -> Halves:
        """Return one row as it is kept, (D,)."""
        for block in self._blocks:
            if row < len(block):
                return block[row]
            row -= len(block)
        raise IndexError(row)

    def _row(self, row: int) -> Floats:
        return self._half(row).astype(np.float32)

    def _widen_all(self, total: int) -> Floats:
        """Return all rows, (rows, D)."""
        wide = np.empty((total, self.width), np.float32)

        def fill(parts: Sequence[_Part]) -> None:
            for start, rows in parts:
                widen(rows, wide[start : start + len(rows)])

        self._in_threads(fill)
        return wide

    def _multiply(self, queries: Floats) -> Floats:
        """Return the products of all rows and the queries, (rows, q), in little memory."""
        total = sum(map(len, self._blocks))
        scores = np.empty((total, len(queries)), np.float32)

        def multiply(parts: Sequence[_Part]) -> None:
            buffer = np.empty((self._part_rows, self.width), np.float32)
            for start, rows in parts:
                wide = buffer[: len(rows)]
                widen(rows, wide)
                np.matmul(wide, np.transpose(queries), out=scores[start : start + len(rows)])

        self._in_threads(multiply)
        return scores

    @property
    def _part_rows(self) -> int:
        """How many rows a part of a block has at most."""
        return max(1, _BYTES // (4 * self.width))

    def _in_threads(self, work: Callable[[Sequence[_Part]], None]) -> None:
        """Have each thread do its share of the parts of all blocks."""
        parts: list[_Part] = []
        first = 0
        for block in self._blocks:
            for start in range(0, len(block), self._part_rows):
                parts.append((first + start, block[start : start + self._part_rows]))
            first += len(block)
        shares = [parts[number::_THREADS] for number in range(_THREADS)]
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(work, shares))
