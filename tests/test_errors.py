"""Test that the errors form the tree that is drawn, and that old programs still catch them."""

from collections.abc import Callable

import pytest

import clipkit
from clipkit import errors

Bases = set[str]


def drawing() -> dict[str, Bases]:
    """Return the base classes of every error, by name, as the docstring of errors.py draws them."""
    drawn: dict[str, Bases] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").split("\n\n")[2].splitlines():
        bare = line.replace("├──", "   ").replace("└──", "   ").replace("│", " ")
        name = bare.split()[0]
        depth = (len(bare) - len(bare.lstrip())) // 4
        inside = bare.split("(")[1].split(")")[0] if "(" in bare else ""
        bases = {base.strip() for base in inside.split(",") if base}
        drawn[name] = bases | ({path[depth - 1]} if depth else {"Exception"})
        path[depth:] = [name]
    return drawn


DEFINED = {name: value for name, value in vars(errors).items() if isinstance(value, type)}


def test_the_drawing_names_every_error() -> None:
    assert drawing().keys() == DEFINED.keys()


@pytest.mark.parametrize("name", DEFINED)
def test_each_error_has_the_bases_that_are_drawn(name: str) -> None:
    assert {base.__name__ for base in DEFINED[name].__bases__} == drawing()[name]


@pytest.mark.parametrize("name", DEFINED)
def test_each_error_is_a_clipkit_error_and_a_builtin(name: str) -> None:
    assert issubclass(DEFINED[name], errors.ClipkitError)
    if name != "ClipkitError":
        assert issubclass(DEFINED[name], (ValueError, RuntimeError, OSError, AttributeError))


def test_the_front_door_has_the_root() -> None:
    assert clipkit.ClipkitError is errors.ClipkitError


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clipkit.load("ViT-B/33", "cpu"), "ViT-B/33"),
        (lambda: clipkit.tokenize("dog " * 100), "102 tokens"),
    ],
    ids=["an unknown model", "a text that is too long"],
)
@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_programs_for_openais_package_catch_what_they_did(
    call: Callable[[], object], message: str, kind: type[Exception]
) -> None:
    """OpenAI's functions raise RuntimeError; version 0.1.0 of clipkit raised ValueError alone."""
    with pytest.raises(kind, match=message):
        call()
