"""Read, tell apart, prepare and encode images, several things at a time."""

import hashlib
import os
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from clipkit.errors import ConfigError
from clipkit.search.entries import DIGEST
from clipkit.search.scan import Found
from clipkit.search.store import Floats
from clipkit.threads import MOST, images_at_once, in_order, reading_ahead, sharing_threads

_MOST_KNOWN = 16  # times as many images in a batch as it has to encode


class Prepares(Protocol):
    """Describe what prepares and encodes images.

    Attributes:
        takes_threads: whether several threads may encode at once.
    """

    @property
    def takes_threads(self) -> bool: ...

    def prepare(self, content: bytes) -> Any:
        """Return an image as `encode` takes it; raise ValueError if it cannot be read."""
        ...

    def encode(self, prepared: Sequence[Any]) -> Floats:
        """Return the features of prepared images, (n, D)."""
        ...


class Read(NamedTuple):
    """Hold an image that was read."""

    file: Found
    digest: bytes
    prepared: Any = None  # for the model; None where the content is known, or cannot be read
    problem: str = ""  # why it cannot be read


class Encoded(NamedTuple):
    """Hold images that were read, and the features of their contents that were not known."""

    images: list[Read]
    digests: list[bytes]  # of n contents
    features: Floats  # (n, D)


class Reader:
    """Read files, and encode what is not known.

    Args:
        encoder: of images.
        known: digests of contents that have a feature already.
        workers: threads.
        batch_size: images encoded at once, at most.
    """

    def __init__(
        self, encoder: Prepares, known: Container[bytes], workers: int, batch_size: int
    ) -> None:
        self._encoder = encoder
        self._known = known
        self._workers = workers
        self._batch_size = batch_size

    def encode(self, files: Sequence[Found]) -> Generator[Encoded, None, None]:
        """Yield all files in their order, in batches.

        A model on a CPU would take away the processors of threads that read beside it. There each
        thread encodes what it has read, with its share of the processors.
        """
        if self._encoder.takes_threads and self._workers > 1:
            return self._side_by_side(files)
        return self._one_after_the_other(files)

    def _side_by_side(self, files: Sequence[Found]) -> Generator[Encoded, None, None]:
        size = images_at_once(self._batch_size, self._workers)
        size = min(size, -(-len(files) // self._workers))  # a share for each thread
        batches = [files[start : start + size] for start in range(0, len(files), size)]
        count = min(self._workers, len(batches))
        with sharing_threads(count) as threads:
            yield from in_order(threads, self._read_and_encode, batches, ahead=count + 1)

    def _read_and_encode(self, files: Sequence[Found]) -> Encoded:
        return self._encode([self._read(file) for file in files])

    def _one_after_the_other(self, files: Sequence[Found]) -> Generator[Encoded, None, None]:
        """Encode in this thread, while others read and prepare. Pillow and torch let them work."""
        with reading_ahead(self._workers, self._read, files) as images:
            for batch in _batches(images, self._batch_size):
                yield self._encode(batch)

    def _read(self, file: Found) -> Read:
        try:
            with open(file.path, "rb") as opened:
                content = opened.read()
        except OSError as error:
            return Read(file, bytes(DIGEST), problem=error.strerror or str(error))
        digest = digest_of(content)
        if digest in self._known:
            return Read(file, digest)
        try:
            return Read(file, digest, self._encoder.prepare(content))
        except ValueError as error:  # an ImageError
            problem = str(error).replace(f"the image in {len(content):,} bytes", "it")
            return Read(file, digest, problem=problem)

    def _encode(self, images: list[Read]) -> Encoded:
        """Encode a batch, each content of it once."""
        new: dict[bytes, Any] = {}
        for image in images:
            if image.prepared is not None and image.digest not in self._known:
                new.setdefault(image.digest, image.prepared)
        features = self._encoder.encode(list(new.values())) if new else np.zeros((0, 0), np.float32)
        held = [image._replace(prepared=None) for image in images]
        return Encoded(held, list(new), features)


def digest_of(content: bytes) -> bytes:
    """Return the digest by which an image is known again under another name."""
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


def choose_workers(workers: int | str) -> int:
    """Return the number of threads: as many as there are processors, at most 8, for "auto".

    Raises:
        ConfigError: if it is anything else than "auto" or an integer from 1 on.
    """
    if workers == "auto":
        return min(MOST, available_processors())
    if not isinstance(workers, int) or workers < 1:
        raise ConfigError(f'workers must be "auto" or an integer from 1 on, not {workers!r:.60}')
    return workers


def available_processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _batches(images: Iterable[Read], size: int) -> Iterator[list[Read]]:
    """Yield images in batches that have `size` to encode, or are the last."""
    batch: list[Read] = []
    to_encode = 0
    for image in images:
        batch.append(image)
        to_encode += image.prepared is not None
        if to_encode == size or len(batch) >= _MOST_KNOWN * size:
            yield batch
            batch, to_encode = [], 0
    if batch:
        yield batch
