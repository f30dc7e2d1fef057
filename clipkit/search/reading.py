"""Read, tell apart and prepare images in threads, while the model encodes those before them."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Container, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from clipkit.errors import ConfigError
from clipkit.search.entries import DIGEST
from clipkit.search.scan import Found

_AHEAD = 64  # images that are prepared before the model takes them, beside those of the threads


class Read(NamedTuple):
    """Hold an image that was read."""

    file: Found
    digest: bytes
    prepared: Any = None  # for the model; None where the content is known, or cannot be read
    problem: str = ""  # why it cannot be read


def read_ahead(
    files: Iterable[Found],
    prepare: Callable[[bytes], Any],
    known: Container[bytes],
    workers: int,
) -> Generator[Read, None, None]:
    """Yield files in their order, each read, and prepared unless its content is known.

    Pillow and torch let other threads work while they decode and resize. At most `_AHEAD` images
    are held at a time.

    Args:
        files: to read.
        prepare: from the bytes of a file to what the model takes; raises ValueError if it cannot.
        known: digests of contents that have a feature already.
        workers: threads.
    """

    def read(file: Found) -> Read:
        return _read(file, prepare, known)

    waiting: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        try:
            for file in files:
                waiting.append(threads.submit(read, file))
                if len(waiting) >= _AHEAD + workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def digest_of(content: bytes) -> bytes:
    """Return the digest by which an image is known again under another name."""
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


def _read(file: Found, prepare: Callable[[bytes], Any], known: Container[bytes]) -> Read:
    try:
        with open(file.path, "rb") as opened:
            content = opened.read()
    except OSError as error:
        return Read(file, bytes(DIGEST), problem=error.strerror or str(error))
    digest = digest_of(content)
    if digest in known:
        return Read(file, digest)
    try:
        return Read(file, digest, prepare(content))
    except ValueError as error:  # an ImageError
        problem = str(error).replace(f"the image in {len(content):,} bytes", "it")
        return Read(file, digest, problem=problem)


def choose_workers(workers: int | str) -> int:
    """Return the number of threads: as many as there are processors, at most 8, for "auto".

    Raises:
        ConfigError: if it is anything else than "auto" or an integer from 1 on.
    """
    if workers == "auto":
        return min(8, available_processors())
    if not isinstance(workers, int) or workers < 1:
        raise ConfigError(f'workers must be "auto" or an integer from 1 on, not {workers!r:.60}')
    return workers


def available_processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
