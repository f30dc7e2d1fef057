"""Where many of its features are asked for, a graph compares all of them, which is faster."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

from clipkit.search import UsearchStore, usearch_store
from tests.helpers.features import Floats, random_features

COUNT, WIDTH = 160, 16


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UsearchStore:
    """Return a store of the numbers 0 to 159, which searches approximately despite its size."""
    monkeypatch.setattr(usearch_store, "_EXACT", 0)
    monkeypatch.setattr(usearch_store, "_SLACK", 2)
    with UsearchStore(tmp_path, width=WIDTH) as store:
        store.add([str(number) for number in range(COUNT)], random_features(COUNT, WIDTH))
    return store


@pytest.fixture
def asked(store: UsearchStore, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list to which each search of the graph adds whether it is exact."""
    search = store._graph.search
    found: list[bool] = []

    class Watched:
        """Note how the graph is searched."""

        get = store._graph.get

        def search(self, query: Floats, count: int, *, exact: bool) -> object:
            found.append(exact)
            return search(query, count, exact=exact)

    monkeypatch.setattr(store, "_graph", Watched())
    return found


@pytest.mark.parametrize(("k", "is_exact"), [(8, False), (9, True), (200, True)])
def test_more_than_a_sixteenth_of_the_features_is_found_exactly(
    k: int, is_exact: bool, store: UsearchStore, asked: list[bool]
) -> None:
    assert len(store.search(random_features(1, WIDTH, seed=1), k)[0]) == min(k, COUNT)
    assert asked == [is_exact]


@pytest.mark.parametrize(("where", "searches"), [("*", 1), ("1*", 1), ("15*", 0), ("x*", 0)])
def test_where_few_names_match_the_graph_is_left_alone(
    where: str, searches: int, store: UsearchStore, asked: list[bool]
) -> None:
    matching = [str(number) for number in range(COUNT) if fnmatch(str(number), where)]
    query = random_features(1, WIDTH, seed=1)
    (hits,) = store.search(query, 1, where=where)
    assert len(asked) == searches
    assert [hit.name for hit in hits if hit.name not in matching] == []
    if matching and not searches:
        cosines = random_features(COUNT, WIDTH)[[int(name) for name in matching]] @ query[0]
        assert hits[0].name == matching[int(cosines.argmax())]
