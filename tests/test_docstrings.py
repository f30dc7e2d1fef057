"""Public docstrings say what is done, of which shape, and what goes wrong; their examples run."""

import ast
import doctest
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

import clipkit
from clipkit.errors import ClipkitError, ConfigError
from tests.helpers.package import MODULES
from tests.helpers.public import Part, parts_of, public_objects

# Classes of OpenAI's structure are known from there, and errors are told by their names.
WITHOUT_EXAMPLE = ("clipkit.openai.model.", "clipkit.errors.")
# A docstring begins with one of these.
VERBS = set(
    """
    Adapt Add Apply Ask Assign Average Blur Bring Build Call Cast Change Check Choose Classify Clip
    Close Compare Complete Compress Compute Convolve Copy Count Cover Cut Decode Describe Divide Do
    Draw Drop Embed Encode Explain Fill Find Fine-tune Fit Forget Give Go Hold Import Join Keep Know
    Lay Learn Leave Let Load Lock Make Map Measure Mend Merge Minimize Move Multiply Note Open Pack
    Parse Pool Prepare Print Put Raise Read Recompute Remember Remove Rename Replace Report Resample
    Return Round Run Say Scale Score Search Set Show Spell Split Stand Take Tell Tie Train Turn Undo
    Upload Vary Wait Warn Write Yield
    """.split()
)
# Types that have a shape, and how a shape is written: (N, D), () or "scalar".
SHAPED = re.compile(
    r"\b(Tensor|NDArray|ArrayLike|Floats|Halves|Numbers|Classes|FeatureRows|Rows|Map)\b"
)
SHAPE = re.compile(r"\((?:[\w .+*/-]+,)+(?: ?[\w .+*/-]+)?\)|\(\)|[Ss]calar|a float|\(n,\)")
# Where a docstring says that another one speaks for it, too.
ELSEWHERE = re.compile(
    r"errors are (?:those )?of|as are the errors|[Ss]ee `|[Aa]s in `|[Aa]s `[\w.]+`|those of `"
)


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield the docstrings of all modules, classes, functions and methods, by their names."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module):
                yield module, ast.get_docstring(node) or ""
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                yield f"{module}.{node.name}", ast.get_docstring(node) or ""


def test_docstrings_begin_with_a_verb() -> None:
    words: dict[str, list[str]] = {}
    for name, text in docstrings():
        if text and name not in MODULES and not name.rpartition(".")[2].startswith("_"):
            words.setdefault(text.split()[0].strip(".,:;"), []).append(name)
    assert {word: names for word, names in words.items() if word not in VERBS} == {}
    assert VERBS - set(words) == set()


@functools.cache
def functions_in(path: str) -> dict[int, ast.FunctionDef]:
    """Return the functions of a file by the line that they begin in, decorators included."""
    return {
        min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]): node
        for node in ast.walk(ast.parse(Path(path).read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    }


def source_of(function: FunctionType) -> ast.FunctionDef:
    """Return a function as it is written."""
    return functions_in(function.__code__.co_filename)[function.__code__.co_firstlineno]


def called_by(node: ast.FunctionDef, part: Part) -> Iterator[FunctionType]:
    """Yield the functions of its module, and the methods of its class, that a function calls."""
    for call in ast.walk(node):
        if not isinstance(call, ast.Call):
            continue
        found: object = None
        if isinstance(call.func, ast.Name):
            found = part.function.__globals__.get(call.func.id)
        elif isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "self":
            found = getattr(part.owner, call.func.attr, None)
        if not isinstance(found, FunctionType):
            continue
        function: Any = inspect.unwrap(found)
        if function.__module__ == part.function.__module__:
            yield function


def raised_by(part: Part, seen: set[FunctionType]) -> set[type[ClipkitError]]:
    """Return the errors of clipkit that a function, or one of its module that it calls, raises."""
    seen.add(part.function)
    node = source_of(part.function)
    raised: set[type[ClipkitError]] = set()
    for one in ast.walk(node):
        if isinstance(one, ast.Raise) and isinstance(one.exc, ast.Call):
            kind = part.function.__globals__.get(ast.unparse(one.exc.func).rpartition(".")[2])
            if isinstance(kind, type) and issubclass(kind, ClipkitError):
                raised.add(kind)
    for function in called_by(node, part):
        if function not in seen:
            raised |= raised_by(Part(part.name, "", function, part.owner), seen)
    return raised


def unsaid_errors(part: Part) -> list[str]:
    """Return the errors that a function raises, and of which its docstring does not speak."""
    if ELSEWHERE.search(part.text):
        return []
    unsaid: list[str] = []
    for error in raised_by(part, set()):
        names = [kind.__name__ for kind in error.__mro__ if issubclass(kind, ClipkitError)]
        if not any(re.search(rf"\b{name}\b", part.text) for name in names):
            unsaid.append(error.__name__)
    return sorted(unsaid)


def lacks_shape(part: Part) -> bool:
    """Return whether a function takes or returns a tensor and its docstring has no shape."""
    arguments = source_of(part.function).args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    annotations = [one.annotation for one in every] + [source_of(part.function).returns]
    shaped = any(SHAPED.search(ast.unparse(one)) for one in annotations if one is not None)
    return shaped and not SHAPE.search(part.text) and not ELSEWHERE.search(part.text)


PARTS = [part for name, value in public_objects().items() for part in parts_of(name, value)]


def test_docstrings_name_the_errors_that_are_raised() -> None:
    gaps = {part.name: unsaid for part in PARTS if (unsaid := unsaid_errors(part))}
    assert gaps == {}


def test_docstrings_name_the_shapes_of_tensors() -> None:
    assert [part.name for part in PARTS if lacks_shape(part)] == []


def test_public_classes_and_functions_have_an_example() -> None:
    lacking = [
        name
        for name, value in public_objects().items()
        if "Example:" not in (value.__doc__ or "") and not name.startswith(WITHOUT_EXAMPLE)
    ]
    assert lacking == []


def bad(image: torch.Tensor) -> torch.Tensor:
    """Return nothing of use."""
    return worse(image)


def worse(image: torch.Tensor) -> torch.Tensor:
    raise ConfigError(f"this always fails: {image}")


def test_gaps_are_found() -> None:
    part = Part("bad", bad.__doc__ or "", bad)
    assert unsaid_errors(part) == ["ConfigError"]
    assert lacks_shape(part)
    said = Part("bad", "Return (N, D). Raises: ConfigError: always.", bad)
    assert unsaid_errors(said) == []
    assert not lacks_shape(said)
    assert unsaid_errors(Part("bad", "Raises: ClipkitError: always.", bad)) == []


def test_the_walk_finds_what_is_public() -> None:
    names = {part.name for part in PARTS}
    assert "clipkit.CLIP.encode_image" in names  # of a base class
    assert "clipkit.ImageClassifier.zero_shot" in names  # a classmethod
    assert "clipkit.search.Index.paths" in names  # a property
    assert "clipkit.inspect.Jpeg.__call__" in names
    assert "clipkit.inspect.explain" in names
    assert len(names) > 300


def examples() -> Iterator[tuple[str, str]]:
    """Yield the examples that are no doctests, by where they are."""
    for name, text in docstrings():
        for block in re.findall(r"^Example:\n((?:    .*\n|\n)+)", f"{text}\n", re.M):
            if ">>> " not in block:
                yield name, textwrap.dedent(block)


def test_other_examples_are_programs() -> None:
    found = list(examples())
    assert len(found) > 80
    for _, code in found:
        ast.parse(code)


def test_other_examples_use_names_that_exist() -> None:
    missing: list[str] = []
    for name, code in examples():
        for node in ast.walk(ast.parse(code)):
            path = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if re.fullmatch(r"clipkit(\.\w+)+", path) and not exists(path):
                missing.append(f"{name}: {path}")
    assert missing == []


def exists(path: str) -> bool:
    """Return whether there is such an attribute of the package."""
    value: object = clipkit
    for name in path.split(".")[1:]:
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


@pytest.mark.parametrize(
    "name", [name for name, path in MODULES.items() if ">>> " in path.read_text("utf-8")]
)
def test_doctests(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
