"""What a PostgreSQL server can refuse, and what it says of a store that cannot work."""

import sys
from collections.abc import Callable
from urllib.parse import quote

import pytest

from clipkit.errors import ClipkitError, ConfigError, DataError, OutputError
from clipkit.search import PostgresStore
from tests.helpers.features import names_of, random_features
from tests.helpers.postgres import postgres as postgres
from tests.helpers.postgres import postgres_server as postgres_server
from tests.helpers.postgres import run_sql

WIDTH = 32
NAMES = [f"{i}.jpg" for i in range(10)]
FEATURES = random_features(10, WIDTH)


def fill(address: str) -> None:
    """Make a store of a few features, without a graph."""
    store = PostgresStore(address, width=WIDTH)
    store.add(NAMES, FEATURES)
    store.close()


def with_options(address: str, **settings: str) -> str:
    """Return an address with settings of its sessions."""
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return f"{address}&options={quote(options)}"


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'clipkit-torch\[postgres\]'"):
        PostgresStore("postgresql://localhost/photos", width=8)


def test_a_server_that_cannot_be_reached_is_told_without_the_password() -> None:
    address = "postgresql://me:secret@/photos?host=/nowhere"
    with pytest.raises(
        DataError, match=r"no PostgreSQL .* \(host=/nowhere dbname=photos"
    ) as caught:
        PostgresStore(address, width=8)
    assert "secret" not in str(caught.value)


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="is like postgresql://user@host/database"):
        PostgresStore("my server", width=8)


def _other_width(address: str) -> None:
    fill(address)
    PostgresStore(address, width=WIDTH + 1)


def _other_table(address: str) -> None:
    run_sql(address, "CREATE TABLE photos (name text, size int)")
    PostgresStore(address, table="photos", width=WIDTH)


def _no_such_schema(address: str) -> None:
    PostgresStore(address, table="nowhere.photos", width=WIDTH)


def _three_parts(address: str) -> None:
    PostgresStore(address, table="a.b.c", width=WIDTH)


def _long_table(address: str) -> None:
    PostgresStore(address, table="a" * 59, width=WIDTH)


def _no_width(address: str) -> None:
    PostgresStore(address, width=0)


def _large_expansion(address: str) -> None:
    PostgresStore(address, width=WIDTH, expansion=1001)


def _no_pgvector(address: str) -> None:
    PostgresStore(with_options(address, extension_control_path="/nowhere"), width=WIDTH)


def _old_pgvector(address: str) -> None:
    run_sql(address, "CREATE EXTENSION vector", "UPDATE pg_extension SET extversion = '0.6.2'")
    PostgresStore(address, width=WIDTH)


def _no_permission(address: str) -> None:
    run_sql(address, "DROP ROLE IF EXISTS guest", "CREATE ROLE guest LOGIN")
    PostgresStore(address.replace("postgres@", "guest@"), width=WIDTH)


def _no_permission_to_make_tables(address: str) -> None:
    run_sql(
        address, "CREATE EXTENSION vector", "DROP ROLE IF EXISTS guest", "CREATE ROLE guest LOGIN"
    )
    PostgresStore(address.replace("postgres@", "guest@"), width=WIDTH)


def _closed(address: str) -> None:
    store = PostgresStore(address, width=WIDTH)
    store.close()
    len(store)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (_other_width, "the table clipkit has features of width 32, not 33"),
        (_other_table, "the table photos is none of a store"),
        (_no_such_schema, 'schema "nowhere" does not exist'),
        (_three_parts, 'a table is "name" or "schema.name"'),
        (_long_table, "at most 58 bytes"),
        (_no_width, "width must be at least 1, not 0"),
        (_large_expansion, "expansion must be from 1 to 1000, not 1001"),
        (_no_pgvector, "has no pgvector: install it there"),
        (_old_pgvector, r"has pgvector 0\.6\.2, and 0\.7 is needed"),
        (_no_permission, "have an administrator run CREATE EXTENSION vector"),
        (_no_permission_to_make_tables, "permission denied for schema public"),
        (_closed, "this store is closed"),
    ],
)
def test_what_cannot_work_is_told(postgres: str, use: Callable[[str], None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        use(postgres)


def test_a_database_in_another_encoding_is_told(postgres_server: str) -> None:
    run_sql(
        postgres_server,
        "DROP DATABASE IF EXISTS latin",
        "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0",
    )
    with pytest.raises(ConfigError, match=r"a database in UTF8, .* is in LATIN1"):
        PostgresStore(postgres_server.replace("/postgres?", "/latin?"), width=8)


def test_who_may_only_read_can_search(postgres: str) -> None:
    fill(postgres)
    run_sql(
        postgres,
        "DROP ROLE IF EXISTS reader",
        "CREATE ROLE reader LOGIN",
        "GRANT SELECT ON clipkit TO reader",
    )
    store = PostgresStore(postgres.replace("postgres@", "reader@"), width=WIDTH)
    assert names_of(store.search(FEATURES[:1], 1)[0]) == NAMES[:1]
    for change in (store.build_index, lambda: store.remove(NAMES[:1])):
        with pytest.raises(OutputError, match=r"cannot write clipkit .*(permission|owner)"):
            change()
    with pytest.raises(OutputError, match="permission denied"):
        store.add(NAMES[:1], -FEATURES[:1])
    assert len(store) == 10
    store.close()
    run_sql(postgres, "DROP OWNED BY reader", "DROP ROLE reader")


@pytest.mark.parametrize("kind", [DataError, OutputError])
def test_a_lost_connection_is_told_and_made_again(postgres: str, kind: type[ClipkitError]) -> None:
    fill(postgres)
    store = PostgresStore(postgres, width=WIDTH)
    run_sql(
        postgres,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )

    def use() -> None:
        if kind is DataError:
            store.search(FEATURES[:1], 3)
        else:
            store.add(["new"], FEATURES[:1])

    with pytest.raises(kind, match="terminating connection|closed the connection"):
        use()
    use()
    assert len(store) == 10 + (kind is OutputError)
    store.close()


def test_a_table_that_was_removed_is_told(postgres: str) -> None:
    store = PostgresStore(postgres, width=WIDTH)
    run_sql(postgres, "DROP TABLE clipkit")
    with pytest.raises(DataError, match='relation "public.clipkit" does not exist'):
        len(store)
    store.close()
