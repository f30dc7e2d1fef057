"""Keep features in a PostgreSQL server with pgvector, for those who outgrow one machine.

A table has a name and a feature in each row. Features are `halfvec`, float16 as in the other
stores. A graph over them (pgvector's HNSW) finds the nearest approximately; without one the server
compares all of them.
"""

import struct
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from clipkit.errors import ConfigError, OutputError
from clipkit.fields import read_count
from clipkit.search.postgres_session import Session
from clipkit.search.sql_patterns import condition_of, escape_name, unescape_name
from clipkit.search.store import Floats, Hit, check_features

if TYPE_CHECKING:
    from typing_extensions import LiteralString

_SLACK = 16  # more candidates than asked for, because the graph compares in float16
_MAX_EXPANSION = 1000  # pgvector's
_GRAPH_BYTES = 512  # of a feature in the graph while it is built, beside the feature
_MAX_MEMORY = 4 << 30  # bytes that building the graph asks for at most

# Of the binary format: a signature, flags and no extension; a row of -1 columns at the end.
# https://www.postgresql.org/docs/current/sql-copy.html
_COPY_START, _COPY_END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"

# The candidates come from the graph, or from all rows if adding 0 keeps the graph out of it. Their
# cosines are taken again with the query in float32.
_NEAREST: "LiteralString" = """
    SELECT name, -(feature::vector <#> %(query)s::vector) AS cosine
    FROM (
        SELECT name, feature FROM {table} WHERE {condition}
        ORDER BY {order} LIMIT %(count)s
    ) AS candidates
    ORDER BY cosine DESC, name LIMIT %(k)s
"""
_IN_GRAPH: "LiteralString" = "feature <#> %(query)s::vector::halfvec"
_IN_ALL: "LiteralString" = "(feature <#> %(query)s::vector::halfvec) + 0"

# In the same order by all writers, so that no two wait for each other.
_UPSERT = """
    INSERT INTO {table} AS old (name, feature)
    SELECT name, feature FROM clipkit_added ORDER BY name
    ON CONFLICT (name) DO UPDATE SET feature = excluded.feature
    WHERE old.feature <> excluded.feature
"""
_DELETE = """
    DELETE FROM {table} WHERE name IN (
        SELECT name FROM {table} WHERE name = ANY(%(names)s) ORDER BY name FOR UPDATE
    )
"""
_HAS_GRAPH = """
    SELECT count(*) > 0 FROM pg_index
    JOIN pg_class ON pg_class.oid = indexrelid
    JOIN pg_am ON pg_am.oid = relam
    WHERE indrelid = %(table)s::regclass AND amname = 'hnsw'
"""
_SET_MEMORY = """
    SELECT set_config('maintenance_work_mem', greatest(
        pg_size_bytes(current_setting('maintenance_work_mem')) / 1024, %(kilobytes)s)::text, true)
"""


class PostgresStore:
    """Keep features in a table of a PostgreSQL server, and find the nearest approximately.

    Each `add` and `remove` is one transaction. Several processes may write at a time, each with a
    store of its own. The graph is built by `build_index`, or at the end of the first `with` block
    that adds features. From then on the server keeps it up to date.

    Args:
        dsn: the address of the server, such as "postgresql://user@host/database".
        table: its name, or "schema.name". It is made if it does not exist. It may have more columns
            of your own, and other tables can be joined by its `name`.
        width: of the features, D.
        expansion: candidates that a search holds. More find more of the nearest, and take longer.

    Attributes:
        width: of the features.

    Raises:
        ConfigError: if psycopg is missing, the server has no pgvector 0.7 and the user may not
            install it, or the table is another one.
        DataError: if no server answers.

    Example:
        with PostgresStore("postgresql://me@server/photos", width=512) as store:
            index.copy_to(store)
    """

    def __init__(
        self, dsn: str, *, table: str = "clipkit", width: int, expansion: int = 128
    ) -> None:
        if not 1 <= expansion <= _MAX_EXPANSION:
            raise ConfigError(f"expansion must be from 1 to {_MAX_EXPANSION}, not {expansion}")
        if width < 1:
            raise ConfigError(f"width must be at least 1, not {width}")
        self.width = width
        self._expansion = expansion
        self._was_filled = False
        self._session = Session(dsn, table, width)

    def __enter__(self) -> "PostgresStore":
        """Return the store."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Build the graph if features were added and there is none, and close the connection."""
        try:
            if error is None and self._was_filled:
                self.build_index()
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection. The store cannot be used afterwards."""
        self._session.close()

    def __len__(self) -> int:
        """Return the number of names."""
        return self._session.ask("SELECT count(*) FROM {table}")[0][0]

    def add(self, names: Sequence[str], features: Floats) -> None:
        """Add features, (n, D) float32. A name that is there already gets the new one.

        Raises:
            DataError: if features are of another width or not of unit length, or a name is too long
                for the server's index.
            OutputError: if the server is gone, or does not let the user write.
        """
        checked = check_features(features, self.width, len(names))
        own = dict(zip(names, range(len(names)), strict=True))  # of a name's last feature
        if not own:
            return
        rows = np.fromiter(own.values(), np.int64, len(own))
        content = _copy_rows(list(own), checked[rows])
        with self._session.writing() as run:
            run(
                "CREATE TEMP TABLE clipkit_added ON COMMIT DROP AS "
                "SELECT name, feature FROM {table} WITH NO DATA"
            )
            run.copy("COPY clipkit_added FROM STDIN (FORMAT BINARY)", content)
            run(_UPSERT)
        self._was_filled = True

    def remove(self, names: Sequence[str]) -> None:
        """Remove features by name. A name that is not there is no error.

        Raises:
            OutputError: if the server is gone, or does not let the user write.
        """
        with self._session.writing() as run:
            run(_DELETE, names=[escape_name(name) for name in names])

    def search(self, queries: Floats, k: int, where: str | None = None) -> list[list[Hit]]:
        """Return about the `k` nearest of each query (q, D), the nearest first; see `Store`.

        Never fewer than `k` where so many match `where`. Their cosines are exact.

        Raises:
            DataError: if queries are of another width or not of unit length, or the server is gone.
            ConfigError: if `k` is no positive integer.
        """
        k = read_count("k", k, 1)
        checked = check_features(queries, self.width)
        self._session.set_expansion(min(max(self._expansion, k + _SLACK), _MAX_EXPANSION))
        return [self._search(query, k, where) for query in checked]

    def build_index(self) -> None:
        """Build the graph, unless there is one. Others can search meanwhile, and wait to write.

        The server takes up to 4 GB of memory for it, about 1.5 GB for a million features of D =
        512, and as many processors as its `max_parallel_maintenance_workers` says.

        Raises:
            OutputError: if the server is gone, or does not let the user do it.
        """
        kilobytes = min(len(self) * (2 * self.width + _GRAPH_BYTES), _MAX_MEMORY) >> 10
        try:
            self._build(kilobytes, "SELECT 1")
        except OutputError as error:
            if not self._session.lacks_space(error):
                raise
            # Processors share the memory in /dev/shm, which containers make small.
            self._build(kilobytes, "SET LOCAL max_parallel_maintenance_workers = 0")

    def _build(self, kilobytes: int, setting: "LiteralString") -> None:
        with self._session.writing() as run:
            run.wait_for_others()
            if run(_HAS_GRAPH, table=self._session.table)[0][0]:
                return
            run(setting)
            run(_SET_MEMORY, kilobytes=kilobytes)
            run("CREATE INDEX ON {table} USING hnsw (feature halfvec_ip_ops)")

    def _search(self, query: Floats, k: int, where: str | None) -> list[Hit]:
        """Return the nearest of one query, (D,)."""
        text = "[" + ",".join(map(repr, query.tolist())) + "]"
        values: dict[str, Any] = {"query": text, "k": k, "count": k + _SLACK}
        condition: LiteralString = "true"
        if where is not None:
            operator, values["pattern"] = condition_of(where)
            condition = "name LIKE %(pattern)s" if operator == "LIKE" else "name ~ %(pattern)s"
        graph = _NEAREST.replace("{condition}", condition).replace("{order}", _IN_GRAPH)
        rows = self._session.ask(graph, values)
        if len(rows) < k:  # the search in the graph ended early, or there are no more
            every = _NEAREST.replace("{condition}", condition).replace("{order}", _IN_ALL)
            rows = self._session.ask(every, values)
        return [Hit(unescape_name(name), cosine) for name, cosine in rows]


def _copy_rows(names: Sequence[str], features: Floats) -> bytes:
    """Return rows of names and features, (n, D), as COPY reads them, in network byte order."""
    width = features.shape[1]
    head = struct.pack(">ihh", 4 + 2 * width, width, 0)  # bytes, and what a halfvec begins with
    parts = [_COPY_START]
    for name, row in zip(names, features.astype(">f2"), strict=True):
        text = escape_name(name).encode()
        parts += [struct.pack(">hi", 2, len(text)), text, head, row.tobytes()]
    return b"".join([*parts, _COPY_END])
