"""Print what a search found: tables for people, plain lines for pipes, JSON and bare paths."""

import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Sequence

from clipkit.columns import align, width_of
from clipkit.commands.display import BAR_WIDTH, Style, is_terminal
from clipkit.plurals import number_of, size_in_words
from clipkit.search.results import Duplicates, Result, Results
from clipkit.visible import visible

_GAP = "  "  # between columns
_FULL_BAR = 6.0  # standard deviations; a text that fits a few images of many gets as far
_HEADS = ("z", "cosine", "path")

_LINE_END = "\n"
_NUL = "\0"


def print_results(
    results: Results, *, as_json: bool, only_paths: bool, null: bool, query: str | None = None
) -> None:
    """Print the results of a search, the best first; nothing if there are none.

    A terminal gets a table with bars if there is room. A pipe gets z-score, cosine and path with
    tabs between them, and control characters of a path as escapes.

    Args:
        results: what was found.
        as_json: one object for each result. It goes before the others.
        only_paths: the paths alone. A pipe gets them byte for byte.
        null: the same, with a NUL after each, as `xargs -0` reads them.
        query: what was asked, if it is one of several: a key of each object, the first column in a
            pipe, and a line above the table.
    """
    style = Style.of(sys.stdout)
    if as_json:
        for result in results:
            print(json.dumps(({} if query is None else {"query": query}) | _values(result)))
    elif only_paths or null:
        _print_paths(results.paths, null)
    elif not style.for_people:
        first = "" if query is None else f"{visible(query)}\t"
        for result in results:
            print(f"{first}{result.z:.2f}\t{result.cosine:.4f}\t{visible(result.path)}")
    elif len(results):
        if query is not None:
            print(style.bold(visible(query)))
        for line in _table(list(results), style):
            print(line)
    sys.stdout.flush()  # whoever sends several queries waits for the answer to each


def print_duplicates(
    groups: Sequence[Duplicates], *, as_json: bool, only_paths: bool, null: bool
) -> None:
    """Print groups of images that look alike; nothing if there are none.

    A pipe gets the paths, byte for byte, and an empty line between groups. A terminal gets the
    cosine of each group and the sizes of the files, too.

    Args:
        groups: what was found.
        as_json: one object for each group. It goes before the others.
        only_paths: the paths alone, on a terminal as well.
        null: the same, with a NUL after each path, and one more between groups.
    """
    style = Style.of(sys.stdout)
    for number, group in enumerate(groups):
        if as_json:
            print(json.dumps({"cosine": group.cosine, "paths": group.paths}))
            continue
        if number:
            print(end=_NUL if null else _LINE_END)
        if only_paths or null or not style.for_people:
            _print_paths(group.paths, null)
        else:
            for line in _group(group, style):
                print(line)
    sys.stdout.flush()


def _values(result: Result) -> dict[str, str | float | None]:
    """Return a result as JSON can hold it."""
    z = None if math.isnan(result.z) else result.z
    return {"path": result.path, "z": z, "cosine": result.cosine}


def _print_paths(paths: Iterable[str], null: bool) -> None:
    """Print paths as the system spells them, or for people without what acts on a terminal."""
    end = _NUL if null else _LINE_END
    if is_terminal(sys.stdout) and not null:
        for path in paths:
            print(visible(path))
        return
    # A name is bytes, which the encoding of the stream need not have. What was printed goes first.
    sys.stdout.flush()
    for path in paths:
        sys.stdout.buffer.write(os.fsencode(f"{path}{end}"))


def _table(results: Sequence[Result], style: Style) -> list[str]:
    """Return a head and a line for each result, with bars of the z-scores if they have room."""
    rows = [[f"{one.z:.1f}", f"{one.cosine:.3f}", visible(one.path)] for one in results]
    head, *cells = align([_HEADS, *rows], right=(0, 1))
    longest = max(width_of(_line(*row)) for row in cells)
    room = shutil.get_terminal_size().columns - longest
    has_bars = style.has_bars and room >= len(_GAP) + BAR_WIDTH
    lines = [style.dim(_line(*head, bar=" " * BAR_WIDTH if has_bars else ""))]
    shares = _shares(results)
    for place, ((z, cosine, path), share) in enumerate(zip(cells, shares, strict=True)):
        bar = style.bar(share) if has_bars else ""
        z = style.strong(z) if place == 0 else z
        lines.append(_line(z, cosine, style.name(path.rstrip()), bar=bar))
    return lines


def _line(z: str, cosine: str, path: str, *, bar: str = "") -> str:
    return _GAP.join([z, *([bar] if bar else []), cosine, path.rstrip()])


def _shares(results: Sequence[Result]) -> list[float]:
    """Return how full the bar of each result is, 0 to 1."""
    known = [0.0 if math.isnan(result.z) else result.z for result in results]
    full = max(_FULL_BAR, *known)
    return [max(z, 0.0) / full for z in known]


def _group(group: Duplicates, style: Style) -> list[str]:
    """Return the lines of a group."""
    head = f"{number_of(len(group.paths), 'image')}, cosine {group.cosine:.3f}"
    sizes = align([[_size_of(path)] for path in group.paths], right=[0])
    files = zip(sizes, group.paths, strict=True)
    return [
        style.bold(head),
        *(f"{_GAP}{size}{_GAP}{style.name(visible(path))}" for (size,), path in files),
    ]


def _size_of(path: str) -> str:
    try:
        return size_in_words(os.path.getsize(path))
    except OSError:
        return "gone"
