"""Columns are as wide as a terminal shows their letters."""

from clipkit.columns import align, pad, width_of


def test_columns_are_aligned_by_what_a_terminal_shows() -> None:
    assert width_of("\u732b\u72ac") == 4
    assert width_of("e\u0301") == 1
    assert pad("\u732b", 4) == "\u732b  "
    rows = align([["\u732b", "9"], ["kitten", "10"]], right=[1])
    assert rows == [["\u732b    ", " 9"], ["kitten", "10"]]
