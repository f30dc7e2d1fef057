"""Make, save and type the graph of usearch, whose own types are loose."""

import os
import shutil
from errno import EIO, ENOSPC
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ConfigError
from clipkit.files import replacing
from clipkit.search.arrays import sync
from clipkit.search.memory import Halves
from clipkit.search.store import Floats

Keys: TypeAlias = NDArray[np.int64]

_CONNECTIVITY = 16  # edges of a feature, as most HNSW have
_BUILD_EXPANSION = 64  # candidates that are held while a feature is added


class _Matches(Protocol):
    keys: NDArray[np.uint64]


class Graph(Protocol):
    """Describe what is used of `usearch.index.Index`."""

    expansion_search: int

    @property
    def serialized_length(self) -> int: ...
    def __len__(self) -> int: ...
    def add(self, keys: Keys, vectors: Floats | Halves) -> object: ...
    def remove(self, keys: Keys) -> object: ...
    def get(self, keys: Keys) -> tuple[Halves, ...]: ...
    def search(self, vectors: Floats, count: int, *, exact: bool) -> _Matches: ...
    def save(self, path_or_buffer: str) -> object: ...
    def load(self, path_or_buffer: str) -> object: ...
    def view(self, path_or_buffer: str) -> object: ...


def import_usearch() -> Any:
    """Return the class of usearch's graphs; raise `ConfigError` if it is missing."""
    try:
        from usearch.index import Index
    except ImportError as error:
        raise ConfigError(
            "approximate search needs usearch: pip install 'clipkit-torch[search]'"
        ) from error
    return cast("Any", Index)


def make_graph(width: int, expansion: int) -> Graph:
    """Return a graph without features. Of unit length, their inner products are cosines."""
    return import_usearch()(
        ndim=width,
        metric="ip",
        dtype="f16",
        connectivity=_CONNECTIVITY,
        expansion_add=_BUILD_EXPANSION,
        expansion_search=expansion,
    )


def save_graph(graph: Graph, path: Path) -> int:
    """Write a graph, whole or not at all, wait until it is on the disk, and return its bytes."""
    size = graph.serialized_length
    with replacing(path) as partial:
        try:
            graph.save(str(partial))
            if partial.stat().st_size != size:  # usearch does not look at the last write
                raise RuntimeError("the file was cut off")
        except RuntimeError as error:  # usearch does not tell why
            is_full = shutil.disk_usage(path.parent).free < 1 << 20
            reason = os.strerror(ENOSPC) if is_full else str(error)
            raise OSError(ENOSPC if is_full else EIO, reason) from error
        sync(partial)
    return size
