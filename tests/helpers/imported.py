"""Keep what one test imports apart from what others do."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def without_modules(package: str) -> Generator[None, None, None]:
    """Take a package out of the imported ones, and put it back in the place of what came since."""
    present = _take_out(package)
    try:
        yield
    finally:
        _take_out(package)
        sys.modules.update(present)


def _take_out(package: str) -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.split(".")[0] == package]
    return {name: sys.modules.pop(name) for name in names}
