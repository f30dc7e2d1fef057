"""Know models again by fingerprints of their weights."""

import hashlib
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn

from clipkit.data.pictures import tensor_bytes

# Attributes by which modules with the same weights compute different things. Only these are looked
# at, since a new version of torch may add others to its modules.
_SETTINGS = (
    "approximate",
    "ceil_mode",
    "dilation",
    "end_dim",
    "eps",
    "groups",
    "heads",
    "kernel_size",
    "mode",
    "negative_slope",
    "num_heads",
    "output_size",
    "padding",
    "padding_mode",
    "scale_factor",
    "size",
    "start_dim",
    "stride",
)


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
        settings = [(key, _plain(vars(inner)[key])) for key in _SETTINGS if key in vars(inner)]
        digest.update(repr((name, type(inner).__name__, settings)).encode())
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


def _plain(value: Any) -> Any:
    """Return a setting in a form that prints alike everywhere."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, cast("tuple[Any, ...]", value)))
    if isinstance(value, bool | int | float | str | None):
        return value
    return type(value).__name__
