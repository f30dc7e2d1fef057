"""Keep a graph in the folder of an index, and bring it up to date with the index.

The graph lies in a `UsearchStore`. Beside it lies a copy of the entries that it was made of: what
differs between them and the present ones is what has to be changed. The store's mark says which
model and which entries they are, so that nothing is read where nothing has changed.
"""

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np

from clipkit.errors import DataError
from clipkit.search.entries import NO_ROW, Entries
from clipkit.search.graph_state import GraphState
from clipkit.search.memory import MemoryStore
from clipkit.search.probe import PROBE
from clipkit.search.usearch_store import UsearchStore

GRAPH = "usearch"  # the folder

_ROWS = 4096  # features that are added at once
_DIGEST = 16  # bytes


def open_graph(folder: Path, memory: MemoryStore, entries: Entries) -> UsearchStore:
    """Return the graph of an index, made or brought up to date if it is not.

    Args:
        folder: of the index.
        memory: its features.
        entries: its images.

    Raises:
        ConfigError: if usearch is missing.
        OutputError: if there is something to change, and it cannot be written.
    """
    own = folder / GRAPH
    model = _hash((folder / PROBE).read_bytes())
    mark = f"{model}-{_hash_entries(entries)}"
    if _is_of_another(own, model):
        shutil.rmtree(own)
    with UsearchStore(own, width=memory.width) as store:
        if store.mark != mark:
            _bring_up_to_date(store, memory, entries)
            own.mkdir(exist_ok=True)  # where no image can be searched there is none yet
            entries.write(_copy_in(own, mark))
            store.save(mark)
            _remove_other_copies(own, mark)
    return store


def _bring_up_to_date(store: UsearchStore, memory: MemoryStore, entries: Entries) -> None:
    """Change what differs between the entries that a graph was made of and the present ones."""
    old = _contents(Entries.read(_copy_in(store.folder, store.mark))) if store.mark else {}
    present = _contents(entries)
    store.remove([name for name in old if name not in present])
    changed = [name for name, digest in present.items() if old.get(name) != digest]
    for start in range(0, len(changed), _ROWS):
        names = changed[start : start + _ROWS]
        store.add(names, memory.features(names))


def _is_of_another(own: Path, model: str) -> bool:
    """Return whether a graph is of another model, or damaged, and has to be made anew."""
    try:
        state = GraphState.read(own)
        if state is None:
            return False
        if not state.mark.startswith(f"{model}-"):
            return True
        UsearchStore(own)
        Entries.read(_copy_in(own, state.mark))
    except DataError:
        return True
    return False


def _contents(entries: Entries) -> dict[str, bytes]:
    """Return the digest of each image that could be read, by its path."""
    return {
        path: entries.digests[place].tobytes()
        for place, path in enumerate(entries.paths)
        if entries.rows[place] != NO_ROW
    }


def _copy_in(own: Path, mark: str) -> Path:
    return own / f"entries-{mark}.safetensors"


def _remove_other_copies(own: Path, mark: str) -> None:
    for path in own.glob("entries-*.safetensors"):
        if path != _copy_in(own, mark):
            with suppress(OSError):  # Windows removes no file that is mapped
                path.unlink()


def _hash(*contents: bytes) -> str:
    total = hashlib.blake2b(digest_size=_DIGEST)
    for content in contents:
        total.update(content)
    return total.hexdigest()


def _hash_entries(entries: Entries) -> str:
    """Return a hash of the paths that can be found, and of their contents."""
    is_readable = entries.rows != NO_ROW
    return _hash(
        entries.path_bytes.tobytes(), entries.digests.tobytes(), np.packbits(is_readable).tobytes()
    )
