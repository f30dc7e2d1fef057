"""Bring an index from one state to the next: read what is new, encode it, and write."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ClipkitError, OutputError
from clipkit.search.arrays import map_arrays, write_arrays
from clipkit.search.entries import NO_ROW, Entries, Entry
from clipkit.search.manifest import Manifest
from clipkit.search.memory import Halves
from clipkit.search.reading import Encoded, Prepares, Reader
from clipkit.search.scan import Scan
from clipkit.search.store import Floats, are_unit

_SECONDS = 5.0  # between two states: what a process that is killed may lose
_SHARE = 20  # of the time at most that writing states takes
_MAX_FILES = 16  # of features
_NO_FEATURE = "the model makes no numbers of it that can be compared"


class Changes(NamedTuple):
    """Count what an update did, in images.

    Attributes:
        added: new ones.
        changed: whose content was another before.
        renamed: known ones that have another name now. They were not encoded again.
        removed: that are not there any more.
        skipped: that cannot be read.

    Example:
        changes = index.update()
        print(changes.added, changes.removed)
    """

    added: int
    changed: int
    renamed: int
    removed: int
    skipped: int


NO_CHANGES = Changes(0, 0, 0, 0, 0)


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
            workers: threads.
            batch_size: images encoded at once.
            tell: is called with the number of images that are done since it was last called.
        """
        if encoder is not None and self._scan.todo:
            reader = Reader(encoder, self._rows, workers, batch_size)
            with closing(reader.encode(self._scan.todo)) as batches:
                self._take_all(batches, tell)
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
        entries = Entries.of(self._entries.values())
        if is_last:
            features, entries = self._compact(features, entries, state)
        manifest = replace(
            self._manifest, state=state, entries=f"entries-{state}.safetensors", features=features
        )
        entries.write(self._folder / manifest.entries)
        manifest.write(self._folder)
        self._manifest = manifest
        self._waiting = []  # not before: after Ctrl-C in the middle of it this is done once more
        manifest.remove_others(self._folder)
        self._written = time.monotonic()
        self._cost = self._written - start

    def _take_all(self, batches: Iterable[Encoded], tell: Callable[[int], object]) -> None:
        try:
            for batch in batches:
                self._take(batch)
                tell(len(batch.images))
                if self._is_time():
                    self.write()
        except OutputError:
            raise
        except BaseException:  # Ctrl-C, or a device that fails: what is done stays done
            with suppress(ClipkitError):
                self.write()
            raise

    def _take(self, batch: Encoded) -> None:
        """Keep the features of a batch, and an entry for each of its images."""
        # Two threads may have encoded the same content.
        new = [place for place, digest in enumerate(batch.digests) if digest not in self._rows]
        if new:
            self._keep([batch.digests[place] for place in new], batch.features[new])
        for image in batch.images:
            file = image.file
            row = self._rows.get(image.digest, NO_ROW)
            problem = image.problem if image.problem or row != NO_ROW else _NO_FEATURE
            entry = Entry(file.name, file.size, file.modified, image.digest, row, problem)
            self._entries[file.name] = entry
            self._found[file.name] = entry

    def _keep(self, digests: Sequence[bytes], features: Floats) -> None:
        """Keep features, (n, D), by the digests of their images, if they are of unit length.

        In half precision numbers may be too large, and one such feature would spoil every search.
        """
        is_sound = are_unit(features)  # (n,)
        kept = [digest for digest, own in zip(digests, is_sound, strict=True) if own]
        self._waiting.append(features[is_sound])
        self._rows.update(zip(kept, range(self._next, self._next + len(kept)), strict=True))
        self._next += len(kept)

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
        if not len(used):
            return [], entries
        kept = _rows_of([map_arrays(self._folder / name)["features"] for name in features], used)
        name = f"features-{state}.safetensors"
        if name in features:
            name = f"features-{state}-all.safetensors"
        write_arrays({"features": kept}, self._folder / name)
        rows = np.searchsorted(used, entries.rows)  # (n,)
        return [name], replace(entries, rows=np.where(entries.rows == NO_ROW, NO_ROW, rows))


def _rows_in(folder: Path, manifest: Manifest) -> int:
    """Return the number of rows in the files of the present state."""
    return sum(len(map_arrays(folder / name)["features"]) for name in manifest.features)


def _rows_of(blocks: Sequence[Halves], rows: NDArray[np.int64]) -> Halves:
    """Return rows, in ascending order, that are counted through all blocks. Each is copied once."""
    ends = np.cumsum([len(block) for block in blocks])
    parts = np.split(rows, np.searchsorted(rows, ends[:-1]))  # those of each block
    starts = ends - [len(block) for block in blocks]
    return np.concatenate(
        [block[part - start] for block, part, start in zip(blocks, parts, starts, strict=True)]
    )
