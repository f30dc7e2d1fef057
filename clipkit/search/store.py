"""Say what keeps features and finds the nearest: the one interface of all stores."""

import fnmatch
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import DataError

Floats: TypeAlias = NDArray[np.float32]

_UNIT = 1e-2  # how far from 1 the length of a feature may be, after float16 or bfloat16


class Hit(NamedTuple):
    """Hold one of the features that were found.

    Example:
        ((name, cosine),) = store.search(query, k=1)[0]  # of a query (1, D)
    """

    name: str
    cosine: float


class Store(Protocol):
    """Keep features of unit length by name, and find those nearest to a query.

    `MemoryStore` is exact, `UsearchStore` approximate, and `PostgresStore` is a database server.

    Example:
        index.copy_to(store)
        index = clipkit.search.Index.open("photos", model, store=store)
    """

    def add(self, names: Sequence[str], features: Floats) -> None:
        """Add features, (n, D) float32. A name that is there already gets the new one."""
        ...

    def remove(self, names: Sequence[str]) -> None:
        """Remove features by name. A name that is not there is no error."""
        ...

    def search(self, queries: Floats, k: int, where: str | None = None) -> list[list[Hit]]:
        """Return the `k` nearest of each query, the nearest first.

        Args:
            queries: (q, D) float32, of unit length.
            k: how many of each; fewer if there are fewer.
            where: a pattern of names as in a shell, such as "cats/*.jpg". * stands for slashes too.
        """
        ...

    def __len__(self) -> int:
        """Return the number of names."""
        ...


def pattern_of(where: str) -> str:
    """Return the regular expression of a pattern of names, which a whole name must match."""
    return fnmatch.translate(where)


def matches(names: Sequence[str], where: str) -> NDArray[np.bool_]:
    """Return which names match a pattern, (n,)."""
    match = re.compile(pattern_of(where)).match
    return np.fromiter((match(name) is not None for name in names), np.bool_, len(names))


def check_features(features: Floats, width: int, count: int | None = None) -> Floats:
    """Return features as contiguous float32, (n, D).

    Raises:
        DataError: if they are of another shape, not finite, or not of unit length.
    """
    array = np.ascontiguousarray(features, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != width:
        raise DataError(f"features must be (n, {width}), not {array.shape}")
    if count is not None and len(array) != count:
        raise DataError(f"there are {count} names and {len(array)} features")
    wrong = ~are_unit(array)
    if wrong.any():
        row = int(wrong.argmax())
        length = float(np.linalg.norm(array[row]))
        raise DataError(
            f"features must have unit length, and that of row {row} is {length:.4g}: divide "
            "them by their lengths, as embed_images and embed_texts do"
        )
    return array


def are_unit(features: Floats) -> NDArray[np.bool_]:
    """Return which features, (n, D), have unit length, (n,). None does with a NaN in it."""
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features))  # (n,)
    unit: NDArray[np.bool_] = np.abs(lengths - 1) <= _UNIT
    return unit
