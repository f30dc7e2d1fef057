"""Bring an index from one state to the next: read what is new, encode it, and write."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from clipkit.errors import ClipkitError, OutputError
from clipkit.search.arrays import map_arrays, write_arrays
from clipkit.search.entries import NO_ROW, Entries, Entry
from clipkit.search.manifest import Manifest
from clipkit.search.reading import Read, read_ahead
from clipkit.search.scan import Scan
from clipkit.search.store import Floats

_SECONDS = 5.0  # between two states: what a process that is killed may lose
_SHARE = 20  # of the time at most that writing states takes
_MAX_FILES = 16  # of features


class Changes(NamedTuple):
    """Count what an update did, in images.

    Attributes:
        added: new ones.
        changed: whose content was another before.
        renamed: known ones that have another name now. They were not encoded again.
        removed: that are not there any more.
        skipped: that cannot be read.
    """

    added: int
    changed: int
    renamed: int
    removed: int
    skipped: int


class Prepares(Protocol):
    """Describe what prepares and encodes images."""

    def prepare(self, content: bytes) -> Any:
        """Return an image as `encode` takes it; raise ValueError if it cannot be read."""
        ...

    def encode(self, prepared: Sequence[Any]) -> Floats:
        """Return the features of prepared images, (n, D)."""
        ...


class Filling:
    """Write the states of one update.

    Args:
        folder: of the index, which this process has locked.
        manifest: of the present state.
        entries: of the present state.
        scan: what differs between it and the files.
    """

    def __init__(self, folder: Path, manifest: Manifest, entries: Entries, scan: Scan) -> None:
        self._folder = folder
        self._manifest = manifest
        self._old = {entry.path: entry for entry in scan.gone}
        self._entries = {entry.path: entry for entry in [*scan.unchanged, *scan.gone]}
        self._found: dict[str, Entry] = {}  # of the files that were to be read
        self._scan = scan
        # What is gone by its name may come back under another one.
        every = (entries[place] for place in range(len(entries)))
        self._rows = {entry.digest: entry.row for entry in every if entry.row != NO_ROW}
        self._next = _rows_in(folder, manifest)
        self._waiting: list[Floats] = []  # features that no file has yet
        self._written = time.monotonic()
        self._cost = 0.0  # seconds that writing a state took

    def run(
        self,
        encoder: Prepares | None,
        *,
        workers: int,
        batch_size: int,
        tell: Callable[[int], object],
    ) -> Changes:
        """Encode what is new, and write a state every few seconds and at the end.

        Args:
            encoder: of new images; None only where there are none.
            workers: threads that read and prepare.
            batch_size: images encoded at once.
            tell: is called with the number of images that are done since it was last called.
        """
        if encoder is not None and self._scan.todo:
            images = read_ahead(self._scan.todo, encoder.prepare, self._rows, workers)
            with closing(images):
                self._encode(encoder, images, batch_size, tell)
        for entry in self._old.values():
            if entry.path not in self._found:
                del self._entries[entry.path]
        self.write(is_last=True)
        return self._changes()

    def write(self, *, is_last: bool = False) -> None:
        """Write the present state, and go over to it in one step.

        Args:
            is_last: whether all is done. Until then, images that are gone stay in the index: their
                content may come back under another name, also after this process was killed.
        """
        start = time.monotonic()
        state = self._manifest.state + 1
        features = list(self._manifest.features)
        if self._waiting:
            name = f"features-{state}.safetensors"
            half = np.concatenate(self._waiting).astype(np.float16)
            write_arrays({"features": half}, self._folder / name)
            features.append(name)
            self._waiting = []
        entries = Entries.of(self._entries.values())
        if is_last:
            features, entries = self._compact(features, entries, state)
        manifest = replace(
            self._manifest, state=state, entries=f"entries-{state}.safetensors", features=features
        )
        entries.write(self._folder / manifest.entries)
        manifest.write(self._folder)
        self._manifest = manifest
        manifest.remove_others(self._folder)
        self._written = time.monotonic()
        self._cost = self._written - start

    def _encode(
        self,
        encoder: Prepares,
        images: Iterable[Read],
        batch_size: int,
        tell: Callable[[int], object],
    ) -> None:
        try:
            for batch in _batches(images, batch_size):
                self._take(encoder, batch)
                tell(len(batch))
                if self._is_time():
                    self.write()
        except OutputError:
            raise
        except BaseException:  # Ctrl-C, or a device that fails: what is done stays done
            with suppress(ClipkitError):
                self.write()
            raise

    def _take(self, encoder: Prepares, batch: Sequence[Read]) -> None:
        """Encode a batch, and keep an entry for each of its images."""
        new: dict[bytes, Any] = {}
        for image in batch:
            if image.prepared is not None and image.digest not in self._rows:
                new.setdefault(image.digest, image.prepared)
        if new:
            self._waiting.append(encoder.encode(list(new.values())))
            self._rows.update(zip(new, range(self._next, self._next + len(new)), strict=True))
            self._next += len(new)
        for image in batch:
            file = image.file
            row = NO_ROW if image.problem else self._rows[image.digest]
            entry = Entry(file.name, file.size, file.modified, image.digest, row, image.problem)
            self._entries[file.name] = entry
            self._found[file.name] = entry

    def _changes(self) -> Changes:
        """Count what was found. A new name of a content that lost its own is a renamed image."""
        lost = Counter(old.digest for old in self._old.values() if old.path not in self._found)
        counts = dict.fromkeys(Changes._fields, 0)
        for entry in self._found.values():
            old = self._old.get(entry.path)
            if entry.problem:
                counts["skipped"] += 1
            elif old is not None:
                counts["changed"] += old.digest != entry.digest  # or it was only touched
            elif lost[entry.digest]:
                lost[entry.digest] -= 1
                counts["renamed"] += 1
            else:
                counts["added"] += 1
        counts["removed"] = sum(lost.values())
        return Changes(**counts)

    def _is_time(self) -> bool:
        """Return whether the next state is to be written, of ever larger ones ever more rarely."""
        return time.monotonic() - self._written > max(_SECONDS, _SHARE * self._cost)

    def _compact(
        self, features: list[str], entries: Entries, state: int
    ) -> tuple[list[str], Entries]:
        """Write one file in place of many, or of files whose rows are mostly of no image."""
        used = np.unique(entries.rows[entries.rows != NO_ROW])
        total = self._next
        if len(features) <= _MAX_FILES and 2 * len(used) >= total:
            return features, entries
        blocks = [map_arrays(self._folder / name)["features"] for name in features]
        name = f"features-{state}.safetensors"
        if name in features:
            name = f"features-{state}-all.safetensors"
        kept = np.concatenate(blocks)[used] if blocks else np.empty((0, 0), np.float16)
        if not len(used):
            self._next, self._rows = 0, {}
            return [], entries
        write_arrays({"features": kept}, self._folder / name)
        rows = np.searchsorted(used, entries.rows)
        moved = replace(entries, rows=np.where(entries.rows == NO_ROW, NO_ROW, rows))
        self._entries = {entry.path: entry for entry in (moved[i] for i in range(len(moved)))}
        self._rows = {one.digest: one.row for one in self._entries.values() if one.row != NO_ROW}
        self._next = len(used)
        return [name], moved


def _batches(images: Iterable[Read], size: int) -> Iterator[list[Read]]:
    """Yield images in batches that have `size` to encode, or are the last."""
    batch: list[Read] = []
    to_encode = 0
    for image in images:
        batch.append(image)
        to_encode += image.prepared is not None
        if to_encode == size or len(batch) >= 16 * size:
            yield batch
            batch, to_encode = [], 0
    if batch:
        yield batch


def _rows_in(folder: Path, manifest: Manifest) -> int:
    """Return the number of rows in the files of the present state."""
    return sum(len(map_arrays(folder / name)["features"]) for name in manifest.features)
