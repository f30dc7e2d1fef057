"""Know models again by fingerprints of their weights."""

import hashlib
import inspect
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn

from clipkit.data.pictures import tensor_bytes


def fingerprint(module: nn.Module, *about: object) -> str:
    """Return a digest by which a module and what is said about it are known again.

    It covers the names and classes of all modules, their settings, and names, dtypes, shapes and
    values of all weights and buffers. It says nothing about how torch prints them, which changes
    from version to version.

    Args:
        module: with its weights on any device.
        about: values that print alike when they are alike, such as a config.

    Returns:
        SHA-256 in hexadecimal.

    Example:
        known = fingerprint(model.visual, model.config)
    """
    digest = hashlib.sha256(repr(about).encode())
    for name, inner in cast("Iterable[tuple[str, nn.Module]]", module.named_modules()):
        digest.update(repr((name, type(inner).__name__, _settings(inner))).encode())
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        value = _dense(value)
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()


def fingerprint_0_1_0(module: nn.Module, *about: object) -> str:
    """Return the digest that version 0.1.0 wrote into files, to know those again.

    It depends on how torch prints modules, and so on the version of torch. Nothing new is written
    with it.
    """
    digest = hashlib.sha256(repr((*about, _Printed(module))).encode())
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name}{value.dtype}".encode())
        digest.update(tensor_bytes(_dense(value)))
    return digest.hexdigest()


class _Printed:
    """Print a module with all that is in it, as torch does, whatever its class prints now."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __repr__(self) -> str:
        return nn.Module.__repr__(self.module)


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
