"""Let a package show names whose modules are only imported when they are asked for.

A program that never computes, such as a search whose query is known, must not wait for torch.
"""

import importlib
import sys
from collections.abc import Callable, Mapping


def late_names(
    package: str,
    homes: Mapping[str, tuple[str, ...]],
    missing: Callable[[str], Exception] | None = None,
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package.

    Args:
        package: its dotted name.
        homes: the module of each name; the package itself for its own modules.
        missing: makes the error for any other name; an AttributeError if not given.

    Example:
        __getattr__, __dir__ = late_names("clipkit", {"clipkit.clip": ("CLIP", "load")})
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> object:
        home = home_of.get(name)
        if home is None:
            if missing is not None:
                raise missing(name)
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name)
        if home == package:
            return importlib.import_module(f"{package}.{name}")
        value: object = getattr(importlib.import_module(home), name)
        setattr(sys.modules[package], name, value)  # from now on it is found without this
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of})

    return get, list_names
