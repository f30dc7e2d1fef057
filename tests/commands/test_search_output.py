"""What a search found is printed for people on a terminal, and for programs in a pipe."""

import io
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clipkit.commands.display import BAR_WIDTH, lossless_streams
from clipkit.commands.search_output import print_duplicates, print_results
from clipkit.search import Duplicates, Result, Results
from tests.helpers.terminal import Terminal

STRANGE = os.fsdecode(b"caf\xe9\t\n\x1b[2J\xe7\x8c\xab.jpg")
FOUND = Results(
    [
        Result("photos/1.jpg", 0.31234567, 6.0),
        Result(STRANGE, 0.25, 3.0),
        Result("\u732b.jpg", -0.1, -0.5),
    ]
)
GROUPS = [Duplicates(["a.jpg", STRANGE], 0.9876), Duplicates(["b.jpg", "c.jpg", "d.jpg"], 1.0)]
Print = Callable[..., str]
Pipe = Callable[..., bytes]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def printed(
    found: Results | list[Duplicates],
    stream: io.TextIOWrapper,
    monkeypatch: pytest.MonkeyPatch,
    kind: str = "",
) -> bytes:
    """Return what is printed to a stream, as the program does it."""
    as_json, only_paths, null = (kind == one for one in ("json", "paths", "null"))
    monkeypatch.setattr(sys, "stdout", stream)
    with lossless_streams():
        if isinstance(found, Results):
            print_results(found, as_json=as_json, only_paths=only_paths, null=null)
        else:
            print_duplicates(found, as_json=as_json, only_paths=only_paths, null=null)
        content = stream.buffer
        assert isinstance(content, io.BytesIO)
        return content.getvalue()  # before anything else flushes it


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Pipe:
    def run(found: Results | list[Duplicates], kind: str = "", encoding: str = "utf-8") -> bytes:
        return printed(found, io.TextIOWrapper(io.BytesIO(), encoding), monkeypatch, kind)

    return run


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Print:
    """Return what a terminal gets, without its colors."""

    def run(found: Results | list[Duplicates], kind: str = "", encoding: str = "utf-8") -> str:
        text = printed(found, Terminal(encoding), monkeypatch, kind).decode(encoding)
        return re.sub(r"\x1b\[[\d;]*m", "", text)

    return run


def test_a_pipe_gets_columns(piped: Pipe) -> None:
    assert piped(FOUND).decode().splitlines() == [
        "6.00\t0.3123\tphotos/1.jpg",
        "3.00\t0.2500\tcaf\\udce9\\t\\n\\x1b[2J\u732b.jpg",
        "-0.50\t-0.1000\t\u732b.jpg",
    ]


@pytest.mark.skipif(os.name != "posix", reason="names are no bytes on Windows")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_a_pipe_gets_paths_byte_for_byte(encoding: str, piped: Pipe) -> None:
    names = [os.fsencode(path) for path in FOUND.paths]
    assert piped(FOUND, "paths", encoding) == b"".join(name + b"\n" for name in names)
    assert piped(FOUND, "null", encoding) == b"".join(name + b"\0" for name in names)


def test_json_is_one_object_a_line(piped: Pipe) -> None:
    rows = [json.loads(line) for line in piped(FOUND, "json").decode("ascii").splitlines()]
    assert rows == [{"path": one.path, "z": one.z, "cosine": one.cosine} for one in FOUND]
    assert rows[1]["path"] == STRANGE
    unknown = Results([Result("a.jpg", 0.5, math.nan)])
    assert json.loads(piped(unknown, "json")) == {"path": "a.jpg", "z": None, "cosine": 0.5}


def test_a_terminal_gets_a_table_with_bars(shown: Print) -> None:
    lines = shown(FOUND).splitlines()
    assert [line.split()[0] for line in lines] == ["z", "6.0", "3.0", "-0.5"]
    assert [line.count("\u2501") for line in lines] == [0, *[BAR_WIDTH] * 3]
    assert lines[0].endswith("  cosine  path")
    column = lines[0].index("path")
    assert [line[column:] for line in lines[1:]] == [
        "photos/1.jpg",
        "caf\\udce9\\t\\n\\x1b[2J\u732b.jpg",
        "\u732b.jpg",
    ]


def test_bars_grow_with_z(shown: Print, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    lines = shown(FOUND).splitlines()
    assert [line.count("\u2501") for line in lines] == [0, BAR_WIDTH, BAR_WIDTH // 2, 0]
    far = Results([Result("1.jpg", 0.5, 12.0), Result("2.jpg", 0.4, 6.0)])
    lines = shown(far).splitlines()
    assert [line.count("\u2501") for line in lines] == [0, BAR_WIDTH, BAR_WIDTH // 2]


def test_a_bar_is_full_at_six_standard_deviations(
    shown: Print, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    near = Results([Result("1.jpg", 0.5, 3.0), Result("2.jpg", 0.4, 1.5)])
    lines = shown(near).splitlines()
    assert [line.count("\u2501") for line in lines] == [0, BAR_WIDTH // 2, BAR_WIDTH // 4]


@pytest.mark.parametrize("columns", [40, 80])
def test_without_room_there_are_no_bars(
    columns: int, shown: Print, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    path = "p" * (columns - 20) + ".jpg"
    lines = shown(Results([Result(path, 0.5, 3.0)])).splitlines()
    assert lines == ["  z  cosine  path", f"3.0   0.500  {path}"]


def test_an_encoding_without_lines_gets_no_bars(shown: Print) -> None:
    assert shown(FOUND, encoding="ascii").splitlines()[1] == " 6.0   0.312  photos/1.jpg"


def test_a_z_that_is_unknown_has_an_empty_bar(shown: Print) -> None:
    lines = shown(Results([Result("a.jpg", 0.5, math.nan)])).splitlines()
    assert lines[1].startswith("nan  ")


@pytest.mark.parametrize("kind", ["", "json", "paths", "null"])
@pytest.mark.parametrize("found", [Results([]), []])
def test_nothing_found_prints_nothing(
    found: Results | list[Duplicates], kind: str, piped: Pipe, shown: Print
) -> None:
    assert piped(found, kind) == b""
    assert shown(found, kind) == ""


def test_paths_on_a_terminal_do_not_act_on_it(shown: Print) -> None:
    assert shown(FOUND, "paths").splitlines()[1] == "caf\\udce9\\t\\n\\x1b[2J\u732b.jpg"
    assert shown(GROUPS, "paths").splitlines() == [
        "a.jpg",
        "caf\\udce9\\t\\n\\x1b[2J\u732b.jpg",
        "",
        "b.jpg",
        "c.jpg",
        "d.jpg",
    ]


@pytest.mark.skipif(os.name != "posix", reason="names are no bytes on Windows")
def test_a_pipe_gets_groups_with_a_line_between(piped: Pipe) -> None:
    strange = os.fsencode(STRANGE)
    expected = b"a.jpg\n" + strange + b"\n\nb.jpg\nc.jpg\nd.jpg\n"
    assert piped(GROUPS) == expected
    assert piped(GROUPS, "paths") == expected
    assert piped(GROUPS, "null") == b"a.jpg\0" + strange + b"\0\0b.jpg\0c.jpg\0d.jpg\0"


def test_groups_in_json(piped: Pipe) -> None:
    rows = [json.loads(line) for line in piped(GROUPS, "json").splitlines()]
    assert rows == [{"cosine": group.cosine, "paths": group.paths} for group in GROUPS]


def test_a_terminal_gets_the_sizes_of_files(tmp_path: Path, shown: Print) -> None:
    small, large = tmp_path / "1.jpg", tmp_path / "2.jpg"
    small.write_bytes(bytes(10))
    large.write_bytes(bytes(12_345))
    gone = tmp_path / "gone.jpg"
    groups = [Duplicates([str(path) for path in (small, large, gone)], 0.9876), GROUPS[1]]
    assert shown(groups).splitlines()[:5] == [
        "3 images, cosine 0.988",
        f"  10 bytes  {small}",
        f"   12.3 kB  {large}",
        f"      gone  {gone}",
        "",
    ]
