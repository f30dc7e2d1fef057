"""Importing clipkit does no work, and what the front door takes, it can make."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clipkit
from tests.helpers.package import MODULES, PACKAGE

# Run in a fresh interpreter. torch and NumPy do as they please when they are imported, so they
# come first. Then every name of the front door is asked for.
WATCH = """
import json, os, sys, warnings
import numpy, torch

warnings.simplefilter("error")
before, environment, events = set(sys.modules), dict(os.environ), []
sys.addaudithook(lambda event, args: events.append((event, str(args[0]) if args else "")))
import clipkit
for name in clipkit.__all__:
    getattr(clipkit, name)
seen, imported = list(events), sorted(set(sys.modules) - before)
present = [name for name in UNWANTED if name in sys.modules]

from clipkit import tokenizer, words
caches = (tokenizer._default, tokenizer.default_merges, words.word_pattern)
built = [cache.cache_info().currsize for cache in caches]
environment_unchanged = dict(os.environ) == environment

model, _ = clipkit.load("tiny", "cpu")
starts = ("subprocess.", "os.system", "os.exec", "os.fork")
compiler = ("torch._dynamo", "torch._inductor", "sympy")
print(json.dumps({
    "opened": [path for event, path in seen if event == "open"],
    "sockets": [event for event, _ in seen if event.startswith(("socket.", "urllib.", "http."))],
    "processes": [event for event, _ in seen if event.startswith(starts)],
    "imported": imported,
    "present": present,
    "built": built,
    "environment_unchanged": environment_unchanged,
    "compiler": [name for name in compiler if name in sys.modules],
}))
"""
UNWANTED = (
    "timm transformers open_clip matplotlib torchvision PIL ftfy regex huggingface_hub "
    "safetensors sklearn pandas"
).split()
Report = dict[str, Any]


@pytest.fixture(scope="module")
def fresh() -> Report:
    """Return what a fresh interpreter saw during the import, and after it loaded a checkpoint."""
    code = f"UNWANTED = {UNWANTED!r}\n{WATCH}"
    # -B, because it may otherwise write the bytecode of what it reads.
    command = [sys.executable, "-B", "-c", code]
    run = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_import_reads_only_modules(fresh: Report) -> None:
    endings = (".py", ".pyc", ".so", ".pyd", ".dll")
    assert [path for path in fresh["opened"] if not path.endswith(endings)] == []
    assert any("clipkit" in path for path in fresh["opened"])  # so the hook has been watching


def test_import_opens_no_socket_and_starts_nothing(fresh: Report) -> None:
    assert fresh["sockets"] == []
    assert fresh["processes"] == []


def test_import_builds_no_tokenizer(fresh: Report) -> None:
    assert fresh["built"] == [0, 0, 0]


def test_import_sets_no_environment_variable(fresh: Report) -> None:
    assert fresh["environment_unchanged"]


def test_import_takes_nothing_heavy_along(fresh: Report) -> None:
    assert fresh["present"] == []
    light = {"numpy.typing", "numpy._typing._add_docstring"}  # NumPy itself imports them late
    packages = {name.split(".")[0] for name in set(fresh["imported"]) - light}
    assert packages <= {"clipkit"} | set(sys.stdlib_module_names)


def test_loading_leaves_torchs_compiler_alone(fresh: Report) -> None:
    """Random numbers on the meta device would import it, which takes longer than the loading."""
    assert fresh["compiler"] == []


@pytest.mark.parametrize("door", ["clipkit", "clipkit.commands", "clipkit.search"])
def test_all_is_what_a_type_checker_and_a_program_are_shown(door: str) -> None:
    tree = ast.parse(MODULES[door].read_text("utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in blocks[0].body if isinstance(node, ast.ImportFrom)]
    shown = {(node.module, alias.name) for node in imports for alias in node.names}
    package = importlib.import_module(door)
    homes: dict[str, tuple[str, ...]] = vars(package)["_HOMES"]
    assert shown == {(home, name) for home, names in homes.items() for name in names}
    assert package.__all__ == sorted(name for _, name in shown)
    assert len(package.__all__) == len(shown)
    assert all(hasattr(package, name) for name in package.__all__)


def test_import_waits_for_neither_torch_nor_numpy() -> None:
    program = "import sys, clipkit; print('torch' in sys.modules, 'numpy' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "False False\n"


def test_the_front_door_lists_its_names() -> None:
    assert set(clipkit.__all__) <= set(dir(clipkit))


@pytest.mark.parametrize("name", clipkit.__all__)
def test_every_name_of_all_is_there(name: str) -> None:
    assert hasattr(clipkit, name)


def test_the_version_stands_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", clipkit.__version__)
    settings = (PACKAGE.parent / "pyproject.toml").read_text("utf-8")
    assert 'version = { attr = "clipkit.__version__" }' in settings
    places = [path for path in MODULES.values() if clipkit.__version__ in path.read_text("utf-8")]
    assert places == [MODULES["clipkit"]]


def classes_in(annotation: object) -> Iterator[type]:
    """Yield the classes of clipkit in an annotation, in those of a union or a list as well."""
    if isinstance(annotation, type) and annotation.__module__.split(".")[0] == "clipkit":
        yield annotation
    for argument in typing.get_args(annotation):
        yield from classes_in(argument)


def names_in(annotation: ast.expr) -> Iterator[str]:
    """Yield the names in an annotation, in one that is written as a text as well."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            yield node.id
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\w+", node.value)


def annotations_of(name: str) -> tuple[types.ModuleType, list[ast.expr]]:
    """Return the annotations of all that a public function, or a public class, is given."""
    value = getattr(clipkit, name)
    module = importlib.import_module(value.__module__)
    parts = [
        node
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    ]
    top = next(part for part in reversed(parts) if part.name == value.__name__)  # no overload
    functions = [top] if isinstance(top, ast.FunctionDef) else []
    annotations: list[ast.expr] = []
    for node in top.body if isinstance(top, ast.ClassDef) else []:
        if isinstance(node, ast.FunctionDef) and is_public(node.name):
            functions.append(node)
        if isinstance(node, ast.AnnAssign):  # a field of a dataclass
            annotations.append(node.annotation)
    for function in functions:
        arguments = function.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        annotations += [one.annotation for one in every if one.annotation is not None]
    return module, annotations


def is_public(name: str) -> bool:
    return name in ("__init__", "__call__") or not name.startswith("_")


CALLABLES = [name for name in clipkit.__all__ if callable(getattr(clipkit, name))]


@pytest.mark.parametrize("name", CALLABLES)
def test_what_is_taken_can_be_made(name: str) -> None:
    module, annotations = annotations_of(name)
    taken: set[type] = set()
    for annotation in annotations:
        for word in names_in(annotation):
            taken |= set(classes_in(getattr(module, word, None)))
    exported = {getattr(clipkit, one) for one in clipkit.__all__}
    # A Protocol is not made: it says what a class of the caller must have.
    missing = [one for one in taken if one not in exported and not is_protocol(one)]
    assert missing == []


def is_protocol(kind: type) -> bool:
    return bool(getattr(kind, "_is_protocol", False))


def test_the_walk_finds_classes_where_they_are_taken() -> None:
    """The test above would be silent if it found none."""
    module, annotations = annotations_of("PairBatches")
    found = {word for annotation in annotations for word in names_in(annotation)}
    assert {"Pairs", "Augment", "Tokenizer"} <= found
    assert list(classes_in(clipkit.Pairs | None)) == [clipkit.Pairs]
    assert module.__name__ == "clipkit.training.batches"


def test_a_first_program_needs_nothing_but_the_front_door(tmp_path: Path) -> None:
    features = clipkit.Features(
        features=clipkit.embed_texts(clipkit.load("tiny", "cpu")[0], ["a cat", "a dog"]),
        labels=None,
        paths=["a", "b"],
        skipped=[],
    )
    head = clipkit.LinearHead(features.features)
    assert head(features.features).argmax(dim=1).tolist() == [0, 1]
