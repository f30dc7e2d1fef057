"""Signals that ask a run to stop: it ends its step and saves, instead of losing what it did."""

import importlib
import importlib.util
import signal
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

# torchrun, schedulers and `kill` send SIGTERM; a terminal sends SIGINT for Ctrl-C.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Remember the signal that asked a run to stop; None as long as there was none."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def handle(self, number: int, frame: object) -> None:
        """Note a signal. A second Ctrl-C raises KeyboardInterrupt at once, wherever the run is."""
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


@contextmanager
def stop_requests() -> Generator[StopRequest]:
    """Yield a request that SIGTERM and SIGINT (Ctrl-C) fill in, instead of ending the process.

    Only the main thread can listen to signals: elsewhere nothing fills it in. A signal that the
    process ignores, as jobs in the background of a shell do with SIGINT, stays ignored.
    """
    request = StopRequest()
    _import_what_torch_would_at_the_end()
    with ExitStack() as undo:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                before = signal.getsignal(number)
                # None stands for a handler of a C library, which could not be put back.
                if before not in (signal.SIG_IGN, None):
                    signal.signal(number, request.handle)
                    undo.callback(signal.signal, number, before)
        yield request


def _import_what_torch_would_at_the_end() -> None:
    """Import tabulate, if it is there, before a Ctrl-C may come.

    torch._dynamo imports it as Python ends. It then makes its classes by `eval`, and Python forgets
    that Ctrl-C ended the program: the shell is told an ordinary failure, and goes on with its loop.
    """
    if importlib.util.find_spec("tabulate") is not None:
        importlib.import_module("tabulate")


def stopped_by(number: signal.Signals, message: str) -> BaseException:
    """Return what ends a program after it was asked to stop: as Python does it for the signal.

    Returns:
        KeyboardInterrupt for Ctrl-C; for SIGTERM a SystemExit with the code that shells use.
    """
    if number == signal.SIGINT:
        return KeyboardInterrupt(message)
    return SystemExit(128 + number)
