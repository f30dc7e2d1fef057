"""All stores do the same: what `Store` promises, on memory, usearch and a PostgreSQL server."""

from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest

from clipkit.errors import ConfigError, DataError
from clipkit.search import MemoryStore, PostgresStore, Store, UsearchStore
from tests.helpers.features import names_of, nearest, random_features
from tests.helpers.postgres import postgres as postgres
from tests.helpers.postgres import postgres_server as postgres_server

WIDTH = 24
NAMES = [f"{'cats' if i % 3 else 'dogs'}/{i:02}.{'png' if i % 2 else 'jpg'}" for i in range(40)]
FEATURES = random_features(40, WIDTH)
QUERIES = random_features(5, WIDTH, seed=1)

# Whatever a file system, SQL, LIKE, a regular expression or a pattern could take for something
# else.
ODD_NAMES = [
    "it's; DROP TABLE clipkit; --.jpg",
    'a "quoted" name.jpg',
    "100%_sure.jpg",
    r"back\slash\n.jpg",
    "[brackets] {braces} (round).jpg",
    "star*and?mark.jpg",
    "line\nbreak\ttab.jpg",
    "\x1a001a\x1a.jpg",
    "caf\u00e9 \u65e5\u672c\u8a9e \U0001f408.jpg",
    "cafe\u0301.jpg",
    "not-\udce9-utf8.jpg",
    "lone \ud800 surrogate.jpg",
    " spaces at both ends ",
    "^$.|+.jpg",
    "\\N",
    "\\.",
    "",
]


@pytest.fixture(params=["memory", "usearch", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Store, None, None]:
    """Give an empty store of each kind."""
    if request.param == "memory":
        yield MemoryStore(WIDTH)
    elif request.param == "usearch":
        usearch = UsearchStore(tmp_path / "store", width=WIDTH)
        yield usearch
        usearch.revert()
    else:
        server = PostgresStore(request.getfixturevalue("postgres"), width=WIDTH)
        yield server
        server.close()


@pytest.fixture
def filled(store: Store) -> Store:
    store.add(NAMES, FEATURES)
    return store


def test_the_nearest_come_first_with_their_cosines(filled: Store) -> None:
    found = filled.search(QUERIES, 7)
    expected = [nearest(NAMES, FEATURES, query, 7) for query in QUERIES]
    assert [names_of(hits) for hits in found] == expected
    for query, hits in zip(QUERIES, found, strict=True):
        cosines = [float(FEATURES[NAMES.index(hit.name)] @ query) for hit in hits]
        assert [hit.cosine for hit in hits] == pytest.approx(cosines, abs=5e-4)


def test_an_empty_store_finds_nothing(store: Store) -> None:
    assert len(store) == 0
    assert store.search(QUERIES, 3) == [[]] * len(QUERIES)
    assert store.search(QUERIES, 3, where="*") == [[]] * len(QUERIES)


def test_no_queries_find_nothing(filled: Store) -> None:
    assert filled.search(np.empty((0, WIDTH), np.float32), 3) == []


def test_more_than_there_are_finds_all(filled: Store) -> None:
    (found,) = filled.search(QUERIES[:1], 1000)
    assert names_of(found) == nearest(NAMES, FEATURES, QUERIES[0], 40)


def test_adding_in_parts_is_adding_at_once(store: Store) -> None:
    for start in range(0, 40, 7):
        store.add(NAMES[start : start + 7], FEATURES[start : start + 7])
    assert len(store) == 40
    (found,) = store.search(QUERIES[:1], 40)
    assert names_of(found) == nearest(NAMES, FEATURES, QUERIES[0], 40)


def test_adding_nothing_changes_nothing(filled: Store) -> None:
    filled.add([], np.empty((0, WIDTH), np.float32))
    assert len(filled) == 40


def test_a_name_that_is_there_gets_the_new_feature(filled: Store) -> None:
    filled.add([NAMES[5], "new.jpg"], np.stack([QUERIES[0], -QUERIES[0]]))
    assert len(filled) == 41
    (found,) = filled.search(QUERIES[:1], 41)
    assert found[0].name == NAMES[5]
    assert found[-1].name == "new.jpg"
    assert len(set(names_of(found))) == 41


def test_of_a_name_given_twice_the_last_feature_counts(store: Store) -> None:
    store.add(["a", "b", "a"], FEATURES[:3])
    assert len(store) == 2
    (found,) = store.search(FEATURES[2:3], 2)
    assert found[0].name == "a"
    assert found[0].cosine == pytest.approx(1, abs=1e-3)


def test_what_was_removed_is_not_found(filled: Store) -> None:
    filled.remove([*NAMES[:10], "never there", NAMES[3]])
    assert len(filled) == 30
    (found,) = filled.search(QUERIES[:1], 40)
    assert names_of(found) == nearest(NAMES[10:], FEATURES[10:], QUERIES[0], 40)


def test_a_store_can_be_emptied_and_filled_again(filled: Store) -> None:
    filled.remove(NAMES)
    assert len(filled) == 0
    assert filled.search(QUERIES[:1], 3) == [[]]
    filled.add(NAMES[:4], FEATURES[:4])
    (found,) = filled.search(QUERIES[:1], 40)
    assert names_of(found) == nearest(NAMES[:4], FEATURES[:4], QUERIES[0], 4)


def test_removing_from_an_empty_store_is_no_error(store: Store) -> None:
    store.remove(["a"])
    store.remove([])
    assert len(store) == 0


@pytest.mark.parametrize(
    "where",
    ["*", "cats/*", "*.jpg", "cats/*.png", "dogs/0?.*", "*/[0-2][!13]*", "cats/01.png", "none", ""],
)
def test_a_pattern_leaves_the_nearest_that_match(filled: Store, where: str) -> None:
    found = filled.search(QUERIES, 6, where=where)
    expected = [nearest(NAMES, FEATURES, query, 6, where) for query in QUERIES]
    assert [names_of(hits) for hits in found] == expected


def test_names_come_back_as_they_were(store: Store) -> None:
    features = random_features(len(ODD_NAMES), WIDTH)
    store.add(ODD_NAMES, features)
    assert len(store) == len(ODD_NAMES)
    found = store.search(features, 1)
    assert [hits[0].name for hits in found] == ODD_NAMES


@pytest.mark.parametrize(
    "where",
    [
        "*;*",
        '*"*',
        "100%*",
        "%",
        "*_*",
        "back[\\]slash*",
        "*\\*",
        "[[]*",
        "*[*]*[?]*",
        "line?break*",
        "\x1a*",
        "*\x1a.jpg",
        "?001a?.jpg",
        "*\u65e5*",
        "caf? *",
        "not-?-utf8.jpg",
        "not-\udce9*",
        "not-[\udce0-\udcef]-*",
        "not-[!a-z]-*",
        "*[!\x1a]",
        "^$*",
        "\\N",
        " * ",
    ],
)
def test_patterns_of_odd_names_match_as_in_a_shell(store: Store, where: str) -> None:
    features = random_features(len(ODD_NAMES), WIDTH)
    store.add(ODD_NAMES, features)
    (found,) = store.search(QUERIES[:1], 99, where=where)
    assert names_of(found) == nearest(ODD_NAMES, features, QUERIES[0], 99, where)


def test_odd_names_are_removed(store: Store) -> None:
    store.add(ODD_NAMES, random_features(len(ODD_NAMES), WIDTH))
    store.remove(ODD_NAMES[1:])
    (found,) = store.search(QUERIES[:1], 99)
    assert names_of(found) == ODD_NAMES[:1]


def _two_names(store: Store) -> None:
    store.add(["a", "b"], FEATURES[:1])


def _other_width(store: Store) -> None:
    store.add(["a"], random_features(1, WIDTH + 1))


def _long_feature(store: Store) -> None:
    store.add(["a"], 3 * FEATURES[:1])


def _no_number(store: Store) -> None:
    store.add(["a"], np.full((1, WIDTH), np.nan, np.float32))


def _long_query(store: Store) -> None:
    store.search(2 * QUERIES, 3)


def _wide_query(store: Store) -> None:
    store.search(random_features(1, WIDTH + 1), 3)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (_two_names, "2 names and 1 features"),
        (_other_width, r"must be \(n, 24\)"),
        (_long_feature, "row 0 is 3"),
        (_no_number, "row 0 is nan"),
        (_long_query, "row 0 is 2"),
        (_wide_query, r"must be \(n, 24\)"),
    ],
)
def test_unusable_features_are_told(
    filled: Store, use: Callable[[Store], None], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        use(filled)
    assert len(filled) == 40


@pytest.mark.parametrize("k", [0, -1, True, 2.5])
def test_k_must_be_a_positive_integer(filled: Store, k: int) -> None:
    with pytest.raises(ConfigError, match="k must be an integer from 1 on"):
        filled.search(QUERIES, k)


@pytest.mark.parametrize("k", [np.int64(3), np.uint8(3)])
def test_k_may_be_an_integer_of_numpy(filled: Store, k: int) -> None:
    assert filled.search(QUERIES, k) == filled.search(QUERIES, 3)


def test_many_changes_end_where_a_dictionary_does(store: Store) -> None:
    generator = np.random.default_rng(3)
    features = random_features(300, WIDTH, seed=4)
    known: dict[str, np.ndarray] = {}
    for step in range(30):
        names = [f"{number}.jpg" for number in generator.integers(0, 60, 10)]
        if step % 3 == 2:
            store.remove(names)
            known = {name: row for name, row in known.items() if name not in names}
        else:
            rows = features[step * 10 : step * 10 + 10]
            store.add(names, rows)
            known.update(zip(names, rows, strict=True))
    assert len(store) == len(known)
    (found,) = store.search(QUERIES[:1], 99)
    assert names_of(found) == nearest(list(known), np.stack(list(known.values())), QUERIES[0], 99)
