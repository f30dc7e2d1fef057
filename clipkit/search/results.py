"""Hold what a search found."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clipkit.columns import align
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
        """The paths, the best first."""
        return [result.path for result in self._results]


@dataclass(frozen=True)
class Duplicates:
    """Hold images that look alike.

    Attributes:
        paths: at least two, the first in the order of paths first.
        cosine: the lowest by which one of them was added: 1 for copies.
    """

    paths: list[str]
    cosine: float
