"""Lock folders, so that two processes do not write into one at once."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from clipkit.errors import OutputError
from clipkit.files.output import check_output, typed_write_errors

LOCK = ".lock"

_held: set[int] = set()  # descriptors of the lock files that are ours


@contextmanager
def lock(folder: str | os.PathLike[str]) -> Generator[None, None, None]:
    """Hold a folder for this process alone, so that two do not write into it at once.

    The system frees it when the process ends, however it ends. A file that a killed process left
    locks nothing. Where the file system knows no locks, nothing is locked.

    Args:
        folder: made if it does not exist. The lock is the file `.lock` in it.

    Raises:
        OutputError: if another process, or another place in this one, holds it. The message has
            the process's id.

    Example:
        with lock("run"):
            ...
    """
    folder = Path(folder)
    check_output(folder, "folder")
    with typed_write_errors(folder, folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _take(folder / LOCK, 0)
    try:
        yield
    finally:
        _free(folder / LOCK, descriptor)


@contextmanager
def holding(path: Path, wait: float = 0.0) -> Generator[None, None, None]:
    """Hold a lock file. Raise `OutputError` if another holds it for longer than `wait` seconds."""
    descriptor = _take(path, wait)
    try:
        yield
    finally:
        _free(path, descriptor)


def _take(path: Path, wait: float) -> int:
    """Return the descriptor of a lock file that is ours now."""
    deadline = time.monotonic() + wait
    while (descriptor := _try_lock(path)) is None:
        if time.monotonic() >= deadline:
            raise OutputError(
                f"cannot write to {str(path.parent)!r}: process {_holder(path)} is writing there. "
                "Wait until it has ended, end it, or choose another folder"
            )
        time.sleep(0.01)
    _held.add(descriptor)
    return descriptor


def _free(path: Path, descriptor: int) -> None:
    """Remove and free a lock file that is ours."""
    if descriptor not in _held:  # this process is a fork of the one that took it
        return
    _held.discard(descriptor)
    try:
        if _is_at(path, descriptor):  # it may be gone along with its folder
            path.unlink()
    except OSError:  # Windows removes no open file
        pass
    finally:
        os.close(descriptor)


def _leave_to_parent() -> None:
    """Close the lock files of the process that this one is a fork of.

    Otherwise workers that read data would keep a lock for seconds after their trainer was killed.
    """
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave_to_parent)


def _holder(path: Path) -> str:
    """Return the id of the process that holds a lock file, as far as the file tells."""
    try:
        return path.read_text("ascii").strip() or "unknown"
    except (OSError, ValueError):
        return "unknown"


def _try_lock(path: Path) -> int | None:
    """Open and lock a file that then holds our process's id; return None if another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock_descriptor(descriptor):
            os.close(descriptor)
            return None
        # The one who had it before removes the file. Then this would lock a file without a name.
        if not _is_at(path, descriptor):
            os.close(descriptor)
            return _try_lock(path)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether the file at `path` is the open one."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _lock_descriptor(descriptor: int) -> bool:
    """Lock an open file, and return whether that worked. It works where there are no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the id, which stays readable
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True
