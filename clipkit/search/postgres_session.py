"""Hold a connection to a PostgreSQL server, and the table of a store in it."""

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clipkit.errors import ClipkitError, ConfigError, DataError, OutputError

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql
    from typing_extensions import LiteralString

_WAIT = "10"  # seconds for a server to answer, where the address does not say
_LOCK = 0x636C6970  # of those who make tables; any number that others do not take
_LEAST = (0, 7)  # the first pgvector with `halfvec`
_ITERATIVE = (0, 8)  # the first that goes on searching where a filter leaves too few
_LONGEST = 58  # bytes of a name: PostgreSQL cuts at 63, and appends to it for an index's

# Statements are planned anew each time, because a good plan depends on the pattern of names, and
# are not compiled, which takes longer than most searches.
_SETTINGS = "SET jit = off; SET plan_cache_mode = force_custom_plan"

_ABOUT_SERVER = """
    SELECT current_setting('server_encoding'), extversion, nspname
    FROM (SELECT 1) AS one
    LEFT JOIN pg_extension ON extname = 'vector'
    LEFT JOIN pg_namespace ON pg_namespace.oid = extnamespace
"""
_COLUMNS = """
    SELECT nspname, relname, attname, format_type(atttypid, atttypmod)
    FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    JOIN pg_attribute ON attrelid = pg_class.oid
    WHERE pg_class.oid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped
"""


class Run:
    """Run statements of one transaction, in which {table} stands for the table."""

    def __init__(
        self, cursor: "psycopg.Cursor[Any]", fill: "Callable[[LiteralString], sql.Composed]"
    ) -> None:
        self._cursor = cursor
        self._fill = fill

    def __call__(self, query: "LiteralString", **values: Any) -> list[Any]:
        """Run a statement, and return its rows if it has any."""
        self._cursor.execute(self._fill(query), values or None)
        return self._cursor.fetchall() if self._cursor.description else []

    def copy(self, query: "LiteralString", content: bytes) -> None:
        """Run a COPY from what it is given."""
        with self._cursor.copy(self._fill(query)) as copy:
            copy.write(content)

    def wait_for_others(self) -> None:
        """Wait until no other store makes a table or a graph, and have others wait for the end."""
        self("SELECT pg_advisory_xact_lock(%(lock)s)", lock=_LOCK)


class Session:
    """Ask a server about one table.

    A connection that was lost, as when the server was started anew, is made again by the next
    question.

    Args:
        dsn: of the server.
        table: its name, or "schema.name".
        width: of the features, D.

    Raises:
        ConfigError: if psycopg is missing, the server has no pgvector 0.7 and the user may not
            install it, or the table is another one.
        DataError: if no server answers.
    """

    def __init__(self, dsn: str, table: str, width: int) -> None:
        self._psycopg = _import_psycopg()
        self._dsn = dsn
        self._given = _spell_table(table)
        self._width = width
        self._lock = threading.RLock()  # several threads may ask, one transaction at a time
        self._is_closed = False
        self._shown, self._address = self._read_dsn()
        self._connection = self._connect()

    def ask(self, query: "LiteralString", values: Mapping[str, Any] | None = None) -> list[Any]:
        """Return the rows of a question, in which {table} stands for the table.

        Raises:
            DataError: if the server is gone, or does not answer.
        """
        with self._lock, self._typed_errors(DataError, "read"):
            return self._open().execute(self._filled(query), values).fetchall()

    @contextmanager
    def writing(self) -> "Generator[Run, None, None]":
        """Give what runs statements in a transaction. It counts at the end of the block, as one.

        Raises:
            OutputError: if the server is gone, or does not let the user write.
        """
        with self._lock, self._typed_errors(OutputError, "write"):
            connection = self._open()
            with connection.transaction(), connection.cursor() as cursor:
                yield Run(cursor, self._filled)

    @property
    def table(self) -> str:
        """Return the schema and the name of the table, with quotes."""
        return self._table.as_string(None)

    def lacks_space(self, error: BaseException) -> bool:
        """Return whether an error is of a disk, or of shared memory, that is full."""
        return isinstance(error.__cause__, self._psycopg.errors.DiskFull)

    def set_expansion(self, candidates: int) -> None:
        """Set how many candidates a search in the graph holds."""
        with self._lock:
            if candidates != self._expansion:
                query = "SELECT set_config('hnsw.ef_search', %(value)s, false)"
                self.ask(query, {"value": str(candidates)})
                self._expansion = candidates

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._is_closed = True
            self._connection.close()

    def _open(self) -> "psycopg.Connection[Any]":
        """Return the connection, made again if it was lost."""
        if self._is_closed:
            raise ConfigError("this store is closed: make another one")
        if self._connection.closed:
            self._connection = self._connect()
        return self._connection

    def _filled(self, query: "LiteralString") -> "sql.Composed":
        return self._psycopg.sql.SQL(query).format(table=self._table)

    def _read_dsn(self) -> tuple[str, str]:
        """Return how messages name the server, without a password, and its full address."""
        conninfo = self._psycopg.conninfo
        try:
            values = conninfo.conninfo_to_dict(self._dsn)
        except self._psycopg.Error as error:
            raise ConfigError(
                "the address of a PostgreSQL server is like postgresql://user@host/database: "
                f"{str(error).strip()}"
            ) from error
        shown = " ".join(
            f"{name}={values[name]}"
            for name in ("host", "port", "dbname", "user")
            if name in values
        )
        values.setdefault("connect_timeout", _WAIT)
        return shown or "of this machine", conninfo.make_conninfo("", **values)

    def _connect(self) -> "psycopg.Connection[Any]":
        """Return a connection with all settings, to a server with pgvector and the table."""
        try:
            connection = self._psycopg.connect(
                self._address, autocommit=True, client_encoding="utf8"
            )
        except self._psycopg.Error as error:
            raise DataError(
                f"no PostgreSQL server can be reached ({self._shown}): {str(error).strip()}"
            ) from error
        self._expansion = 0
        try:
            with self._typed_errors(ConfigError, "set up"):
                self._set_up(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_up(self, connection: "psycopg.Connection[Any]") -> None:
        """Make sure of pgvector and of the table, and apply the settings of a session."""
        connection.execute(_SETTINGS)
        version = self._find_extension(connection)
        if version >= _ITERATIVE:
            connection.execute("SELECT set_config('hnsw.iterative_scan', 'relaxed_order', false)")
        found = self._find_table(connection)
        if found is None:
            self._make_table(connection)
            found = self._find_table(connection)
        if found is None:
            raise DataError(f"the table {'.'.join(self._given)} was removed while it was made")
        self._table = self._psycopg.sql.Identifier(*found)

    def _find_extension(self, connection: "psycopg.Connection[Any]") -> tuple[int, ...]:
        """Return the version of pgvector, which is installed in the database if it is not."""
        encoding, version, schema = connection.execute(_ABOUT_SERVER).fetchall()[0]
        if encoding != "UTF8":
            raise ConfigError(
                f"names of images need a database in UTF8, and this one ({self._shown}) is in "
                f"{encoding}"
            )
        if version is None:
            self._install_extension(connection)
            _, version, schema = connection.execute(_ABOUT_SERVER).fetchall()[0]
        numbers = tuple(int(part) for part in version.split("."))
        if numbers < _LEAST:
            raise ConfigError(
                f"the database has pgvector {version}, and 0.7 is needed: update it, and run "
                "ALTER EXTENSION vector UPDATE"
            )
        connection.execute(
            "SELECT set_config('search_path', concat_ws(', ', "
            "nullif(current_setting('search_path'), ''), quote_ident(%(schema)s)), false)",
            {"schema": schema},
        )
        return numbers

    def _install_extension(self, connection: "psycopg.Connection[Any]") -> None:
        errors = self._psycopg.errors
        try:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%(lock)s)", {"lock": _LOCK})
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except errors.InsufficientPrivilege as error:
            raise ConfigError(
                f"the database ({self._shown}) lacks pgvector, and this user may not install it: "
                "have an administrator run CREATE EXTENSION vector"
            ) from error
        except (errors.FeatureNotSupported, errors.UndefinedFile) as error:
            raise ConfigError(
                f"the server ({self._shown}) has no pgvector: install it there, see "
                "https://github.com/pgvector/pgvector#installation"
            ) from error

    def _find_table(self, connection: "psycopg.Connection[Any]") -> tuple[str, str] | None:
        """Return the schema and the name of the table, or None if there is none."""
        quoted = self._psycopg.sql.Identifier(*self._given).as_string(connection)
        rows = connection.execute(_COLUMNS, {"table": quoted}).fetchall()
        if not rows:
            return None
        types = {column: kind for _, _, column, kind in rows}
        name = ".".join(self._given)
        kind = types.get("feature", "")
        if types.get("name") != "text" or not kind.startswith("halfvec("):
            raise ConfigError(
                f"the table {name} is none of a store, which has the columns name text and feature "
                "halfvec: give another table="
            )
        if kind != f"halfvec({self._width})":
            raise ConfigError(
                f"the table {name} has features of width {kind[8:-1]}, not {self._width}: they are "
                "of another model. Give another table="
            )
        return rows[0][0], rows[0][1]

    def _make_table(self, connection: "psycopg.Connection[Any]") -> None:
        """Make the table. Its names are sorted by their bytes, so that an index serves prefixes."""
        sql = self._psycopg.sql
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%(lock)s)", {"lock": _LOCK})
            connection.execute(
                sql.SQL(
                    'CREATE TABLE IF NOT EXISTS {table} (name text COLLATE "C" PRIMARY KEY, '
                    "feature halfvec({width}) NOT NULL)"
                ).format(table=sql.Identifier(*self._given), width=sql.Literal(self._width))
            )

    @contextmanager
    def _typed_errors(self, kind: type[ClipkitError], what: str) -> Generator[None, None, None]:
        """Turn psycopg's errors into ours."""
        try:
            yield
        except self._psycopg.errors.ProgramLimitExceeded as error:
            raise DataError(
                "a name is longer than the server's index takes, about 2,700 bytes: "
                f"{str(error).strip()}"
            ) from error
        except self._psycopg.Error as error:
            name = ".".join(self._given)
            raise kind(f"cannot {what} {name} ({self._shown}): {str(error).strip()}") from error


def _spell_table(table: str) -> tuple[str, ...]:
    """Return the parts of a table's name, its schema first if it has one.

    Raises:
        ConfigError: if PostgreSQL cannot take it as it is.
    """
    parts = tuple(table.split("."))
    is_sound = len(parts) <= 2 and all(
        part and "\0" not in part and len(part.encode("utf-8", "replace")) <= _LONGEST
        for part in parts
    )
    if not is_sound:
        raise ConfigError(
            f'a table is "name" or "schema.name", of at most 58 bytes each, not {table!r:.99}'
        )
    return parts


def _import_psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise ConfigError(
            "a PostgreSQL server needs psycopg: pip install 'clipkit-torch[postgres]'"
        ) from error
    return psycopg
