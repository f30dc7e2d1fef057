"""Find the nearest features among millions approximately, by a graph that is mapped from a file.

The graph is usearch's HNSW (https://arxiv.org/abs/1603.09320): it leads from one feature to the
next nearer ones, and compares a query with a few thousand of a million. Its features are float16.

A store is a folder of three files. The manifest, replaced last and as one, says which graph and
which names belong together, so that a process that is killed leaves the old state or the new one.
"""

import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from clipkit.errors import ConfigError, DataError
from clipkit.fields import read_count
from clipkit.files import check_output, lock, spell_path
from clipkit.search.graph import Graph, Keys, import_usearch, make_graph, save_graph
from clipkit.search.graph_state import GraphState
from clipkit.search.key_table import KeyTable
from clipkit.search.memory import widen
from clipkit.search.store import Floats, Hit, check_features, matches

_TRIES = 5  # to read a state while another process replaces it

_EXACT = 2048  # features up to which all are compared
_SHARE = 16  # of the features: where more of them are asked for, comparing all is faster
_SLACK = 16  # more candidates than asked for, because the graph compares in float16
_ROWS = 4096  # features that are compared at once
_MORE = 4  # times as many candidates, where too few match a pattern
_DEAR = 8  # a candidate of the graph costs as much as a few comparisons, and others may be missed


class UsearchStore:
    """Keep features in a folder, and find the nearest approximately.

    Changes are held in memory until `save`, or the end of a `with` block, writes them all at once.
    Until then other processes can read the old state and write nothing. Opened to be read, the
    files are mapped: several processes share one copy in memory. Several threads may search in one
    store as long as none changes it.

    Args:
        folder: of the store.
        width: of the features, D. An existing store knows its own.
        expansion: candidates that a search holds. More find more of the nearest, and take longer.

    Attributes:
        folder: of the store.
        width: of the features.
        mark: what `save` was told, or "".

    Raises:
        ConfigError: if usearch is missing, a new store has no width, or an existing one another.
        DataError: if the store is damaged.

    Example:
        with UsearchStore("photos.usearch", width=512) as store:
            index.copy_to(store)
        index = Index.open("photos", model, store=store)
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, width: int | None = None, expansion: int = 128
    ) -> None:
        self._unsaved = False
        if expansion < 1 or (width is not None and width < 1):
            raise ConfigError(
                f"width and expansion must be at least 1, not {width} and {expansion}"
            )
        self.folder = Path(spell_path(folder, "the folder of a store"))
        self._expansion = expansion
        self._width = width
        self._locked = ExitStack()
        import_usearch()
        self._read(to_change=False)

    def __enter__(self) -> "UsearchStore":
        """Return the store."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Save, unless there was an error; then changes since the last `save` are dropped."""
        try:
            if error is None and self._unsaved:
                self.save(self.mark)
        finally:
            self.revert()

    def __del__(self) -> None:
        """Warn of changes that nobody saved."""
        if getattr(self, "_unsaved", False):
            message = f"changes of the store in {self.folder} were not saved: use `with`, or save()"
            warnings.warn(message, ResourceWarning, stacklevel=2)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._table)

    @property
    def width(self) -> int:
        """Return the width of the features, D."""
        return self._state.width

    @property
    def mark(self) -> str:
        """Return what `save` was told last."""
        return self._state.mark

    def add(self, names: Sequence[str], features: Floats) -> None:
        """Add features, (n, D) float32. A name that is there already gets the new one.

        Raises:
            DataError: if features are of another width or not of unit length.
            DataError, ConfigError: if the store on the disk is damaged, or has another width now.
            OutputError: if another process is writing the store.
        """
        checked = check_features(features, self.width, len(names))
        own = dict(zip(names, range(len(names)), strict=True))  # of a name's last feature
        if not own:
            return
        self.remove(list(own))
        self._prepare_change()
        keys = self._table.add(list(own))
        rows = np.fromiter(own.values(), np.int64, len(own))
        self._graph.add(keys, checked[rows])

    def remove(self, names: Sequence[str]) -> None:
        """Remove features by name. A name that is not there is no error.

        Raises:
            OutputError: if another process is writing the store.
            DataError, ConfigError: if the store on the disk is damaged, or has another width now.
        """
        if not names or not len(self):
            return
        self._prepare_change()
        keys = self._table.remove(names)
        if len(keys):
            self._graph.remove(keys)

    def search(self, queries: Floats, k: int, where: str | None = None) -> list[list[Hit]]:
        """Return about the `k` nearest of each query (q, D), the nearest first; see `Store`.

        Never fewer than `k` where so many match `where`. Their cosines are exact. Stores of up to
        2,048 features, and patterns that few names match, are searched exactly.

        Raises:
            DataError: if queries are of another width or not of unit length.
            ConfigError: if `k` is no positive integer.
        """
        k = read_count("k", k, 1)
        checked = check_features(queries, self.width)
        if not len(self):
            return [[] for _ in checked]
        if where is None:
            found = [self._nearest(query, k + _SLACK) for query in checked]
        else:
            allowed = self._matching(where)
            found = [self._nearest_of(query, k, allowed) for query in checked]
        return [self._ranked(query, keys, k) for query, keys in zip(checked, found, strict=True)]

    def save(self, mark: str = "") -> None:
        """Write all changes, as one.

        Args:
            mark: any text by which the caller knows the content again.

        Raises:
            OutputError: if it cannot be written. The old state is then still there.
            DataError, ConfigError: if the store on the disk is damaged, or has another width now.
        """
        self._prepare_change()
        number = self._state.state + 1
        graph, names = f"graph-{number}.usearch", f"names-{number}.safetensors"
        self._table.write(self.folder / names)
        state = GraphState(
            state=number,
            width=self.width,
            count=len(self),
            following=self._table.following,
            graph=graph,
            graph_bytes=save_graph(self._graph, self.folder / graph),
            names=names,
            mark=mark,
        )
        state.write(self.folder)
        self._state = state
        state.remove_others(self.folder)
        self._unsaved = False
        self._locked.close()

    def revert(self) -> None:
        """Drop changes that were not saved, and read the present state from the disk.

        Raises:
            DataError, ConfigError: if the store on the disk is damaged, or has another width now.
        """
        self._unsaved = False
        self._locked.close()
        self._read(to_change=False)

    def _prepare_change(self) -> None:
        """Hold the folder, and have its present state in memory."""
        if self._unsaved:
            return
        check_output(self.folder, "folder")
        self._locked.enter_context(lock(self.folder))
        try:
            present = GraphState.read(self.folder)
            changed = present is not None and present != self._state
            if changed or not self._is_writable:
                self._read(to_change=True)
        except BaseException:
            self._locked.close()
            raise
        self._unsaved = True
        self._last = None

    def _read(self, *, to_change: bool) -> None:
        """Read the present state, or begin a store. Another process may replace it meanwhile."""
        for attempt in range(_TRIES):
            state = GraphState.read(self.folder) or self._new_state()
            if self._width not in (None, state.width):
                raise ConfigError(
                    f"the store in {self.folder} has features of width {state.width}, not "
                    f"{self._width}"
                )
            try:
                self._graph, self._table = self._open(state, to_change)
            except DataError:
                if attempt == _TRIES - 1 or GraphState.read(self.folder) == state:
                    raise
                continue
            self._state = state
            self._is_writable = to_change or not state.count
            self._last: tuple[str, Keys] | None = None  # a pattern, and the keys of its names
            return

    def _new_state(self) -> GraphState:
        if self._width is None:
            raise ConfigError(f"there is no store in {self.folder}: a new one needs width=")
        return GraphState(0, self._width, 0, 0, "", 0, "", "")

    def _open(self, state: GraphState, to_change: bool) -> tuple[Graph, KeyTable]:
        """Return the graph and the names of a state."""
        graph = make_graph(state.width, self._expansion)
        if not state.state:
            return graph, KeyTable.empty()
        path = self.folder / state.graph
        table = KeyTable.read(self.folder / state.names, state.count, state.following)
        if not state.count:  # nothing can be mapped
            return graph, table
        try:
            if path.stat().st_size != state.graph_bytes:
                raise ValueError(f"it does not have {state.graph_bytes} bytes")
            (graph.load if to_change else graph.view)(str(path))
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"{path} is missing or damaged: {error}") from error
        if len(graph) != state.count:
            raise DataError(f"{path} is damaged: it has {len(graph)} features, not {state.count}")
        return graph, table

    def _matching(self, where: str) -> Keys:
        """Return the keys of the names that match a pattern, (m,), rising."""
        last = self._last  # another thread may replace it
        if last is None or last[0] != where:
            last = self._last = (where, self._table.keys[matches(self._table.names, where)])
        return last[1]

    def _nearest(self, query: Floats, count: int) -> Keys:
        """Return the keys of about the `count` nearest, (count,)."""
        total = len(self)
        count = min(count, total)
        exact = total <= _EXACT or count > total // _SHARE
        keys = self._graph.search(query, count, exact=exact).keys
        if len(keys) < count:  # parts of a graph may have lost their links to the others
            keys = self._graph.search(query, count, exact=True).keys
        return keys.astype(np.int64)

    def _nearest_of(self, query: Floats, k: int, allowed: Keys) -> Keys:
        """Return the keys of the `k` nearest, and some more, among the allowed ones.

        The graph is asked where far fewer of its results are needed than there are allowed ones.
        Else the query is compared with all of these.
        """
        if not len(allowed):
            return allowed
        count = 2 * k * len(self) // len(allowed) + _SLACK
        while _DEAR * count < len(allowed) and count < len(self):
            keys = self._nearest(query, count)
            places = np.searchsorted(allowed, keys).clip(max=len(allowed) - 1)
            found = keys[allowed[places] == keys]
            if len(found) >= k:
                return found[: k + _SLACK]
            count *= _MORE
        return allowed

    def _ranked(self, query: Floats, keys: Keys, k: int) -> list[Hit]:
        """Return the `k` nearest of some features, the nearest first, by exact cosines."""
        parts = [keys[start : start + _ROWS] for start in range(0, len(keys), _ROWS)]
        if not parts:
            return []
        cosines = np.concatenate([self._features(part) @ query for part in parts])  # (n,)
        order = np.argsort(-cosines, kind="stable")[:k]
        return [Hit(self._table.name_of(int(keys[i])), float(cosines[i])) for i in order.tolist()]

    def _features(self, keys: Keys) -> Floats:
        """Return features by their keys, (n, D)."""
        halves = np.stack(self._graph.get(keys)).reshape(len(keys), self.width)
        features = np.empty(halves.shape, np.float32)
        widen(halves, features)
        return features
