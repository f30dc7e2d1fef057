"""Exact search: float16 widened to the bit, and the nearest as float64 finds them."""

import numpy as np
import pytest

from clipkit.errors import ConfigError, DataError
from clipkit.search.memory import MemoryStore, widen
from clipkit.search.store import Floats

D = 16


def unit(count: int, seed: int, width: int = D) -> Floats:
    """Return features of unit length, (count, width)."""
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def filled(count: int = 1300, kept: int = 1 << 30) -> tuple[MemoryStore, Floats]:
    """Return a store of several blocks and its features as it keeps them."""
    features = unit(count, 0)
    store = MemoryStore(D, kept=kept)
    store.add([f"{i}.jpg" for i in range(700)], features[:700])
    store.add([f"{i}.jpg" for i in range(700, count)], features[700:])
    return store, features.astype(np.float16).astype(np.float32)


def test_every_finite_float16_is_widened_to_the_bit() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    found = np.empty(finite.shape, np.float32)
    widen(finite, found)
    expected = finite.astype(np.float32)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_the_nearest_are_those_of_float64(kept: int) -> None:
    store, features = filled(kept=kept)
    queries = unit(5, 1)
    cosines = queries.astype(np.float64) @ features.astype(np.float64).transpose()
    for _ in range(2):  # the second search has widened features, if they are kept
        for row, hits in zip(cosines, store.search(queries, 7), strict=True):
            best = np.argsort(-row)[:7]
            assert [hit.name for hit in hits] == [f"{i}.jpg" for i in best]
            np.testing.assert_allclose([hit.cosine for hit in hits], row[best], atol=1e-6)


def test_a_name_that_is_added_again_gets_the_new_feature() -> None:
    store = MemoryStore(D)
    first, second = unit(2, 2)
    store.add(["a", "b"], np.stack([first, second]))
    store.add(["a"], second[None])
    assert len(store) == 2
    assert [hit.name for hit in store.search(first[None], 2)[0]] in (["a", "b"], ["b", "a"])
    np.testing.assert_allclose(store.features(["a"])[0], second, atol=1e-3)


def test_a_name_that_comes_twice_at_once_gets_its_last_feature() -> None:
    store = MemoryStore(D)
    store.add(["a", "a"], unit(2, 3))
    assert len(store) == 1
    np.testing.assert_allclose(store.features(["a"])[0], unit(2, 3)[1], atol=1e-3)


def test_what_is_removed_is_not_found() -> None:
    store, features = filled()
    gone = [f"{i}.jpg" for i in range(0, 1300, 2)]
    store.remove([*gone, "never.jpg"])
    assert len(store) == 650
    names = {hit.name for hit in store.search(features[:1], 650)[0]}
    assert names == {f"{i}.jpg" for i in range(1, 1300, 2)}


def test_rows_that_no_name_has_are_dropped_and_the_others_stay() -> None:
    store, features = filled()
    store.remove([f"{i}.jpg" for i in range(1000)])
    assert sum(map(len, store._blocks)) == 300
    np.testing.assert_array_equal(store.features(["1299.jpg", "1000.jpg"]), features[[1299, 1000]])
    assert store.search(features[1100:1101], 1)[0][0].name == "1100.jpg"


def test_a_store_that_was_emptied_takes_features_again() -> None:
    store = MemoryStore(D)
    store.add(["a"], unit(1, 4))
    store.remove(["a"])
    assert store.search(unit(1, 4), 3) == [[]]
    store.add(["b"], unit(1, 4))
    assert store.search(unit(1, 4), 3)[0][0].name == "b"


def test_a_pattern_leaves_the_others_out() -> None:
    store = MemoryStore(D)
    names = ["cats/a.jpg", "cats/deep/b.jpg", "dogs/a.jpg", "cats/c.png", "cats[1].jpg"]
    store.add(names, unit(5, 5))
    query = unit(1, 6)
    assert {hit.name for hit in store.search(query, 9, "cats/*.jpg")[0]} == set(names[:2])
    assert [hit.name for hit in store.search(query, 9, "cats[[]1].jpg")[0]] == ["cats[1].jpg"]
    assert store.search(query, 9, "birds/*") == [[]]


def test_parts_hold_every_feature_once() -> None:
    store, features = filled()
    parts = list(store.blocks(500))
    assert [len(names) for names, _ in parts] == [500, 500, 300]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), features)


@pytest.mark.parametrize(
    ("features", "problem"),
    [
        (np.ones((1, D + 1), np.float32), r"features must be \(n, 16\), not \(1, 17\)"),
        (np.ones((1, D), np.float32), "unit length, and that of row 0 is 4:"),
        (np.full((1, D), np.nan, np.float32), "that of row 0 is nan"),
        (unit(2, 7), "there are 1 names and 2 features"),
    ],
)
def test_impossible_features_are_typed_errors(features: Floats, problem: str) -> None:
    store = MemoryStore(D)
    with pytest.raises(DataError, match=problem):
        store.add(["a"], features)
    assert len(store) == 0


@pytest.mark.parametrize("k", [0, -1, True, 1.5])
def test_an_impossible_k_is_a_typed_error(k: int) -> None:
    store, _ = filled()
    with pytest.raises(ConfigError, match="k must be an integer from 1 on"):
        store.search(unit(1, 8), k)


def test_an_unknown_name_is_a_typed_error() -> None:
    with pytest.raises(ConfigError, match=r"there is no feature of 'none\.jpg'"):
        filled()[0].features(["none.jpg"])


def test_equals_come_in_the_order_of_their_names() -> None:
    store = MemoryStore(D)
    names = [f"{number:02}.jpg" for number in range(40)]
    store.add(names, np.repeat(unit(1, 9), 40, axis=0))
    assert [hit.name for hit in store.search(unit(1, 9), 40)[0]] == names


@pytest.mark.parametrize(("left", "is_kept"), [(0, True), (-1, False)])
def test_widened_features_are_kept_if_they_have_room(left: int, is_kept: bool) -> None:
    store, features = filled(kept=1300 * D * 4 + left)
    first = store.search(features[:1], 1)
    assert store._wide is None  # a process that searches once has no use for them
    assert store.search(features[:1], 1) == first
    assert (store._wide is not None) == is_kept
