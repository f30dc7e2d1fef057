"""Show on stderr what the library tells through `logging` while a command runs."""

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager

from clipkit.commands.display import is_terminal, tell, warn

_ROWS = "clipkit.training.log"  # tells of rows of figures, for which a terminal has a bar


class _Teller(logging.Handler):
    """Print warnings as the command's own, and all else as it is."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            warn(record.getMessage())
        else:
            tell(record.getMessage())


@contextmanager
def told_logs() -> Generator[None, None, None]:
    """Print what the library logs. On a terminal a bar takes the place of training's figures.

    Example:
        with told_logs():
            train(RunConfig.read(path))
    """
    logger = logging.getLogger("clipkit")
    handler = _Teller()
    if is_terminal(sys.stderr):
        handler.addFilter(lambda record: record.name != _ROWS)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
