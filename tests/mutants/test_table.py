"""The table of mutants fits the sources: each old line is there once, and so are its tests."""

import ast
from pathlib import Path

import pytest

from tests.mutants.run import judge, run_tests, try_one
from tests.mutants.table import ROOT, Mutant, mutants, mutate, read_table

MUTANTS = mutants()
ROOMS = ("models", "checkpoints", "data", "encode", "classify", "inspect", "search", "training")


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_breakage_is_one_line_of_python(mutant: Mutant) -> None:
    source = (ROOT / mutant.file).read_text("utf-8")
    broken = mutate(mutant, source)
    assert broken != source
    assert len(broken.splitlines()) == len(source.splitlines())
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(source))
    assert [file for file in mutant.tests if not (ROOT / file).exists()] == []


def test_names_and_lines_come_once() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.new, mutant.old) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("room", [*ROOMS, "files", "openai", "commands"])
def test_every_room_has_breakages(room: str) -> None:
    assert [mutant.name for mutant in MUTANTS if mutant.file.startswith(f"clipkit/{room}/")] != []


def test_a_line_that_is_not_there_once_is_refused() -> None:
    mutant = Mutant("some", "clipkit/x.py", "x = 1", "x = 2", ("tests/test_x.py",))
    assert mutate(mutant, "if y:\n    x = 1\n") == "if y:\n    x = 2\n"
    with pytest.raises(ValueError, match="some: the old line stands 0 times in clipkit/x.py"):
        mutate(mutant, "x = 1  # with a comment\n")
    with pytest.raises(ValueError, match="stands 2 times"):
        mutate(mutant, "x = 1\nx = 1\n")


@pytest.mark.parametrize("entry", ["a x.py\n- b\n+ c\n", "a x.py t.py\n+ b\n- c\n"])
def test_an_entry_that_lacks_something_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="a needs a file, tests"):
        read_table(entry)


@pytest.mark.parametrize(
    "code, output, fate",
    [
        (None, "", "too slow"),
        (0, "3 passed\n", "survived"),
        (1, "FAILED tests/test_x.py::test_x - assert 1 == 2\n", "noticed"),
        (1, "nobody knows\n", "did not run"),
        (2, "ERROR tests/test_x.py\n", "did not run"),
        (5, "no tests ran\n", "did not run"),
    ],
)
def test_what_pytest_ends_with_is_judged(code: int | None, output: str, fate: str) -> None:
    assert judge(code, output)[0] == fate


def make_tree(folder: Path) -> None:
    """Write a package of one line, and a test that notices one way to break it."""
    (folder / "clipkit").mkdir()
    (folder / "clipkit" / "__init__.py").write_text("def double(x):\n    return x + x\n")
    test = "import clipkit\n\n\ndef test_two():\n    assert clipkit.double(2) == 4\n"
    (folder / "test_double.py").write_text(test)


@pytest.mark.parametrize("new, fate", [("return 3 * x", "noticed"), ("return x * x", "survived")])
def test_a_breakage_is_made_in_the_copy_tried_and_mended(
    new: str, fate: str, tmp_path: Path
) -> None:
    make_tree(tmp_path)
    file = tmp_path / "clipkit" / "__init__.py"
    sound = file.read_text()
    mutant = Mutant("some", "clipkit/__init__.py", "return x + x", new, ("test_double.py",))
    found = try_one(mutant, tmp_path)
    assert (found.fate, found.about) == (
        fate,
        {"noticed": "test_two", "survived": "all tests passed"}[fate],
    )
    assert file.read_text() == sound
    assert run_tests(tmp_path, mutant.tests, 60)[0] == 0
