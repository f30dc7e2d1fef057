"""Import OpenVINO, and NNCF which quantizes its graphs, so that they report nothing and are quiet.

Both would report their use over the network by a package that is imported with them, if it is
there. Without it they go on with a stub of their own.
"""

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from clipkit.errors import ConfigError

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """Return the package openvino.

    Raises:
        ConfigError: if it is not installed.
    """
    if not find_spec("openvino"):
        raise ConfigError(
            "runtime=\"openvino\" needs openvino: pip install 'clipkit-torch[openvino]'"
        )
    with _no_reports("openvino"):
        return import_module("openvino")


def import_nncf() -> Any:
    """Return the package nncf.

    Raises:
        ConfigError: if it is not installed.
    """
    if not find_spec("nncf"):
        raise ConfigError("calibration= needs nncf: pip install 'clipkit-torch[int8]'")
    with _no_reports("nncf"):
        return import_module("nncf")


@contextmanager
def quiet() -> Generator[None, None, None]:
    """Hold back NNCF's bars and all that it logs below errors."""
    console: Any = import_module("rich").get_console()
    logger = logging.getLogger("nncf")
    is_quiet, level = console.quiet, logger.level
    console.quiet = True
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        console.quiet = is_quiet
        logger.setLevel(level)


@contextmanager
def _no_reports(package: str) -> Generator[None, None, None]:
    """Keep the package that reports from being imported with this one.

    Where a program has imported either already, nothing is done.
    """
    if package in sys.modules or _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
