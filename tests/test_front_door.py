"""What `import clipkit` does not do, what it offers, and which module may import which."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import clipkit

PACKAGE = Path(clipkit.__file__).parent
MODULES = {
    ".".join(("clipkit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Run in a fresh interpreter. torch and NumPy do as they please when they are imported, so they come first.
WATCH = """
import json, os, sys, warnings
import numpy, torch

warnings.simplefilter("error")
before, environment, events = set(sys.modules), dict(os.environ), []
sys.addaudithook(lambda event, args: events.append((event, str(args[0]) if args else "")))
import clipkit
seen, imported = list(events), sorted(set(sys.modules) - before)
present = [name for name in UNWANTED if name in sys.modules]

from clipkit import tokenizer
built = [f.cache_info().currsize for f in (tokenizer._default, tokenizer.default_merges, tokenizer._pattern)]
environment_unchanged = dict(os.environ) == environment

model, _ = clipkit.load("tiny", "cpu")
print(json.dumps({
    "opened": [path for event, path in seen if event == "open"],
    "sockets": [event for event, _ in seen if event.startswith(("socket.", "urllib.", "http."))],
    "processes": [event for event, _ in seen if event.startswith(("subprocess.", "os.system", "os.exec", "os.fork"))],
    "imported": imported,
    "present": present,
    "built": built,
    "environment_unchanged": environment_unchanged,
    "compiler": [name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules],
}))
"""
UNWANTED = (
    "timm transformers open_clip matplotlib torchvision PIL ftfy regex huggingface_hub safetensors sklearn pandas"
).split()


@pytest.fixture(scope="module")
def fresh() -> dict:
    """What a fresh interpreter saw while it imported clipkit, and after it loaded the embedded checkpoint."""
    code = f"UNWANTED = {UNWANTED!r}\n{WATCH}"
    command = [
        sys.executable,
        "-B",
        "-c",
        code,
    ]  # -B: else it may write the bytecode of what it reads
    run = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_import_reads_only_modules(fresh: dict) -> None:
    assert [
        path
        for path in fresh["opened"]
        if not path.endswith((".py", ".pyc", ".so", ".pyd", ".dll"))
    ] == []
    assert any("clipkit" in path for path in fresh["opened"])  # so the hook has been watching


def test_import_opens_no_socket_and_starts_nothing(fresh: dict) -> None:
    assert fresh["sockets"] == fresh["processes"] == []


def test_import_builds_no_tokenizer(fresh: dict) -> None:
    assert fresh["built"] == [0, 0, 0]


def test_import_sets_no_environment_variable(fresh: dict) -> None:
    assert fresh["environment_unchanged"]


def test_import_takes_nothing_heavy_along(fresh: dict) -> None:
    assert fresh["present"] == []
    assert {name.split(".")[0] for name in fresh["imported"]} <= {"clipkit"} | set(
        sys.stdlib_module_names
    )


def test_loading_leaves_torchs_compiler_alone(fresh: dict) -> None:
    """Random numbers on the meta device would import it, which takes longer than all of the loading."""
    assert fresh["compiler"] == []


def test_all_is_what_is_imported() -> None:
    tree = ast.parse(MODULES["clipkit"].read_text("utf-8"))
    imported = [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(imported) == sorted(clipkit.__all__) == clipkit.__all__
    assert len(set(imported)) == len(imported)
    for name in clipkit.__all__:
        assert hasattr(clipkit, name)
    assert clipkit.__version__.count(".") == 2


# Imports point down this list, or sideways within a row (DESIGN.md). A name stands for all modules below it.
ROWS = [
    ["clipkit.cli", "clipkit.__main__"],
    [
        "clipkit.classify.classifier",
        "clipkit.classify.export",
        "clipkit.training.loop",
        "clipkit.training.finetune",
        "clipkit.training.run",
        "clipkit.inspect",
        "clipkit.search",
    ],
    [
        "clipkit.encode.store",
        "clipkit.classify.few_shot",
        "clipkit.classify.anchored",
        "clipkit.classify.zero_shot",
    ],
    ["clipkit.clip"],
    [
        *(
            "clipkit.models",
            "clipkit.checkpoints",
            "clipkit.checkpoints.registry",
            "clipkit.tokenizer",
            "clipkit.data.preprocess",
        ),
        "clipkit.data.pictures",
        *(
            "clipkit.classify.heads",
            "clipkit.prompts",
            "clipkit.classify.metrics",
            "clipkit.training.losses",
        ),
        *("clipkit.training.batches", "clipkit.training.shards", "clipkit.training.optimizer"),
        "clipkit.training.recompute",
        *("clipkit.training.tasks", "clipkit.training.log"),
    ],
    ["clipkit.config", "clipkit.distributed", "clipkit.errors"],
]
# The only imports that point up: methods of CLIP that hand over to the loading and to the encoding of many.
UPWARD = {
    ("clipkit.clip", "from_pretrained", "clipkit.clip"),
    ("clipkit.clip", "save_pretrained", "clipkit.clip"),
    ("clipkit.clip", "embed_images", "clipkit.encode.store"),
    ("clipkit.clip", "embed_texts", "clipkit.encode.store"),
}
# Packages of several rows; they hold a docstring alone.
BARE = {"clipkit.classify", "clipkit.training"}


def row_of(module: str) -> int:
    """Index in `ROWS` of the longest name that covers the module."""
    covering = [
        (len(name), index)
        for index, row in enumerate(ROWS)
        for name in row
        if module == name or module.startswith(name + ".")
    ]
    assert covering, f"{module} has no place in the house: give it one in DESIGN.md and here"
    return max(covering)[1]


def imports_of(module: str) -> Iterator[tuple[str, str | None]]:
    """Each clipkit module that a module imports, and the function that does so; None at module level."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    inside: dict[ast.AST, str] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            inside |= {node: function.name for node in ast.walk(function) if node is not function}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import at line {node.lineno}"
            base = node.module or ""
            names = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base
                for alias in node.names
            ]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "clipkit":
                yield name, inside.get(node)


def test_imports_point_down() -> None:
    upward = set()
    for module in MODULES.keys() - {"clipkit"}:
        if module in BARE:
            assert not list(imports_of(module)), (
                f"{module} must import nothing: its modules belong to several rows"
            )
            continue
        for imported, function in imports_of(module):
            if imported == "clipkit":
                assert row_of(module) == 0, (
                    f"{module} imports the front door, which imports everything"
                )
            elif row_of(imported) < row_of(module):
                upward.add((module, function, imported))
    assert upward == UPWARD


def test_imports_are_found_wherever_they_stand() -> None:
    """The test above would be silent if the walk missed some."""
    found = dict(imports_of("clipkit.clip"))
    assert found["clipkit.clip"] == "save_pretrained" and found["clipkit.config"] is None
    assert row_of("clipkit.classify.zero_shot") < row_of("clipkit.clip") < row_of("clipkit.clip")
    assert (
        row_of("clipkit.classify.heads")
        == row_of("clipkit.checkpoints.hub")
        < row_of("clipkit.errors")
    )


@pytest.mark.parametrize("module", MODULES)
def test_size(module: str) -> None:
    assert len(MODULES[module].read_text("utf-8").splitlines()) <= 400


def lines_of_code(source: str) -> int:
    """Lines that are neither blank, nor a comment, nor part of a docstring."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(source.splitlines(), start=1)
    return sum(
        bool(line.strip()) and line.strip()[0] != "#" and n not in documented for n, line in lines
    )


def test_the_whole_is_small() -> None:
    assert (
        lines_of_code(
            '"""Doc.\n\nMore."""\n\n# why\nx = 1  # one\n\n\ndef f():\n    """Doc."""\n    return """a\nb"""\n'
        )
        == 4
    )
    assert sum(lines_of_code(path.read_text("utf-8")) for path in MODULES.values()) < 5000
