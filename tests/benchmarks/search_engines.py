"""Put the stores of clipkit, faiss and the search of rclip behind one interface."""

import importlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clipkit.search import MemoryStore, PostgresStore, Store, UsearchStore
from clipkit.search.arrays import map_arrays, write_arrays

Floats = NDArray[np.float32]

WIDTH = 512
_ROWS = 10_000  # that are added at a time
_CONNECTIVITY, _BUILD, _SEARCH = 16, 64, 128  # of faiss' HNSW, as `UsearchStore` has them


class Engine(Protocol):
    """Build an index of features in a folder, and search it."""

    def build(self, features: Floats, folder: Path) -> None:
        """Write what is searched."""
        ...

    def open(self, count: int, folder: Path) -> None:
        """Make ready what was built."""
        ...

    def search(self, query: Floats, k: int, where: str | None = None) -> list[int]:
        """Return the rows of the nearest features of a query, (D,)."""
        ...

    def disk(self, folder: Path) -> int:
        """Return the bytes on the disk."""
        ...


def name_of(row: int) -> str:
    """Return the name of a feature. Each of a hundred folders has one percent of all."""
    return f"{row % 100:02}/{row}.jpg"


def row_of(name: str) -> int:
    """Return the row of the feature with a name."""
    return int(name[3:-4])


def parts_of(features: Floats) -> Iterator[tuple[list[str], Floats]]:
    """Yield names and features in parts."""
    for start in range(0, len(features), _ROWS):
        part = np.array(features[start : start + _ROWS])
        yield [name_of(row) for row in range(start, start + len(part))], part


class _StoreEngine:
    store: Store

    def search(self, query: Floats, k: int, where: str | None = None) -> list[int]:
        (hits,) = self.store.search(query[None], k, where)
        return [row_of(hit.name) for hit in hits]

    def disk(self, folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Memory(_StoreEngine):
    """Compare all, as an index does by itself: float16 mapped from a file."""

    def build(self, features: Floats, folder: Path) -> None:
        halves = np.concatenate([part.astype(np.float16) for _, part in parts_of(features)])
        write_arrays({"features": halves}, folder / "features.safetensors")

    def open(self, count: int, folder: Path) -> None:
        blocks = [map_arrays(folder / "features.safetensors")["features"]]
        names = [name_of(row) for row in range(count)]
        self.store = MemoryStore.of(blocks, names, np.arange(count))


class Usearch(_StoreEngine):
    """Search in the graph of usearch, mapped from its file."""

    def build(self, features: Floats, folder: Path) -> None:
        with UsearchStore(folder / "store", width=WIDTH) as store:
            for names, part in parts_of(features):
                store.add(names, part)

    def open(self, count: int, folder: Path) -> None:
        self.store = UsearchStore(folder / "store")


class Postgres(_StoreEngine):
    """Search in the graph of a server. `POSTGRES` in the environment is its address."""

    def build(self, features: Floats, folder: Path) -> None:
        with PostgresStore(os.environ["POSTGRES"], width=WIDTH) as store:
            for names, part in parts_of(features):
                store.add(names, part)

    def open(self, count: int, folder: Path) -> None:
        self.store = PostgresStore(os.environ["POSTGRES"], width=WIDTH)

    def disk(self, folder: Path) -> int:
        psycopg: Any = importlib.import_module("psycopg")
        with psycopg.connect(os.environ["POSTGRES"]) as connection:
            asked = connection.execute("SELECT pg_total_relation_size('clipkit')")
            return asked.fetchone()[0]


class _Faiss:
    """Search by faiss, which knows rows alone."""

    def make(self) -> Any:
        raise NotImplementedError

    def build(self, features: Floats, folder: Path) -> None:
        index = self.make()
        for _, part in parts_of(features):
            index.add(part)
        _faiss().write_index(index, str(folder / "index.faiss"))

    def open(self, count: int, folder: Path) -> None:
        self.index = _faiss().read_index(str(folder / "index.faiss"))
        if hasattr(self.index, "hnsw"):
            self.index.hnsw.efSearch = _SEARCH

    def search(self, query: Floats, k: int, where: str | None = None) -> list[int]:
        if where is not None:
            raise NotImplementedError
        return self.index.search(query[None], k)[1][0].tolist()

    def disk(self, folder: Path) -> int:
        return (folder / "index.faiss").stat().st_size


class FaissFlat(_Faiss):
    """Compare all, in float32."""

    def make(self) -> Any:
        return _faiss().IndexFlatIP(WIDTH)


class FaissHnsw(_Faiss):
    """Search in a graph over float32."""

    def make(self) -> Any:
        faiss = _faiss()
        index = faiss.IndexHNSWFlat(WIDTH, _CONNECTIVITY, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BUILD
        return index


class Rclip:
    """Do what a query of rclip 3.3 does, in its program that starts anew for each one.

    It keeps float32 vectors as blobs of a SQLite table beside the paths. A query reads them all by
    a LIKE on the path, stacks them, multiplies, and sorts all rows in Python. Written from its
    behavior. Loading its model comes on top, and is not counted here.
    """

    def build(self, features: Floats, folder: Path) -> None:
        with sqlite3.connect(folder / "db.sqlite3") as connection:
            connection.execute("CREATE TABLE images (filepath TEXT, vector BLOB NOT NULL)")
            for names, part in parts_of(features):
                rows = ((f"/{name}", row.tobytes()) for name, row in zip(names, part, strict=True))
                connection.executemany("INSERT INTO images VALUES (?, ?)", rows)
            connection.execute("CREATE UNIQUE INDEX paths ON images (filepath)")

    def open(self, count: int, folder: Path) -> None:
        self.file = folder / "db.sqlite3"

    def search(self, query: Floats, k: int, where: str | None = None) -> list[int]:
        paths: list[str] = []
        vectors: list[Floats] = []
        pattern = f"/{(where or '*').replace('*', '%')}"
        connection = sqlite3.connect(self.file)
        asked: Iterable[tuple[str, bytes]] = connection.execute(
            "SELECT filepath, vector FROM images WHERE filepath LIKE ?", (pattern,)
        )
        for path, vector in asked:
            paths.append(path)
            vectors.append(np.frombuffer(vector, np.float32))
        connection.close()
        cosines: Floats = np.stack(vectors) @ query  # (n,)
        order = sorted(range(len(cosines)), key=cosines.__getitem__, reverse=True)
        return [row_of(paths[place][1:]) for place in order[:k]]

    def disk(self, folder: Path) -> int:
        return (folder / "db.sqlite3").stat().st_size


def _faiss() -> Any:
    return importlib.import_module("faiss")


ENGINES: dict[str, type[Engine]] = {
    "MemoryStore": Memory,
    "UsearchStore": Usearch,
    "PostgresStore": Postgres,
    "faiss flat": FaissFlat,
    "faiss HNSW": FaissHnsw,
    "rclip's way": Rclip,
}
FILTERS = ("MemoryStore", "UsearchStore", "PostgresStore", "rclip's way")  # take patterns of names
EXACT = ("MemoryStore", "faiss flat", "rclip's way")
