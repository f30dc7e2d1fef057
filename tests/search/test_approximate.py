"""An index keeps a graph in its folder, which follows what the index knows."""

import shutil
import sys
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pytest

from clipkit.errors import ConfigError, OutputError
from clipkit.search import Index, UsearchStore, approximate
from tests.search.conftest import COLORS, ColorModel, paint

QUERIES = [f"a {color} wall" for color in COLORS]


def assert_same(index: Index, folder: Path, model: ColorModel) -> None:
    """Check that an index finds in its graph what an exact search finds."""
    exact = Index.open(folder, model)
    for query in QUERIES:
        found, expected = index.search(query, k=20), exact.search(query, k=20)
        assert sorted(found.paths) == sorted(expected.paths)
        np.testing.assert_allclose(
            [result.cosine for result in found],
            [result.cosine for result in expected],
            atol=1e-6,
        )


def state_of(folder: Path) -> int:
    """Return how often the graph of an index was written."""
    return int((folder / ".clipkit/usearch/store.json").read_text().split('"state": ')[1][0])


def test_the_graph_is_made_once(folder: Path, model: ColorModel) -> None:
    Index.build(folder, model)
    assert not (folder / ".clipkit" / "usearch").exists()
    for _ in range(2):
        index = Index.open(folder, model, store="usearch")
        assert_same(index, folder, model)
        assert state_of(folder) == 1
    store = UsearchStore(folder / ".clipkit" / "usearch")
    assert len(store) == 9


def test_an_update_changes_the_graph(folder: Path, model: ColorModel) -> None:
    Index.build(folder, model)
    index = Index.open(folder, model, store="usearch")
    paint(folder / "red" / "new.png", "red", 7)
    (folder / "green" / "0.png").unlink()
    (folder / "green" / "1.png").rename(folder / "green" / "renamed.png")
    paint(folder / "blue" / "2.png", "red", 40)
    (folder / "blue" / "broken.png").write_bytes(b"no image")
    index.update()
    assert len(index) == 9
    assert_same(index, folder, model)
    assert state_of(folder) == 2
    index.update()
    assert state_of(folder) == 2
    copies = list((folder / ".clipkit" / "usearch").glob("entries-*"))
    assert len(copies) == 1


def test_only_what_differs_is_changed(
    folder: Path, model: ColorModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.build(folder, model)
    Index.open(folder, model, store="usearch")
    paint(folder / "red" / "new.png", "red", 7)
    (folder / "green" / "0.png").unlink()
    Index.build(folder, model)  # which knows nothing of the graph
    added: list[str] = []
    removed: list[str] = []
    add, remove = UsearchStore.add, UsearchStore.remove

    def watched_add(self: UsearchStore, names: list[str], features: np.ndarray) -> None:
        added.extend(names)
        add(self, names, features)

    def watched_remove(self: UsearchStore, names: list[str]) -> None:
        removed.extend(names)
        remove(self, names)

    monkeypatch.setattr(UsearchStore, "add", watched_add)
    monkeypatch.setattr(UsearchStore, "remove", watched_remove)
    index = Index.open(folder, model, store="usearch")
    assert added == ["red/new.png"]
    assert set(removed) == {"green/0.png", "red/new.png"}  # what is added takes its place
    assert_same(index, folder, model)


@pytest.mark.parametrize("damage", ["graph-*", "names-*", "entries-*", "store.json"])
def test_a_damaged_graph_is_made_anew(folder: Path, model: ColorModel, damage: str) -> None:
    Index.build(folder, model)
    Index.open(folder, model, store="usearch")
    (path,) = (folder / ".clipkit" / "usearch").glob(damage)
    path.write_bytes(b"damaged")
    assert_same(Index.open(folder, model, store="usearch"), folder, model)


def test_a_graph_of_another_model_is_made_anew(
    folder: Path, model: ColorModel, other_model: ColorModel
) -> None:
    Index.build(folder, model)
    Index.open(folder, model, store="usearch")
    kept = folder.parent / "kept"
    shutil.move(folder / ".clipkit" / "usearch", kept)
    shutil.rmtree(folder / ".clipkit")
    Index.build(folder, other_model)
    shutil.move(kept, folder / ".clipkit" / "usearch")
    assert_same(Index.open(folder, other_model, store="usearch"), folder, other_model)


def test_a_killed_change_is_made_again(
    folder: Path, model: ColorModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.build(folder, model)
    index = Index.open(folder, model, store="usearch")
    paint(folder / "red" / "new.png", "red", 7)
    with monkeypatch.context() as patched:
        patched.setattr(UsearchStore, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError, match="division"):
            index.update()
    index = Index.open(folder, model, store="usearch")
    assert len(index.search("red", k=99)) == 10
    assert len(list((folder / ".clipkit" / "usearch").glob("entries-*"))) == 1


def test_two_that_change_the_graph_are_told(folder: Path, model: ColorModel) -> None:
    Index.build(folder, model)
    Index.open(folder, model, store="usearch")
    paint(folder / "red" / "new.png", "red", 7)
    other = UsearchStore(folder / ".clipkit" / approximate.GRAPH)
    other.remove(["red/0.png"])
    Index.build(folder, model)
    with pytest.raises(OutputError, match="is writing there"):
        Index.open(folder, model, store="usearch")
    other.revert()
    assert len(Index.open(folder, model, store="usearch").search("red", k=99)) == 10


def test_another_text_is_no_store(folder: Path, model: ColorModel) -> None:
    Index.build(folder, model)
    with pytest.raises(ConfigError, match="must be \"usearch\" or a store, not 'faiss'"):
        Index.open(folder, model, store=cast("Literal['usearch']", "faiss"))


def test_without_usearch_the_extra_is_named(
    folder: Path, model: ColorModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.build(folder, model)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(ConfigError, match=r"clipkit-torch\[search\]"):
        Index.open(folder, model, store="usearch")


def test_an_empty_index_has_an_empty_graph(folder: Path, model: ColorModel) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")
    Index.build(folder, model)
    index = Index.open(folder, model, store="usearch")
    assert len(index.search("red")) == 0
