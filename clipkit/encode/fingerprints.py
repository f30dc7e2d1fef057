"""Know models, and what features were made of, again by fingerprints."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from torch import Tensor, nn

from clipkit.data.pictures import ImageSet, tensor_bytes
from clipkit.encode.image_encoder import ImageModel, image_tower
from clipkit.errors import ConfigError
from clipkit.models.kernels import PackedWeight

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Fields of configs that version 0.1.0 did not have. Every field that is added belongs here.
_NEW_FIELDS = ("end_of_text",)


def fingerprint(module: nn.Module, *about: object) -> str:
    """Return a digest by which a module and what is said about it are known again.

    It covers the names and classes of all modules, their settings, and names, dtypes, shapes and
    values of all weights and buffers. It says nothing about how torch prints them, which changes
    from version to version, nor of a config's fields that are at their defaults, so a version may
    add some.

    Args:
        module: with its weights on any device.
        about: values that print alike when they are alike, such as a config.

    Returns:
        SHA-256 in hexadecimal.

    Example:
        known = fingerprint(model.visual, model.config)
    """
    digest = hashlib.sha256(repr([_print_set_fields(value) for value in about]).encode())
    for name, inner in cast("Iterable[tuple[str, nn.Module]]", module.named_modules()):
        digest.update(repr((name, type(inner).__name__, _settings(inner))).encode())
    for name, value in _values(module):
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()


def fingerprint_0_1_0(module: nn.Module, *about: object) -> str:
    """Return the digest that version 0.1.0 wrote into files, to know those again.

    It depends on how torch prints modules, and so on the version of torch. Nothing new is written
    with it.
    """
    printed = (*map(_print_as_in_0_1_0, about), nn.Module.__repr__(module))
    digest = hashlib.sha256(repr(tuple(map(_Printed, printed))).encode())
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name}{value.dtype}".encode())
        digest.update(tensor_bytes(_dense(value)))
    return digest.hexdigest()


class Fingerprints:
    """Hold the fingerprints of what features are made of. They are only computed when asked for.

    Args:
        model: what encodes.
        image_set: the images.
        settings: plain options that decide what the features are, by name.
    """

    def __init__(self, model: ImageModel, image_set: ImageSet, settings: dict[str, Any]) -> None:
        self._model = model
        self._image_set = image_set
        self._settings = settings

    @cached_property
    def by_name(self) -> dict[str, Any]:
        """Return the fingerprints and the settings by name.

        Raises:
            ConfigError: if the model is no torch module.
        """
        tower = image_tower(self._model)
        if tower is None:
            raise ConfigError(
                f"{type(self._model).__name__} is no torch module, and its weights cannot be known "
                "again: leave out= and shared= away"
            )
        weights = fingerprint(tower, getattr(self._model, "config", None))
        return self._named(weights, self._image_set.fingerprint())

    @cached_property
    def by_name_in_0_1_0(self) -> dict[str, Any]:
        """Return what version 0.1.0 would have written in place of `by_name`."""
        tower = image_tower(self._model)
        assert tower is not None  # `by_name` is asked for first
        weights = fingerprint_0_1_0(tower, getattr(self._model, "config", None))
        return self._named(weights, self._image_set.fingerprint(as_in_0_1_0=True))

    def _named(self, weights: str, images: str) -> dict[str, Any]:
        return {"weights": weights, "images or transform": images, **self._settings}


class _Printed:
    """Print as a text that stands for something else."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _print_set_fields(value: object) -> str:
    """Return how a value prints; of a config only the fields that differ from their defaults."""
    if not _is_config(value):
        return repr(value)
    return _print_fields(value, _print_set_fields, [f for f in fields(value) if _is_set(f, value)])


def _print_as_in_0_1_0(value: object) -> str:
    """Return how a value printed in version 0.1.0. Configs had no new fields then."""
    if not _is_config(value):
        return repr(value)
    old = [f for f in fields(value) if f.name not in _NEW_FIELDS or _is_set(f, value)]
    return _print_fields(value, _print_as_in_0_1_0, old)


def _print_fields(
    config: object, print_value: Callable[[object], str], shown: list[Field[Any]]
) -> str:
    """Return a config with some of its fields, as a dataclass prints itself."""
    values = [f"{f.name}={print_value(getattr(config, f.name))}" for f in shown]
    return f"{type(config).__name__}({', '.join(values)})"


def _is_config(value: object) -> TypeGuard["DataclassInstance"]:
    return is_dataclass(value) and not isinstance(value, type)


def _is_set(field: Field[Any], config: object) -> bool:
    """Return whether a field differs from its default, if it has one."""
    factory = field.default_factory
    default = field.default if factory is MISSING else factory()
    return getattr(config, field.name) != default


def _values(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of all weights and buffers, with bytes to look at."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        yield name, _dense(value)
        # Levels of int8 stand for other numbers with other steps.
        if type(value) is PackedWeight and value.scales is not None:
            yield f"{name}.steps", value.scales.steps


def _dense(value: Tensor) -> Tensor:
    """Return a tensor with bytes to look at, of one that oneDNN may have laid out its own way."""
    return value.to_dense() if value.is_mkldnn else value


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """Return the plain values by which modules with the same weights may compute otherwise.

    They are the arguments that the module was made with, as far as it keeps them. A new version of
    torch may add other attributes.
    """
    arguments = inspect.signature(type(module).__init__).parameters
    kept = [(name, vars(module)[name]) for name in sorted(arguments) if name in vars(module)]
    return [(name, value) for name, value in kept if _is_plain(value)]


def _is_plain(value: object) -> bool:
    """Return whether a value prints alike everywhere: a number, a text, or a tuple of such."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, cast("tuple[object, ...]", value)))
    return isinstance(value, bool | int | float | str | None)
