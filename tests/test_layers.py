"""Which module may import which: everything points down, with no circle and no exception."""

import ast
from collections.abc import Iterator
from pathlib import Path

import clipkit

PACKAGE = Path(clipkit.__file__).parent
MODULES = {
    ".".join(("clipkit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# The floors of the house, the ground floor first. A name stands for all modules below it. An import
# goes to a lower floor, or stays in its own room.
FLOORS = [
    {"clipkit.errors"},
    {
        "clipkit.files",
        "clipkit.visible",
        "clipkit.columns",
        "clipkit.distributed",
        "clipkit.fields",
        "clipkit.byte_pairs",
        "clipkit.words",
        "clipkit.plurals",
        "clipkit.moved",
        "clipkit.late",
        "clipkit.threads",
    },
    {"clipkit.config", "clipkit.tokenizer", "clipkit.prompts", "clipkit.page"},
    {"clipkit.data"},
    {"clipkit.models"},
    {"clipkit.checkpoints"},
    {"clipkit.encode"},
    {"clipkit.clip"},
    {"clipkit.classify"},
    {"clipkit.inspect"},
    {"clipkit.search"},
    {"clipkit.training", "clipkit.openai"},
    {"clipkit"},
    {"clipkit.commands"},
    {"clipkit.cli"},
    {"clipkit.__main__"},
]


def place_of(module: str) -> tuple[int, str]:
    """Return the floor of a module and the room in which it is."""
    for floor, rooms in enumerate(FLOORS):
        for room in rooms - {"clipkit"}:
            if module == room or module.startswith(room + "."):
                return floor, room
    assert module == "clipkit", (
        f"{module} has no place in the house: give it one in DESIGN.md and here"
    )
    return FLOORS.index({"clipkit"}), "clipkit"


def imports_of(source: str) -> Iterator[tuple[str, int]]:
    """Yield each clipkit module that a source imports anywhere in it, with the line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import at line {node.lineno}"
            base = node.module or ""
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else base for name in inner]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "clipkit":
                yield name, node.lineno


def test_imports_point_down() -> None:
    upward: list[str] = []
    for module, path in MODULES.items():
        floor, room = place_of(module)
        for imported, line in imports_of(path.read_text("utf-8")):
            other_floor, other_room = place_of(imported)
            if other_floor > floor or (other_floor == floor and other_room != room):
                upward.append(f"{path}:{line} imports {imported}")
    assert upward == []


def test_imports_form_no_circle() -> None:
    waiting = {
        module: {imported for imported, _ in imports_of(path.read_text("utf-8"))}
        for module, path in MODULES.items()
        if path.name != "__init__.py"
    }
    waiting = {
        module: {name for name in names if name in waiting} for module, names in waiting.items()
    }
    while waiting:
        free = {module for module, names in waiting.items() if not names & waiting.keys()}
        assert free, f"these import each other in a circle: {sorted(waiting)}"
        waiting = {module: names for module, names in waiting.items() if module not in free}


def test_rooms_have_no_code_in_their_init() -> None:
    for module, path in MODULES.items():
        rooms = ("commands", "files", "inspect", "openai", "search")
        doors = ("clipkit", *(f"clipkit.{room}" for room in rooms))
        if path.name == "__init__.py" and module not in doors:
            assert list(imports_of(path.read_text("utf-8"))) == [], module


def test_no_import_of_ours_hides_inside_a_function() -> None:
    """Imports of other packages that cost start-up time may; ours would get round the floors."""
    hidden: list[str] = []
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text("utf-8"))
        blocks = [node.body for node in tree.body if isinstance(node, ast.If)]
        top = {id(node) for body in [tree.body, *blocks] for node in body}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in top:
                names = list(imports_of(ast.unparse(node)))
                hidden += [f"{module}:{node.lineno} {name}" for name, _ in names]
    assert hidden == []


def test_the_walk_sees_imports_wherever_they_stand() -> None:
    source = (
        "def f():\n    from clipkit import cli\n    import clipkit.clip\n"
        "from clipkit.config import CLIPConfig\n"
    )
    assert [name for name, _ in imports_of(source)] == [
        "clipkit.config",
        "clipkit.cli",
        "clipkit.clip",
    ]
    assert place_of("clipkit.models.layers") == (4, "clipkit.models")
