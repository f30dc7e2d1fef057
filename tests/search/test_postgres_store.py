"""What `PostgresStore` promises beside what all stores do, on a real server."""

import fnmatch
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest

from clipkit.errors import DataError
from clipkit.search import MemoryStore, PostgresStore
from clipkit.search.sql_patterns import condition_of, escape_name, unescape_name
from tests.helpers.features import Floats, names_of, nearest, random_features, recall
from tests.helpers.postgres import postgres as postgres
from tests.helpers.postgres import postgres_server as postgres_server
from tests.helpers.postgres import run_sql

WIDTH = 32
NAMES = [f"{'few' if i % 500 == 0 else 'many'}/{i}.jpg" for i in range(5000)]
FEATURES = random_features(5000, WIDTH, centers=60)
QUERIES = random_features(50, WIDTH, seed=1, centers=60)


def fill(address: str, count: int = 10, table: str = "clipkit") -> None:
    """Make a store of a few features, without a graph."""
    store = PostgresStore(address, table=table, width=WIDTH)
    store.add(NAMES[:count], FEATURES[:count])
    store.close()


def graphs_in(address: str) -> list[str]:
    """Return the statements that made the graphs of the default table."""
    rows = run_sql(address, "SELECT indexdef FROM pg_indexes WHERE tablename = 'clipkit'")
    return [row[0] for row in rows if "hnsw" in row[0]]


def test_the_graph_finds_nearly_all_of_the_nearest(postgres: str) -> None:
    exact = MemoryStore(WIDTH)
    exact.add(NAMES, FEATURES)
    with PostgresStore(postgres, width=WIDTH) as store:
        store.add(NAMES, FEATURES)
        store.build_index()
        run_sql(postgres, "ANALYZE clipkit")
        for k in (10, 100):  # pgvector itself would stop at 40
            found = store.search(QUERIES, k)
            expected = [names_of(hits) for hits in exact.search(QUERIES, k)]
            assert [len(hits) for hits in found] == [k] * 50
            assert recall(found, expected) >= 0.95
        for where in ("many/*", "*7.jpg", "*[13]?.jpg", "few/*"):
            found = store.search(QUERIES, 10, where=where)
            expected = [names_of(hits) for hits in exact.search(QUERIES, 10, where=where)]
            assert [len(hits) for hits in found] == [10] * 50
            assert recall(found, expected) >= 0.95


def test_the_server_searches_in_the_graph(postgres: str) -> None:
    with PostgresStore(postgres, width=WIDTH) as store:
        store.add(NAMES, FEATURES)
    assert graphs_in(postgres) == [
        "CREATE INDEX clipkit_feature_idx ON public.clipkit USING hnsw (feature halfvec_ip_ops)"
    ]
    counted = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'clipkit_feature_idx'"
    with PostgresStore(postgres, width=WIDTH) as store:
        store.search(QUERIES, 10)
    assert run_sql(postgres, "SELECT pg_stat_force_next_flush()", counted) == [(50,)]


@pytest.mark.parametrize("version", ["0.8.5", "0.7.4"])
def test_matching_features_that_are_far_from_the_query_are_found(
    postgres: str, version: str
) -> None:
    near, far = random_features(4000, WIDTH), random_features(1000, WIDTH, seed=2)
    near[:, 0], far[:, 0] = 3, -3
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    far /= np.linalg.norm(far, axis=1, keepdims=True)
    names = [f"near/{i}" for i in range(4000)] + [f"far/{i}" for i in range(1000)]
    with PostgresStore(postgres, width=WIDTH) as store:
        store.add(names, np.concatenate([near, far]))
    # What an old pgvector says of itself: it cannot go on where a filter leaves too few.
    run_sql(postgres, f"UPDATE pg_extension SET extversion = '{version}' WHERE extname = 'vector'")
    with PostgresStore(postgres, width=WIDTH) as store:
        found = store.search(near[:5], 30, where="far/*")
        expected = [nearest(names[4000:], far, query, 30) for query in near[:5]]
        assert [len(hits) for hits in found] == [30] * 5
        assert recall(found, expected) >= 0.95


@pytest.mark.parametrize("k", [1200, 6000])
def test_k_beyond_what_the_graph_reaches_finds_all(postgres: str, k: int) -> None:
    with PostgresStore(postgres, width=WIDTH) as store:
        store.add(NAMES, FEATURES)
    with PostgresStore(postgres, width=WIDTH) as store:
        (found,) = store.search(QUERIES[:1], k)
        assert len(found) == len(set(names_of(found))) == min(k, 5000)


def test_the_graph_is_kept_up_to_date_and_built_once(postgres: str) -> None:
    with PostgresStore(postgres, width=WIDTH) as store:
        store.add(NAMES[:3000], FEATURES[:3000])
    with PostgresStore(postgres, width=WIDTH) as store:
        store.add(NAMES[3000:], FEATURES[3000:])
        store.remove(NAMES[:100])
    assert len(graphs_in(postgres)) == 1
    with PostgresStore(postgres, width=WIDTH) as store:
        expected = [nearest(NAMES[100:], FEATURES[100:], query, 10) for query in QUERIES]
        assert recall(store.search(QUERIES, 10), expected) >= 0.95


def test_a_block_that_fails_builds_no_graph_but_keeps_what_was_added(postgres: str) -> None:
    with pytest.raises(KeyError, match="oops"), PostgresStore(postgres, width=WIDTH) as store:
        store.add(NAMES[:10], FEATURES[:10])
        raise KeyError("oops")
    assert graphs_in(postgres) == []
    assert run_sql(postgres, "SELECT count(*) FROM clipkit") == [(10,)]


def test_features_that_are_the_same_are_not_written_again(postgres: str) -> None:
    fill(postgres)
    before = run_sql(postgres, "SELECT xmin::text FROM clipkit ORDER BY name")
    with PostgresStore(postgres, width=WIDTH) as store:
        store.add(NAMES[:10], FEATURES[:10])
    assert run_sql(postgres, "SELECT xmin::text FROM clipkit ORDER BY name") == before


def test_several_write_at_once(postgres: str) -> None:
    barrier = threading.Barrier(4)

    def write(number: int) -> None:
        generator = np.random.default_rng(number)
        barrier.wait()
        with PostgresStore(postgres, width=WIDTH) as store:  # all of them make the table
            for step in range(10):
                rows = generator.permutation(400)[:150]
                store.add([NAMES[row] for row in rows], FEATURES[rows])
                store.remove([NAMES[row] for row in generator.permutation(rows)[:50]])
                store.search(QUERIES[:1], 10)
                assert step == 5 or len(store) > 0
            store.add(NAMES[:400], FEATURES[:400])
            barrier.wait()
            store.add(NAMES[:400], FEATURES[:400])

    with ThreadPoolExecutor(4) as writers:
        list(writers.map(write, range(4)))
    assert len(graphs_in(postgres)) == 1
    with PostgresStore(postgres, width=WIDTH) as store:
        (found,) = store.search(QUERIES[:1], 500)
        assert names_of(found) == nearest(NAMES[:400], FEATURES[:400], QUERIES[0], 500)


def test_threads_share_one_store(postgres: str) -> None:
    fill(postgres, 100)
    with PostgresStore(postgres, width=WIDTH) as store:

        def work(number: int) -> list[str]:
            if number % 5 == 0:
                store.add([f"new/{number}"], FEATURES[number : number + 1])
            return names_of(store.search(QUERIES[number][None], 3, where="many/*")[0])

        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(work, range(50)))
        assert len(store) == 110
    expected = [nearest(NAMES[:100], FEATURES[:100], query, 3, "many/*") for query in QUERIES]
    assert found == expected


def test_an_add_is_whole_or_not_at_all(postgres: str) -> None:
    fill(postgres)
    long = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=6000))
    with PostgresStore(postgres, width=WIDTH) as store:
        with pytest.raises(DataError, match="a name is longer than the server's index takes"):
            store.add(["new.jpg", long], FEATURES[:2])
        assert len(store) == 10
        store.add(["new.jpg"], FEATURES[:1])
        assert len(store) == 11


@pytest.mark.parametrize("table", ["Upper Case", 'quo"ted', "it's; --", "b\u00fccher", "select"])
def test_tables_may_have_any_name(postgres: str, table: str) -> None:
    fill(postgres, table=table)
    with PostgresStore(postgres, table=table, width=WIDTH) as store:
        store.add(NAMES[10:20], FEATURES[10:20])
        store.build_index()
        assert len(store) == 20
    tables = run_sql(postgres, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert tables == [(table,)]


def test_a_table_may_be_in_a_schema_and_have_columns_of_its_owner(postgres: str) -> None:
    run_sql(postgres, "CREATE SCHEMA photos")
    fill(postgres, table="photos.found")
    run_sql(
        postgres,
        "ALTER TABLE photos.found ADD COLUMN taken date DEFAULT '2026-01-01'",
    )
    with PostgresStore(postgres, table="photos.found", width=WIDTH) as store:
        store.add(NAMES[5:20], FEATURES[5:20])
        assert len(store) == 20
    taken = run_sql(postgres, "SELECT DISTINCT taken::text FROM photos.found")
    assert taken == [("2026-01-01",)]


def test_pgvector_may_be_in_a_schema_of_its_own(postgres: str) -> None:
    run_sql(postgres, "CREATE SCHEMA extensions", "CREATE EXTENSION vector SCHEMA extensions")
    fill(postgres)
    with PostgresStore(postgres, width=WIDTH) as store:
        store.build_index()
        assert names_of(store.search(FEATURES[:1], 1)[0]) == NAMES[:1]


def test_patterns_match_as_in_a_shell(postgres: str) -> None:
    """Ask the server whether random names match random patterns, as `fnmatch` says."""
    source = random.Random(0)
    letters = ["a", "b", "B", "-", "!", "]", "[", "*", "?", "\\", "^", "%", "_", ".", "/", "\n"]
    letters += ["\x1a", "0", "\u00e9", "\udce9", "\U0001f408", "{", "$", "(", "|", "+"]
    names = ["".join(source.choices(letters, k=source.randrange(5))) for _ in range(150)]
    texts = [escape_name(name) for name in names]
    assert [unescape_name(text) for text in texts] == names
    with psycopg.connect(postgres) as connection:
        for _ in range(800):
            where = "".join(source.choices([*letters, "[", "]", "*", "?"], k=source.randrange(7)))
            operator, pattern = condition_of(where)
            query = f"SELECT array(SELECT n {operator} %s FROM unnest(%s::text[]) AS n)"
            ((found,),) = connection.execute(query.encode(), (pattern, texts)).fetchall()
            assert found == [fnmatch.fnmatchcase(name, where) for name in names], repr(where)


def test_classes_of_many_characters_match(postgres: str) -> None:
    store = PostgresStore(postgres, width=WIDTH)
    names = ["\x01", "\x1a", "b", "\ud800", "\udfff", "\uffff", "\U0010ffff"]
    store.add(names, FEATURES[:7])
    for where in ("[\x02-\udc00]", "[!\x02-\udc00]", "[\x00-\U0010ffff]", "[!\x00-\U0010ffff]"):
        (found,) = store.search(QUERIES[:1], 9, where=where)
        assert names_of(found) == nearest(names, FEATURES[:7], QUERIES[0], 9, where)
    store.close()


def test_the_graph_is_built_without_shared_memory_if_there_is_too_little(postgres: str) -> None:
    store = PostgresStore(postgres, width=WIDTH)
    store.add(NAMES, FEATURES)
    failed = 0
    build = store._build

    def limited(kilobytes: int, setting: Any) -> None:
        nonlocal failed
        if setting == "SELECT 1":  # the first try, with all processors
            failed += 1
            with store._session.writing() as statement:
                statement("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$")
        build(kilobytes, setting)

    store._build = limited
    store.build_index()
    assert failed == 1
    assert len(graphs_in(postgres)) == 1
    store.close()


def test_results_are_those_of_exact_search(postgres: str) -> None:
    def found_by(store: MemoryStore | PostgresStore, queries: Floats) -> list[tuple[str, float]]:
        return [hit for hits in store.search(queries, 5) for hit in hits]

    exact, store = MemoryStore(WIDTH), PostgresStore(postgres, width=WIDTH)
    for each in (exact, store):
        each.add(NAMES[:500], FEATURES[:500])
    pairs = zip(found_by(exact, QUERIES), found_by(store, QUERIES), strict=True)
    assert all(one[0] == other[0] for one, other in pairs)
    pairs = zip(found_by(exact, QUERIES), found_by(store, QUERIES), strict=True)
    assert max(abs(one[1] - other[1]) for one, other in pairs) < 1e-6
    store.close()
