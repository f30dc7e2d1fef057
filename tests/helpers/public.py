"""What is public: the names of the doors, and the functions behind them, for the tests of both."""

import functools
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

# Modules whose names are public.
DOORS = (
    "clipkit",
    "clipkit.errors",
    "clipkit.inspect",
    "clipkit.inspect.faithfulness",
    "clipkit.inspect.plots",
    "clipkit.search",
    "clipkit.classify.metrics",
    "clipkit.openai",
    "clipkit.openai.model",
)


@dataclass(frozen=True)
class Part:
    """Hold a public function or method with the docstring that speaks of it.

    `owner` is the class of a method, whose other methods it may call.
    """

    name: str
    text: str
    function: Any  # a FunctionType would be taken for a method
    owner: type | None = None


def names_of(door: str) -> list[str]:
    """Return the public names of a module: `__all__`, or what it defines without one."""
    module = importlib.import_module(door)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == door and is_part(value)
    ]


def is_part(value: object) -> bool:
    """Return whether a value is a class or a function, and so has a docstring of its own."""
    return isinstance(value, type | FunctionType)


@functools.cache
def public_objects() -> dict[str, Any]:
    """Return each public class and function by its name behind its door, each once."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for door in DOORS:
        module: ModuleType = importlib.import_module(door)
        for name in names_of(door):
            value = getattr(module, name)
            if is_part(value) and id(value) not in seen:
                seen.add(id(value))
                found[f"{door}.{name}"] = value
    return found


def parts_of(name: str, value: Any) -> Iterator[Part]:
    """Yield a function, or the public methods of a class, its base classes' of clipkit included."""
    if isinstance(value, FunctionType):
        yield Part(name, inspect.getdoc(value) or "", inspect.unwrap(value))
        return
    about = inspect.cleandoc(value.__doc__ or "")
    taken: set[str] = set()
    for kind in value.__mro__:
        if kind.__module__.split(".")[0] != "clipkit":
            continue
        for key, member in vars(kind).items():
            function = function_of(member)
            if key in taken or function is None or not is_shown(key):
                continue
            taken.add(key)
            text = inspect.cleandoc(function.__doc__ or about)
            if key in ("__init__", "__post_init__"):
                text = inspect.cleandoc(kind.__doc__ or "") if kind is not value else about
            yield Part(f"{name}.{key}", text, function, value)


def is_shown(key: str) -> bool:
    """Return whether a member of a class is public, or what calling the class does."""
    return key in ("__init__", "__post_init__", "__call__") or not key.startswith("_")


def function_of(member: object) -> FunctionType | None:
    """Return the function that a member of a class is made of, if it is written in clipkit."""
    if isinstance(member, property):
        member = member.fget
    elif isinstance(member, functools.cached_property):
        member = member.func
    elif isinstance(member, classmethod | staticmethod):
        member = member.__func__
    if not isinstance(member, FunctionType):
        return None
    function = inspect.unwrap(member)
    is_ours = function.__module__.split(".")[0] == "clipkit"
    return function if is_ours and function.__code__.co_filename.endswith(".py") else None
