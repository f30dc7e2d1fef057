"""Replace the content of a folder as one, whatever moment a process is killed at."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from clipkit.errors import OutputError
from clipkit.files.locks import LOCK, holding
from clipkit.files.output import check_output, typed_write_errors

# These names lie inside of the folder that is written.
_STAGED = ".new-"  # begins the name of a folder that is not whole yet
_SWAP = ".swap"  # a whole one, about to take the old files' places
_REMOVE = ".remove"  # lies in the swap and lists the old files that have no successor
_SWAP_LOCK = ".swap.lock"

_WAIT = 60.0  # seconds for another process to end its swap, which takes milliseconds


@contextmanager
def replacing_folder(
    folder: str | os.PathLike[str], owned: Iterable[str] = ()
) -> Generator[Path, None, None]:
    """Give an empty folder to write to. At the end its content takes its place in `folder`, as one.

    An error inside leaves `folder` as it was. A process that is killed, at any moment, leaves the
    old content or the new one: the new content counts from one rename on, and `settle` completes
    what is left to do. Readers of such a folder call `settle` first. Whatever else lies in
    `folder`, a README for instance, stays where it is.

    Args:
        folder: made if it does not exist. It may be the current folder, a link or a mount point.
        owned: names of old files and folders to remove if the new content has none of that name.

    Raises:
        OutputError: if the folder cannot be written.

    Example:
        with replacing_folder("model") as fresh:
            (fresh / "config.json").write_text("{}")
            (fresh / "merges.txt").write_text("")
    """
    folder = Path(folder)
    check_output(folder, "folder")
    is_new = not folder.exists()
    staged = folder / f"{_STAGED}{uuid.uuid4().hex}"
    with typed_write_errors(folder, staged):
        try:
            with _staging(folder, staged):
                yield staged
                with holding(folder / _SWAP_LOCK, _WAIT):
                    _finish_swap(folder)
                    _write_removals(folder, staged, owned)
                    os.rename(staged, folder / _SWAP)  # from here on the new content counts
                    _finish_swap(folder)
        except OutputError as error:  # of a file in the staged folder, which is nobody's concern
            if staged.name not in str(error):
                raise
            hidden = OutputError(str(error).replace(f"{staged.name}{os.sep}", ""))
            raise hidden from error
        finally:
            if is_new:
                with contextlib.suppress(OSError):  # it stays if anything is in it
                    folder.rmdir()


def settle(folder: str | os.PathLike[str]) -> None:
    """Complete what a process that was killed in `replacing_folder` had begun to swap in.

    It costs one look at the folder where there is nothing to do.

    Raises:
        OutputError: if there is something to do and the folder cannot be written.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / _SWAP):
        return
    with typed_write_errors(folder, folder), holding(folder / _SWAP_LOCK, _WAIT):
        _finish_swap(folder)


def _write_removals(folder: Path, staged: Path, owned: Iterable[str]) -> None:
    """Write down which old files have no successor, for whoever finishes the swap."""
    old = [name for name in owned if not (staged / name).exists() and (folder / name).exists()]
    (staged / _REMOVE).write_text(json.dumps(old), "utf-8")


def _finish_swap(folder: Path) -> None:
    """Move the content of a swap to its places. Each step may be repeated after a kill."""
    swap = folder / _SWAP
    if not swap.is_dir():
        return
    removals = swap / _REMOVE
    if removals.exists():
        for name in json.loads(removals.read_text("utf-8")):
            _remove(folder / name)
        removals.unlink()
    for entry in sorted(swap.iterdir()):
        place = folder / entry.name
        if place.is_dir() or entry.is_dir():
            _remove(place)
        os.replace(entry, place)
    swap.rmdir()


def _remove(path: Path) -> None:
    """Remove a file or a whole folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _staging(folder: Path, staged: Path) -> Generator[None, None, None]:
    """Make a folder to write to, keep other processes from removing it, and remove it.

    Its lock lies beside it. It is taken before there is a folder, and freed when that is gone, so
    nobody takes the folder of a live process for an abandoned one.
    """
    with typed_write_errors(folder, folder):
        folder.mkdir(parents=True, exist_ok=True)
    with holding(_lock_of(staged)):
        try:
            staged.mkdir()
            _remove_abandoned(folder, staged)
            yield
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _lock_of(staged: Path) -> Path:
    """Return the path of the lock of an unfinished folder."""
    return staged.with_name(staged.name + LOCK)


def _remove_abandoned(folder: Path, own: Path) -> None:
    """Remove the unfinished folders of processes that were killed. A live one holds its lock."""
    # Of a process that was killed early there is the lock alone.
    names = {path.name.removesuffix(LOCK) for path in folder.glob(f"{_STAGED}*")}
    for name in names - {own.name}:
        with contextlib.suppress(OSError), holding(_lock_of(folder / name)):
            shutil.rmtree(folder / name, ignore_errors=True)
