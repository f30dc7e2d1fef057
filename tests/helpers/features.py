"""Make features of unit length, and find the nearest of them by plain NumPy."""

import fnmatch
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipkit.search import Hit

Floats = NDArray[np.float32]


def random_features(count: int, width: int, seed: int = 0, centers: int = 0) -> Floats:
    """Return features, (count, width), spread evenly, or around centers if there are any."""
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((count, width))
    if centers:
        middles = np.random.default_rng(99).standard_normal((centers, width))
        features = middles[generator.integers(0, centers, count)] + 0.8 * features
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def nearest(
    names: Sequence[str], features: Floats, query: Floats, k: int, where: str | None = None
) -> list[str]:
    """Return the names of the `k` features nearest to a query, (width,), as float16 holds them."""
    cosines = features.astype(np.float16).astype(np.float64) @ query.astype(np.float64)
    order: list[int] = np.argsort(-cosines).tolist()
    found: list[str] = [names[place] for place in order]
    if where is not None:
        found = [name for name in found if fnmatch.fnmatchcase(name, where)]
    return found[:k]


def names_of(hits: Sequence[Hit]) -> list[str]:
    """Return the names of what was found."""
    return [hit.name for hit in hits]


def recall(found: Sequence[Sequence[Hit]], expected: Sequence[Sequence[str]]) -> float:
    """Return which share of the expected names was found."""
    right = sum(
        len(set(names_of(hits)) & set(names)) for hits, names in zip(found, expected, strict=True)
    )
    return right / sum(map(len, expected))
