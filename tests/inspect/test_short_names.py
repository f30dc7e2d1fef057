"""Names are shortened to the room that there is, and two that differ never look the same."""

import random

import pytest

from clipkit.inspect.short_names import letters, shorten, shorten_all


@pytest.mark.parametrize(
    ("name", "width", "lines", "expected"),
    [
        ("cat", 5, 1, "cat"),
        ("", 5, 1, ""),
        ("abcdefgh", 5, 1, "abcd\u2026"),
        ("a bc def", 4, 2, "a bc\ndef"),
        ("aa bb cc dd", 5, 1, "aa b\u2026"),
        ("aa bb cc dd", 5, 2, "aa bb\ncc dd"),
        ("aa bb cc dd ee", 5, 2, "aa bb\ncc d\u2026"),
        ("line\nbreak\tand", 20, 1, "line break and"),
        ("a verylongword", 6, 3, "a very\nlongwo\nrd"),
    ],
)
def test_names_are_shortened(name: str, width: int, lines: int, expected: str) -> None:
    assert shorten(name, width, lines) == expected


def test_names_that_begin_alike_show_their_ends() -> None:
    names = [f"a rather long name of method {place}" for place in (1, 2, 12)]
    expected = ["a rather long\u20261", "a rather long\u20262", "a rather lon\u202612"]
    assert shorten_all(names, letters(15)) == expected
    assert shorten_all(["cat", *names], letters(15)) == ["cat", *expected]


def test_names_that_begin_and_end_alike_are_numbered() -> None:
    names = [f"{'a' * 20}{middle}{'z' * 40}" for middle in "xy"]
    assert shorten_all(names, letters(9)) == ["aaaa\u2026 (1)", "aaaa\u2026 (2)"]


def test_equal_names_stay_equal() -> None:
    assert shorten_all(["a long name", "a long name"], letters(5)) == ["a\u2026"] * 2


def test_a_shortened_name_is_never_that_of_another() -> None:
    """Names as they are count too: "ab\u2026" may be one."""
    draw = random.Random(0)
    for _ in range(300):
        width, lines = draw.randint(8, 14), draw.randint(1, 2)
        names = [
            "".join(draw.choices("ab\u2026 ", k=draw.randint(1, 40))).strip() or "a"
            for _ in range(8)
        ]
        found = shorten_all(names, letters(width), lines)
        assert len(set(found)) == len(set(names)), names
        assert all(len(line) <= width for text in found for line in text.splitlines()), found
        assert all(len(text.splitlines()) <= lines for text in found)


def test_another_measure_and_another_ellipsis_can_be_given() -> None:
    def is_narrow(text: str) -> bool:
        return sum(3 if letter == "w" else 1 for letter in text) <= 9

    assert shorten_all(["wwwww", "iiiii"], is_narrow, ellipsis="...") == ["ww...", "iiiii"]
