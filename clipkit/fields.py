"""Check values that callers give, and fields of dataclasses, which may come from any JSON file."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral
from typing import Any, ClassVar, Protocol, TypeVar, cast

from clipkit.errors import ConfigError

# No count or size of a CLIP comes near this. Products of a few such sizes still fit into 64 bits.
MAX_SIZE = 1 << 24


class _Dataclass(Protocol):
    """Describe any dataclass to the type checker."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Config = TypeVar("Config", bound=_Dataclass)


def is_positive(value: object) -> bool:
    """Return whether `value` is an integer above 0. A bool is no integer here."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def read_count(name: str, value: object, lowest: int) -> int:
    """Return an integer of Python or NumPy as an int.

    Args:
        name: what it is, for the message.
        value: the integer. A bool is none.
        lowest: the least that it may be.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < lowest:
        raise ConfigError(f"{name} must be an integer from {lowest} on, not {value!r:.60}")
    return int(value)


def is_number(value: object) -> bool:
    """Return whether `value` is a finite number. A bool is no number here."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # The comparison also works for integers that are too large for a float, and is false for NaN.
    return abs(value) <= sys.float_info.max


def as_sequence(value: object) -> Sequence[object] | None:
    """Return a list or a tuple as it is, and None for anything else."""
    return cast("Sequence[object]", value) if isinstance(value, list | tuple) else None


def read_sides(value: object, name: str, largest: int) -> tuple[int, int]:
    """Return (height, width), where one integer stands for both.

    Args:
        value: an integer, or a pair of integers.
        name: of the field, for the message.
        largest: the most that a side may have.

    Raises:
        ConfigError: for anything else.
    """
    sides = as_sequence(value)
    if sides is None:
        sides = (value, value)
    if len(sides) != 2 or not all(is_positive(side) for side in sides):
        raise ConfigError(
            f"{name} must be a positive integer or a (height, width) pair of them, not {value!r}"
        )
    height, width = cast("Sequence[int]", sides)
    if max(height, width) > largest:
        raise ConfigError(f"{name} must be at most {largest:,} pixels a side, not {value!r}")
    return height, width


def read_channels(value: object, name: str) -> tuple[float, float, float]:
    """Return three finite numbers, one for each of red, green and blue.

    Raises:
        ConfigError: for anything else.
    """
    numbers = as_sequence(value)
    if numbers is None or len(numbers) != 3 or not all(is_number(number) for number in numbers):
        raise ConfigError(
            f"{name} must be three numbers, one per channel and all finite, not {value!r}"
        )
    red, green, blue = cast("Sequence[float]", numbers)
    return red, green, blue


def check_positive(config: object, *names: str) -> None:
    """Raise `ConfigError` unless the named fields of `config` are integers above 0."""
    for name in names:
        value = getattr(config, name)
        if not is_positive(value):
            raise ConfigError(
                f"{type(config).__name__}.{name} must be a positive integer, not {value!r}"
            )


def check_sizes(config: object, *names: str, largest: int = MAX_SIZE) -> None:
    """Raise `ConfigError` unless the named fields are integers from 1 to `largest`."""
    check_positive(config, *names)
    for name in names:
        value = getattr(config, name)
        if value > largest:
            raise ConfigError(
                f"{type(config).__name__}.{name} must be at most {largest:,}, not {value:,}"
            )


def check_choice(config: object, name: str, choices: tuple[object, ...]) -> None:
    """Raise `ConfigError` unless the named field of `config` is one of the choices."""
    value = getattr(config, name)
    if value not in choices:
        raise ConfigError(f"{type(config).__name__}.{name} must be one of {choices}, not {value!r}")


def build(cls: type[Config], values: dict[str, Any]) -> Config:
    """Make a dataclass from a dict of its fields.

    Raises:
        ConfigError: if a key is unknown or missing, or a value is impossible. The message names it.
    """
    names = [f.name for f in fields(cls)]
    if unknown := sorted(set(values) - set(names), key=str):
        raise ConfigError(f"{cls.__name__} has no field {unknown}; it has {names}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error
