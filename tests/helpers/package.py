"""The source files of the package and of the tests, for the tests that read them."""

from pathlib import Path

import clipkit

PACKAGE = Path(clipkit.__file__).parent
TESTS = Path(__file__).parents[1]


def _name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


# Every module of the package by its dotted name.
MODULES = {_name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
