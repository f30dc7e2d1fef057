"""Make names short enough for a legend, so that those that differ still look different."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeAlias

Fits: TypeAlias = Callable[[str], bool]  # whether a text has room in one line

ELLIPSIS = "\u2026"


def shorten(name: str, width: int, lines: int = 1) -> str:
    """Return a name in a few lines of a width in letters; what has no room becomes an ellipsis.

    Example:
        >>> shorten("a golden retriever in the snow", 20, 2)
        'a golden retriever\\nin the snow'
    """
    return shorten_all([name], letters(width), lines)[0]


def letters(width: int) -> Fits:
    """Return what says whether a text has no more letters than `width`."""
    return partial(_has_at_most, width)


def shorten_all(
    names: Iterable[str], fits: Fits, lines: int = 1, ellipsis: str = ELLIPSIS
) -> list[str]:
    """Return names in a few lines each, of which no two that differ become the same text.

    What has no room becomes an ellipsis at the end. Of names that begin alike, the end is shown
    behind it; of those that end alike too, a number.

    Args:
        names: texts of any length.
        fits: says whether a text has room in one line, such as `letters(20)`.
        lines: of a name, at most.
        ellipsis: stands for what has no room.

    Example:
        >>> shorten_all(["street by day", "street by night"], letters(9))
        ['stree…day', 'str…night']
    """
    every = list(names)
    found = {name: _shorten(name, fits, lines, ellipsis) for name in every}
    alike = _alike(found)
    for length in range(1, max(map(len, alike), default=0)):
        tails = {name: _tail(name, length, fits, ellipsis) for name in alike}
        if not all(fits(f"a{ellipsis}{tail}") for tail in tails.values()):
            break
        for name in alike:
            found[name] = _cut(_wrap(name, fits), fits, lines, ellipsis + tails[name])
        alike = _alike(found)
    for name in alike:
        taken, number = set(found.values()), 1
        while found[name] in taken:
            ending = f"{ellipsis} ({number})"
            found[name], number = _cut(_wrap(name, fits), fits, lines, ending), number + 1
    return [found[name] for name in every]


def _tail(name: str, length: int, fits: Fits, ellipsis: str) -> str:
    """Return the last letters of a name, with all of the word that they begin in if it has room."""
    start = len(name) - length
    whole = name[name.rfind(" ", 0, start + 1) + 1 :]
    return whole if fits(f"aaa{ellipsis}{whole}") else name[start:].strip()


def _alike(found: dict[str, str]) -> list[str]:
    """Return the names that were made the same text as others."""
    counts = Counter(found.values())
    return [name for name, text in found.items() if counts[text] > 1]


def _has_at_most(width: int, text: str) -> bool:
    return len(text) <= width


def _shorten(name: str, fits: Fits, lines: int, ellipsis: str) -> str:
    """Return a name in a few lines, with an ellipsis at the end if it has more."""
    wrapped = _wrap(name, fits)
    return "\n".join(wrapped) if len(wrapped) <= lines else _cut(wrapped, fits, lines, ellipsis)


def _cut(wrapped: Sequence[str], fits: Fits, lines: int, ending: str) -> str:
    """Return the first lines, the last one with an ending for which letters make room."""
    shown = list(wrapped[:lines]) or [""]
    last = shown[-1]
    while last and not fits(last + ending):
        last = last[:-1].rstrip()
    return "\n".join([*shown[:-1], last + ending])


def _wrap(name: str, fits: Fits) -> list[str]:
    """Return a name in lines that fit, broken at spaces, and in words that are too long."""
    lines: list[str] = []
    line = ""
    for word in name.split():
        joined = f"{line} {word}" if line else word
        if line and not fits(joined) and fits(word):
            lines.append(line)
            joined = word
        while not fits(joined) and len(joined) > 1:
            end = max((end for end in range(1, len(joined)) if fits(joined[:end])), default=1)
            lines.append(joined[:end].rstrip())
            joined = joined[end:].lstrip()
        line = joined
    return [*lines, line]
