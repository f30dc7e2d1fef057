"""Hold what a search found."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real

from clipkit.columns import align
from clipkit.errors import ConfigError
from clipkit.visible import visible


@dataclass(frozen=True)
class Result:
    """Hold one image that was found.

    Attributes:
        path: of the image, as it can be opened from here.
        cosine: of the query and the image, from -1 to 1. How large it is for a good match depends
            on the model and on the query: 0.3 for a text and 0.8 for an image are usual.
        z: how many standard deviations the cosine lies above the mean of the whole collection. That
            means the same for every query and model: above 3 or so, few images get there by chance.

    Example:
        for result in index.search("a cat in jeans"):
            print(result.z, result.path)
    """

    path: str
    cosine: float
    z: float


class Results:
    """Hold what was found, the best first. It prints as a table.

    Example:
        results = index.search("a cat in jeans")
        print(results)
        results[0].path, results.paths
    """

    def __init__(self, results: Sequence[Result]) -> None:
        self._results = list(results)

    def __len__(self) -> int:
        """Return how many images were found."""
        return len(self._results)

    def __getitem__(self, place: int) -> Result:
        """Return the result at a place, from 0 for the best."""
        return self._results[place]

    def __iter__(self) -> Iterator[Result]:
        """Yield the results, the best first."""
        return iter(self._results)

    def __repr__(self) -> str:
        rows = [[f"{one.z:.1f}", f"{one.cosine:.3f}", visible(one.path)] for one in self]
        lines = align([["z", "cosine", "path"], *rows], right=(0, 1))
        return "\n".join("  ".join(line).rstrip() for line in lines)

    @property
    def paths(self) -> list[str]:
        """Return the paths, the best first."""
        return [result.path for result in self._results]


def above(results: Results, threshold: float | None) -> Results:
    """Return the results that have at least a z-score; all of them without one."""
    if threshold is None:
        return results
    return Results([one for one in results if one.z >= threshold])


def check_threshold(threshold: float | None) -> None:
    """Raise `ConfigError` if this is no z-score."""
    given: object = threshold
    is_number = isinstance(given, Real) and not isinstance(given, bool)
    if given is not None and not (is_number and math.isfinite(float(given))):
        raise ConfigError(f"threshold must be a z-score, such as 3, not {threshold!r:.60}")


@dataclass(frozen=True)
class Duplicates:
    """Hold images that look alike.

    Attributes:
        paths: at least two, the first in the order of paths first.
        cosine: the lowest by which one of them was added: 1 for copies.

    Example:
        for group in index.duplicates():
            print(group.cosine, group.paths)
    """

    paths: list[str]
    cosine: float
