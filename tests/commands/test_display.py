"""How the command line writes for people: escapes, widths, bars, and colors on a terminal alone."""

import io
import sys
from pathlib import Path

import pytest

from clipkit.commands.display import Style, lossless_streams, typed
from clipkit.visible import visible
from tests.helpers.terminal import Terminal

COLORS = ("NO_COLOR", "FORCE_COLOR", "TERM")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COLORS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat.jpg", "cat.jpg"),
        ("\x1b[2Jcat.jpg", "\\x1b[2Jcat.jpg"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x9b31m", "\\x9b31m"),
        ("gpj.\u202etac", "gpj.\\u202etac"),
        ("a\u2028b", "a\\u2028b"),
        ("caf\udce9", "caf\\udce9"),
        ("\u732b \U0001f408", "\u732b \U0001f408"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        ("\u6a21\u3000\u578b", "\u6a21\u3000\u578b"),
    ],
)
def test_control_characters_are_shown_and_letters_of_all_scripts_stay(
    text: str, shown: str
) -> None:
    assert visible(text) == shown


def test_line_ends_may_stay() -> None:
    assert visible("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_a_pipe_gets_neither_color_nor_bars() -> None:
    style = Style.of(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert style.bold("cat") == "cat"
    assert style.bar(0.5) == ""
    assert not style.for_people


def test_a_terminal_gets_both() -> None:
    style = Style.of(Terminal())
    assert style.strong("cat") == "\x1b[1m\x1b[32mcat\x1b[0m"
    assert style.bar(0.5).count("\u2501") == 24
    assert style.for_people


def test_no_color_keeps_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    style = Style.of(Terminal())
    assert style.bold("cat") == "cat"
    assert style.bar(0.5) == "\u2501" * 12 + " " * 12


def test_a_dumb_terminal_gets_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert Style.of(Terminal()).bold("cat") == "cat"


def test_color_can_be_forced_into_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Style.of(io.StringIO()).bold("cat") != "cat"


def test_an_encoding_without_lines_gets_no_bars() -> None:
    style = Style.of(Terminal("ascii"))
    assert style.bar(0.5) == ""
    assert style.bold("cat") != "cat"


@pytest.mark.parametrize(("share", "halves"), [(0, 0), (0.02, 1), (0.25, 12), (1, 48), (2, 48)])
def test_a_bar_has_the_length_of_its_share(
    share: float, halves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    bar = Style.of(Terminal()).bar(share)
    assert 2 * bar.count("\u2501") + bar.count("\u2578") == halves
    assert len(bar) == 24


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_escaped_and_the_stream_is_restored(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with lossless_streams():
        print("\u732b dog")
        stream.flush()
    assert stream.errors == "strict"
    written = content.getvalue().decode(encoding)
    assert written == ("\u732b dog\n" if encoding == "utf-8" else "\\u732b dog\n")


def test_streams_are_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(ValueError, match="inside"), lossless_streams():
        raise ValueError("inside")
    assert stream.errors == "strict"


def test_words_are_quoted_as_they_are_typed() -> None:
    assert typed("cat", "cup of coffee", "it's") == """cat 'cup of coffee' 'it'"'"'s'"""
    assert typed(Path("my out")) == "'my out'"
