"""The rules of the house that ruff and pyright miss: sizes, docstrings, options spelled out."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.package import MODULES, TESTS

FILE_LINES = 400
FUNCTION_LINES = 40
ROOT = TESTS.parent
FILES = {
    str(path.relative_to(ROOT)): path
    for folder in ("clipkit", "tests", "examples", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
Function = ast.FunctionDef | ast.AsyncFunctionDef

# Functions that take a parameter of any type, and why.
TAKES_ANYTHING = {
    "clipkit.data.labelled.captions_of": "a value that was read from JSON",
    "clipkit.training.recompute.recompute": "the arguments of any module",
}


def functions_of(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def lines_of(function: Function) -> int:
    """Return the lines of a function's body, without its docstring.

    The signature is not counted, so that nobody packs options into one to save lines.
    """
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    return (body[-1].end_lineno or body[-1].lineno) - body[0].lineno + 1


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name: str) -> None:
    assert len(FILES[name].read_text("utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize("name", FILES)
def test_functions_are_short(name: str) -> None:
    tree = ast.parse(FILES[name].read_text("utf-8"))
    sizes = [(function.name, lines_of(function)) for function in functions_of(tree)]
    assert [(name, size) for name, size in sizes if size > FUNCTION_LINES] == []


def test_lines_are_counted_without_signature_and_docstring() -> None:
    source = (
        '@decorated\ndef f(\n    y,\n):\n    """Do.\n\n    More."""\n    x = 1\n\n    return x\n'
    )
    assert [lines_of(function) for function in functions_of(ast.parse(source))] == [3]
    source = 'def f():\n    """Do."""\n\ndef g(): pass\n'
    assert [lines_of(function) for function in functions_of(ast.parse(source))] == [0, 1]


def public_parts(path: Path) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Yield the public classes and functions of a module, and the methods of those classes."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        yield node.name, node
        for inner in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(inner, Function) and not inner.name.startswith("_"):
                yield f"{node.name}.{inner.name}", inner


def is_overload(node: ast.ClassDef | Function) -> bool:
    return any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)


def is_part_of_protocol(name: str, path: Path) -> bool:
    """Return whether a method belongs to a Protocol, which documents its methods as a whole."""
    owner = name.partition(".")[0]
    parts = dict(public_parts(path))
    node = parts[owner]
    return (
        "." in name
        and isinstance(node, ast.ClassDef)
        and "Protocol" in map(ast.unparse, node.bases)
    )


@pytest.mark.parametrize("module", MODULES)
def test_public_docstrings_begin_with_a_sentence(module: str) -> None:
    path = MODULES[module]
    wrong: list[str] = []
    for name, node in public_parts(path):
        if is_overload(node) or is_part_of_protocol(name, path):
            continue
        first = (ast.get_docstring(node) or "").split("\n")[0]
        if not first.endswith(".") or len(first.split()) < 2:
            wrong.append(f"{name}: {first!r}")
    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_modules_begin_with_a_docstring(module: str) -> None:
    docstring = ast.get_docstring(ast.parse(MODULES[module].read_text("utf-8")))
    assert docstring


def anything_taken_by(function: Function) -> list[str]:
    """Return the parameters that are typed as Any alone, and those of `**options: Any`."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    return [
        one.arg
        for one in every
        if one.annotation is not None and ast.unparse(one.annotation) == "Any"
    ]


@pytest.mark.parametrize("module", MODULES)
def test_options_are_spelled_out_and_typed(module: str) -> None:
    wrong: dict[str, list[str]] = {}
    for name, node in public_parts(MODULES[module]):
        whole = f"{module}.{name}"
        if isinstance(node, Function) and whole not in TAKES_ANYTHING:
            wrong |= {whole: taken} if (taken := anything_taken_by(node)) else {}
    assert wrong == {}


def test_reasons_are_given_for_functions_that_still_take_anything() -> None:
    found: set[str] = set()
    for module, path in MODULES.items():
        for name, node in public_parts(path):
            if isinstance(node, Function) and anything_taken_by(node):
                found.add(f"{module}.{name}")
    assert set(TAKES_ANYTHING) - found == set()
