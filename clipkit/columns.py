"""Set texts in columns, by the width that a terminal gives to letters of all scripts."""

import unicodedata
from collections.abc import Collection, Sequence


def width_of(text: str) -> int:
    """Return how many columns a text takes: letters of East Asia take two, accents none.

    Example:
        >>> width_of("cat"), width_of("\u732b")
        (3, 2)
    """
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Fill a text up with spaces to a width in columns; at its left if it stands to the right."""
    space = " " * (width - width_of(text))
    return space + text if right else text + space


def align(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[list[str]]:
    """Return the cells of a table, each filled up to the width of its column.

    Args:
        rows: as many cells each, without color.
        right: indices of the columns that stand to the right, such as numbers.

    Example:
        >>> align([["a", "10"], ["bcd", "9"]], right=[1])
        [['a  ', '10'], ['bcd', ' 9']]
    """
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    return [
        [
            pad(cell, width, right=index in right)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
