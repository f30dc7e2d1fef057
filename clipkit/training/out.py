"""The folder of a run: checked before the work, and held by one run at a time."""

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clipkit import distributed
from clipkit.files import check_output, lock, remove_leftovers
from clipkit.training.log import BOARD, LOG
from clipkit.training.state import CHECKPOINT

MODEL = "model"  # the folder of the trained model in that of a run


def check_run_folder(out: str | os.PathLike[str]) -> Path:
    """Return the folder of a run. It is checked before the work.

    Raises:
        OutputError: if a run cannot be written there.
    """
    check_output(out, "folder")
    folder = Path(out)
    for name in (CHECKPOINT, LOG):
        check_output(folder / name)
    for name in (BOARD, MODEL):
        check_output(folder / name, "folder")
    return folder


@contextmanager
def hold_run_folder(out: Path) -> Generator[None, None, None]:
    """Hold the folder of a run for this run alone, and remove what killed ones left half written.

    The first process holds it for all. Every process must call it.

    Raises:
        OutputError: in all processes, if another run holds it. The message has its process's id.
    """
    with ExitStack() as held:
        distributed.in_all(lambda: _take(out, held) if distributed.is_first() else None)
        yield


def _take(out: Path, held: ExitStack) -> None:
    held.enter_context(lock(out))
    for name in (CHECKPOINT, LOG):
        remove_leftovers(out / name)
