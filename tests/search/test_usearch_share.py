"""Where many of its features are asked for, a graph compares all of them, which is faster."""

from pathlib import Path

import pytest

from clipkit.search import UsearchStore, usearch_store
from tests.helpers.features import Floats, random_features

COUNT, WIDTH = 160, 16


@pytest.mark.parametrize(("k", "is_exact"), [(8, False), (9, True), (200, True)])
def test_more_than_a_sixteenth_of_the_features_is_found_exactly(
    k: int, is_exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usearch_store, "_EXACT", 0)
    monkeypatch.setattr(usearch_store, "_SLACK", 2)
    with UsearchStore(tmp_path, width=WIDTH) as store:
        store.add([str(number) for number in range(COUNT)], random_features(COUNT, WIDTH))
    search = store._graph.search
    asked: list[bool] = []

    class Watched:
        """Note how the graph is searched."""

        get = store._graph.get

        def search(self, query: Floats, count: int, *, exact: bool) -> object:
            asked.append(exact)
            return search(query, count, exact=exact)

    monkeypatch.setattr(store, "_graph", Watched())
    assert len(store.search(random_features(1, WIDTH, seed=1), k)[0]) == min(k, COUNT)
    assert asked == [is_exact]
