"""Read the table of mutants: single-line breakages, each with the test files that must fail."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("table.txt")
PACKAGE, TESTS = "clipkit", "tests"


@dataclass(frozen=True)
class Mutant:
    """Hold a breakage.

    Attributes:
        name: by which it is chosen and reported.
        file: that it breaks, from the root of the repository.
        old, new: a line and what takes its place, without indentation.
        tests: files of which one must fail, from the root of the repository.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read_table(text: str) -> list[Mutant]:
    """Return the mutants of a table.

    Raises:
        ValueError: for an entry without its three lines.
    """
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    entries = zip(lines[::3], lines[1::3], lines[2::3], strict=True)
    return [_read_entry(*entry) for entry in entries]


def mutants() -> list[Mutant]:
    """Return all mutants."""
    return read_table(TABLE.read_text("utf-8"))


def places_of(line: str, source: str) -> list[int]:
    """Return the numbers of the lines of a source that are this one, whatever their indentation."""
    return [number for number, one in enumerate(source.splitlines()) if one.strip() == line]


def mutate(mutant: Mutant, source: str) -> str:
    """Return a source with its line replaced, in the old indentation.

    Raises:
        ValueError: if the line stands there not once.
    """
    places = places_of(mutant.old, source)
    if len(places) != 1:
        raise ValueError(f"{mutant.name}: the old line stands {len(places)} times in {mutant.file}")
    lines = source.splitlines(keepends=True)
    lines[places[0]] = lines[places[0]].replace(mutant.old, mutant.new)
    return "".join(lines)


def _read_entry(head: str, old: str, new: str) -> Mutant:
    name, file, *tests = head.split()
    if not old.startswith("- ") or not new.startswith("+ ") or not tests:
        raise ValueError(f"{name} needs a file, tests, a line '- ...' and a line '+ ...'")
    return Mutant(
        name=name,
        file=f"{PACKAGE}/{file}",
        old=old[2:],
        new=new[2:],
        tests=tuple(f"{TESTS}/{test}" for test in tests),
    )
