"""What `UsearchStore` promises beside what all stores do: its folder, its changes, its graph."""

import gc
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from clipkit.errors import ConfigError, DataError, OutputError
from clipkit.search import UsearchStore, graph
from clipkit.search.graph_state import GraphState
from tests.helpers.features import Floats, names_of, nearest, random_features, recall

WIDTH = 32
NAMES = [f"{'few' if i % 500 == 0 else 'many'}/{i}.jpg" for i in range(5000)]
FEATURES = random_features(5000, WIDTH, centers=60)
QUERIES = random_features(50, WIDTH, seed=1, centers=60)


class Saved(NamedTuple):
    """Hold a store of `NAMES` that was saved, and must not be changed."""

    folder: Path
    store: UsearchStore


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("saved") / "store"
    with UsearchStore(folder, width=WIDTH) as store:
        store.add(NAMES, FEATURES)
    return Saved(folder, UsearchStore(folder))


def fill(folder: Path, count: int = 10) -> UsearchStore:
    """Return a small store that was saved."""
    with UsearchStore(folder, width=WIDTH) as store:
        store.add(NAMES[:count], FEATURES[:count])
    return store


@contextmanager
def largest_file(size: int) -> Generator[None, None, None]:
    """Let no file grow beyond a size in bytes."""
    resource = pytest.importorskip("resource", reason="limits are of Unix")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def expected(k: int, where: str | None = None) -> list[list[str]]:
    return [nearest(NAMES, FEATURES, query, k, where) for query in QUERIES]


def test_the_graph_finds_nearly_all_of_the_nearest(saved: Saved) -> None:
    assert len(saved.store) == 5000
    assert saved.store.width == WIDTH
    assert recall(saved.store.search(QUERIES, 10), expected(10)) >= 0.95
    assert recall(saved.store.search(QUERIES, 100), expected(100)) >= 0.95


def test_the_cosines_are_exact_and_fall(saved: Saved) -> None:
    for query, hits in zip(QUERIES, saved.store.search(QUERIES, 10), strict=True):
        cosines = [hit.cosine for hit in hits]
        assert cosines == sorted(cosines, reverse=True)
        rows = FEATURES[[NAMES.index(hit.name) for hit in hits]].astype(np.float16)
        assert cosines == pytest.approx((rows.astype(np.float32) @ query).tolist(), abs=1e-6)


@pytest.mark.parametrize("where", ["many/*", "*7.jpg", "*[13]?.jpg", "many/1*"])
def test_a_pattern_that_many_match_loses_little(saved: Saved, where: str) -> None:
    found = saved.store.search(QUERIES, 10, where=where)
    assert [len(hits) for hits in found] == [10] * 50
    assert recall(found, expected(10, where)) >= 0.95


def test_a_pattern_that_few_match_is_searched_exactly(saved: Saved) -> None:
    found = saved.store.search(QUERIES, 20, where="few/*")
    assert [names_of(hits) for hits in found] == expected(20, "few/*")
    assert len(found[0]) == 10


def test_matching_features_that_are_far_from_the_query_are_found(tmp_path: Path) -> None:
    near, far = random_features(4000, WIDTH), random_features(1000, WIDTH, seed=2)
    near[:, 0], far[:, 0] = 3, -3
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    far /= np.linalg.norm(far, axis=1, keepdims=True)
    names = [f"near/{i}" for i in range(4000)] + [f"far/{i}" for i in range(1000)]
    with UsearchStore(tmp_path, width=WIDTH) as store:
        store.add(names, np.concatenate([near, far]))
        found = store.search(near[:5], 30, where="far/*")
        assert [names_of(hits) for hits in found] == [
            nearest(names[4000:], far, query, 30) for query in near[:5]
        ]


def test_features_that_the_graph_does_not_reach_are_found(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = UsearchStore(saved.folder)
    search = store._graph.search

    class Torn:
        """A graph of which most parts have no link to the others."""

        get = store._graph.get

        def search(self, query: Floats, count: int, *, exact: bool) -> object:
            return search(query, count if exact else 3, exact=exact)

    monkeypatch.setattr(store, "_graph", Torn())
    assert [names_of(hits) for hits in store.search(QUERIES, 10)] == expected(10)


def test_k_beyond_what_a_graph_reaches_finds_all(saved: Saved) -> None:
    (found,) = saved.store.search(QUERIES[:1], 6000)
    assert sorted(names_of(found)) == sorted(NAMES)


def test_changes_of_half_of_all_lose_little(tmp_path: Path) -> None:
    new = random_features(2500, WIDTH, seed=5, centers=60)
    with UsearchStore(tmp_path, width=WIDTH) as store:
        store.add(NAMES, FEATURES)
        store.remove(NAMES[:1000])
        store.add(NAMES[1000:3500], new)
    store = UsearchStore(tmp_path)
    assert len(store) == 4000
    features = np.concatenate([new, FEATURES[3500:]])
    wanted = [nearest(NAMES[1000:], features, query, 10) for query in QUERIES]
    assert recall(store.search(QUERIES, 10), wanted) >= 0.95


def test_a_saved_store_is_small_and_leaves_no_other_files(saved: Saved) -> None:
    files = {path.name: path.stat().st_size for path in saved.folder.iterdir()}
    assert set(files) == {"graph-1.usearch", "names-1.safetensors", "store.json"}
    assert sum(files.values()) < 5000 * (2 * WIDTH + 256)


def test_changes_are_seen_at_once_and_by_others_when_they_are_saved(tmp_path: Path) -> None:
    fill(tmp_path)
    reader, writer = UsearchStore(tmp_path), UsearchStore(tmp_path)
    writer.add(["new.jpg"], QUERIES[:1])
    writer.remove(NAMES[:3])
    assert len(writer) == 8
    assert writer.search(QUERIES[:1], 1)[0][0].name == "new.jpg"
    assert len(UsearchStore(tmp_path)) == 10
    writer.save("photos 2")
    assert len(UsearchStore(tmp_path)) == 8
    assert UsearchStore(tmp_path).mark == "photos 2"
    assert len(reader.search(QUERIES[:1], 99)[0]) == 10  # it has its old files still
    reader.revert()
    assert len(reader.search(QUERIES[:1], 99)[0]) == 8


def test_a_block_that_fails_saves_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(KeyError, match="oops"), UsearchStore(tmp_path) as store:
        store.remove(NAMES[:3])
        raise KeyError("oops")
    assert len(store) == 10
    assert len(UsearchStore(tmp_path)) == 10


def test_a_block_that_only_reads_writes_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    before = (tmp_path / "store.json").stat().st_mtime_ns
    with UsearchStore(tmp_path) as store:
        store.search(QUERIES, 3)
    assert (tmp_path / "store.json").stat().st_mtime_ns == before


def test_a_block_keeps_the_mark(tmp_path: Path) -> None:
    fill(tmp_path).save("mine")
    with UsearchStore(tmp_path) as store:
        store.remove(NAMES[:1])
    assert store.mark == "mine"


def test_changes_that_nobody_saved_are_told(tmp_path: Path) -> None:
    store = UsearchStore(tmp_path, width=WIDTH)
    store.add(NAMES[:3], FEATURES[:3])
    with pytest.warns(ResourceWarning, match="were not saved"):
        del store
        gc.collect()


def test_two_cannot_write_at_once(tmp_path: Path) -> None:
    fill(tmp_path)
    first, second = UsearchStore(tmp_path), UsearchStore(tmp_path)
    first.remove(NAMES[:1])
    with pytest.raises(OutputError, match="is writing there"):
        second.remove(NAMES[1:2])
    assert len(second) == 10
    first.save()
    second.remove(NAMES[1:2])  # from what the first has saved
    second.save()
    assert len(UsearchStore(tmp_path)) == 8


def test_a_reader_waits_for_no_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    old = GraphState.read(tmp_path)
    with UsearchStore(tmp_path) as writer:
        writer.remove(NAMES[:1])
    states = [old, GraphState.read(tmp_path)]  # the old one's files are gone already
    monkeypatch.setattr(
        GraphState, "read", lambda _: states[0] if len(states) == 1 else states.pop(0)
    )
    assert len(UsearchStore(tmp_path)) == 9


def test_an_emptied_store_can_be_opened(tmp_path: Path) -> None:
    with fill(tmp_path) as store:
        store.remove(NAMES)
    store = UsearchStore(tmp_path)
    assert store.search(QUERIES[:1], 3) == [[]]
    with store:
        store.add(NAMES[:2], FEATURES[:2])
    assert len(UsearchStore(tmp_path)) == 2


def test_a_new_store_needs_a_width(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a new one needs width="):
        UsearchStore(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_another_width_is_told(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(ConfigError, match="has features of width 32, not 33"):
        UsearchStore(tmp_path, width=33)


@pytest.mark.parametrize(("width", "expansion"), [(0, 1), (8, 0)])
def test_impossible_sizes_are_told(tmp_path: Path, width: int, expansion: int) -> None:
    with pytest.raises(ConfigError, match=f"not {width} and {expansion}"):
        UsearchStore(tmp_path, width=width, expansion=expansion)


def test_without_usearch_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(ConfigError, match=r"pip install 'clipkit-torch\[search\]'"):
        UsearchStore(tmp_path, width=8)


@pytest.mark.parametrize("name", ["graph-1.usearch", "names-1.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "end cut", "junk", "another"])
def test_a_damaged_file_is_told(tmp_path: Path, name: str, damage: str) -> None:
    fill(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "another":
        fill(tmp_path / "other", 11)
        shutil.copy(tmp_path / "other" / name, path)
    else:
        parts = {"cut": content[: len(content) // 2], "end cut": content[:-1], "junk": b"junk" * 99}
        path.write_bytes(parts[damage])
    with pytest.raises(DataError, match=f"{name} is .*(missing|damaged)"):
        UsearchStore(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{", "[", "is not JSON"),
        ("clipkit usearch store", "something", "is not the manifest of a store"),
        ('"version": 1', '"version": 2', "another version of clipkit"),
        ('"count": 10', '"count": -1', "is damaged"),
        ('"count": 10', '"count": 9', "is damaged"),
        ('"width": 32', '"width": "32"', "is damaged"),
        ("graph-1.usearch", "../graph-1.usearch", "is damaged"),
        ('"mark"', '"other"', "is damaged"),
    ],
)
def test_a_damaged_manifest_is_told(tmp_path: Path, old: str, new: str, message: str) -> None:
    fill(tmp_path)
    path = tmp_path / "store.json"
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(DataError, match=message):
        UsearchStore(tmp_path)


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    store = UsearchStore(tmp_path / "store", width=WIDTH)
    with pytest.raises(OutputError, match="a file of that name is in the way"):
        store.add(NAMES[:1], FEATURES[:1])


@pytest.mark.parametrize(
    ("free", "message"),
    [(0, r"No space left on device\. Free some space"), (1 << 30, "cut off")],
)
def test_a_graph_that_cannot_be_written_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, message: str
) -> None:
    fill(tmp_path)
    store = UsearchStore(tmp_path)
    store.add(["new.jpg"], QUERIES[:1])
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(graph.shutil, "disk_usage", lambda _: usage)
    with largest_file(500), pytest.raises(OutputError, match=message):
        store.save()
    assert len(UsearchStore(tmp_path)) == 10
    store.save()
    assert len(UsearchStore(tmp_path)) == 11


WRITER = """
import sys
import numpy as np
from clipkit.search import UsearchStore
from clipkit.search.graph_state import GraphState
from tests.helpers.features import random_features

features = random_features(40, 8)
with UsearchStore(sys.argv[1], width=8) as store:
    print("ready", flush=True)
    for number in range(100_000):
        store.add([f"{number}/{row}" for row in range(40)], features)
        store.remove([f"{number - 5}/{row}" for row in range(40)])
        store.save(str(number))
"""


def test_a_killed_writer_leaves_one_whole_state(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    last = -1
    for _ in range(6):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(generator.uniform(0.05, 0.4))
            writer.send_signal(signal.SIGKILL)
        if not (tmp_path / "store.json").exists():
            continue
        store = UsearchStore(tmp_path)
        last = int(store.mark)
        (found,) = store.search(random_features(1, 8), 1000)
        parts = {name.split("/")[0] for name in names_of(found)}
        assert len(found) == len(store) == 40 * len(parts)
        assert str(last) in parts
    assert last >= 0, "no state was ever written"


def test_a_writer_removes_what_killed_ones_left(tmp_path: Path) -> None:
    fill(tmp_path)
    for name in ("graph-2.usearch", "names-7.safetensors", ".graph-2.usearch.abc.tmp"):
        (tmp_path / name).write_bytes(b"left")
    (tmp_path / "notes.txt").write_text("mine")
    with UsearchStore(tmp_path) as store:
        store.remove(NAMES[:1])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["graph-2.usearch", "names-2.safetensors", "notes.txt", "store.json"]
    assert len(UsearchStore(tmp_path)) == 9


def test_threads_search_one_store(saved: Saved) -> None:
    def ask(query: Floats) -> list[str]:
        return names_of(saved.store.search(query[None], 10)[0])

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ask, QUERIES))
    assert found == [names_of(hits) for hits in saved.store.search(QUERIES, 10)]
