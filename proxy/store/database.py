"""One database, SQLite or PostgreSQL, behind two kinds of transaction and two kinds of trouble.

Nothing here waits for ever: not for a lock, not for an answer, not for a connection. It all blocks, so it runs in
threads. Importing SQLAlchemy takes 0.2 s: whoever may need no database imports this module when it is needed.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

PATIENCE: Final = 2.0
"""Seconds that a connection, a lock or the answer to a statement is waited for."""

GRACE: Final = 0.5
"""Seconds after which a server is dead that should have ended a statement by itself."""

_AGAIN: Final = 0.005
"""Seconds after which what SQLite did not want to wait for is asked again."""

IDLE_TRANSACTION: Final = 10_000
"""Milliseconds after which PostgreSQL ends the transaction of a process that is frozen, and frees its locks."""

_URLS: Final = "sqlite:///path/file.db or postgresql://user:password@host/name"

_OLDEST_SQLITE: Final = (3, 24, 0)
"""The first with ON CONFLICT."""

_HOPELESS_SQLITE: Final = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_MISMATCH})
_HOPELESS_POSTGRES: Final = ("28", "3D", "42", "3F", "0A")
"""Classes of SQLSTATE: not let in, no such database, no such table or right to it, no such schema, not supported."""

_ONE_STATE: Final[Mapping[str, Any]] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
"""Of a transaction that reads: by itself PostgreSQL lets each statement see what was committed before it, and sums of
several would be of several states. SQLite's transactions are like this anyhow."""


class DatabaseUnfit(Exception):
    """No retry mends this: its message tells what to do, and has no password in it."""


class DatabaseGone(Exception):
    """It does not answer, is locked, full or read-only: it may be well again later."""


_Identity = tuple[int, int]
"""Device and inode of a file."""


class DatabaseFile:
    """The file of a SQLite database. Who has it open goes on with it when its name is another one's, or nobody's."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: _Identity | None = None
        self._beside: dict[str, _Identity | None] = {}
        """What SQLite keeps beside it while it is in use, by name, as last seen."""

    def opened(self) -> None:
        """The first time it is the one that it was then."""
        self._known = self._known or _identity(self._path)

    def is_another(self) -> bool:
        """Whether it is, since it was last asked. Raises DatabaseGone when there is none any more: one that comes into
        being by itself would hide the loss. So it does while anything of the last one is left behind, which SQLite
        would take for the new one's."""
        if self._known is None:
            return False
        found = _identity(self._path)
        beside = {name: _identity(name) for name in (f"{self._path}-wal", f"{self._path}-shm")}
        if found is None:
            raise DatabaseGone(f"its file {self._path} has gone: put it back, or restart to begin a new one")
        is_another = found != self._known
        if is_another:
            for name, identity in beside.items():
                if identity is not None and identity == self._beside.get(name):
                    raise DatabaseGone(f"{name} belongs to the file that {self._path} was: move it along with that")
        self._known, self._beside = found, beside
        return is_another


def _identity(path: str) -> _Identity | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Database:
    """`dialect` is `sqlite` or `postgresql`. Connections are made when they are needed: two, and two
    more for a moment when those are in use. `replaced` counts how often its file was found to be another one."""

    def __init__(self, engine: Engine, file: DatabaseFile | None = None) -> None:
        self._engine = engine
        self._file = file
        self.replaced = 0
        self._driver_error = engine.dialect.loaded_dbapi.Error
        self.dialect = engine.dialect.name
        self.mark = "?" if self.dialect == "sqlite" else "%s"
        """What stands for a value in a statement of text."""
        self._one_state: Mapping[str, Any] = _ONE_STATE if self.dialect == "postgresql" else {}

    @contextmanager
    def begin(self, patience: float = PATIENCE) -> Iterator[Connection]:
        """A transaction that writes: committed at the end, rolled back when anything is raised.

        Raises DatabaseGone, also when the commit was sent and no reply came: then nobody knows whether it was done.
        """
        with self._transaction(True, patience) as connection:
            yield connection

    @contextmanager
    def read(self, patience: float = PATIENCE) -> Iterator[Connection]:
        """A transaction that reads one state of the database. Raises DatabaseGone."""
        with self._transaction(False, patience) as connection:
            yield connection

    def look(self) -> None:
        """Whether it is still where it was; every transaction does so first. Raises DatabaseGone."""
        if self._file and self._file.is_another():
            self._engine.dispose()
            self.replaced += 1

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _transaction(self, writes: bool, patience: float) -> Iterator[Connection]:
        self.look()
        try:
            with self._engine.connect() as connection:
                connection.execution_options(writes=writes, patience=patience, **({} if writes else self._one_state))
                with connection.begin():
                    yield connection
        except (DataError, IntegrityError):
            raise
        except PoolTimeout:
            raise DatabaseGone("every connection to the database is in use") from None
        except DBAPIError as error:
            raise _trouble(error.orig, self._engine.url) from None
        except self._driver_error as error:  # while a connection was made
            raise _trouble(error, self._engine.url) from None


def place(url: str) -> str:
    """Where it is, for people: without a password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return "its URL"
    return parsed.database or "" if parsed.drivername == "sqlite" else f"{parsed.host}/{parsed.database}"


def open_database(url: str) -> Database:
    """`sqlite:///path` or `postgresql://user:password@host/name`. Connects to nothing yet. Raises DatabaseUnfit."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise DatabaseUnfit(f"its URL is not like {_URLS}") from None
    if parsed.drivername == "sqlite":
        file = DatabaseFile(parsed.database or "")
        return Database(_sqlite(parsed, file), file)
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        return Database(_postgresql(parsed))
    raise DatabaseUnfit(f"there is no support for {parsed.drivername!r}: its URL must be like {_URLS}")


# SQLite: a transaction that reads first and writes later fails at once when another one wrote in between, whatever the
# timeout. So those that write say so when they begin.


def _sqlite(url: URL, file: DatabaseFile) -> Engine:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise DatabaseUnfit(f"SQLite {sqlite3.sqlite_version} is too old: 3.24 is the first that will do")
    if not url.database or url.database == ":memory:":
        raise DatabaseUnfit("a SQLite database is a file: sqlite:///path/file.db")
    engine = create_engine(
        url.set(drivername="sqlite+pysqlite"),
        poolclass=QueuePool,
        pool_size=2,
        max_overflow=2,
        pool_timeout=PATIENCE,
        connect_args={"timeout": PATIENCE, "isolation_level": None, "check_same_thread": False},
        hide_parameters=True,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "connect", lambda *_: file.opened())
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    """FULL: what is committed outlives a power failure. It costs one fsync for each batch of calls."""
    _write_ahead(connection)
    for pragma in ("synchronous = FULL", "journal_size_limit = 67108864"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Several that change a new file to WAL at once are in each other's way, and SQLite tells all but one so at once,
    whatever the timeout: waiting could be a deadlock. Asked again, they find it done."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if _code(error) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(_AGAIN)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    patience = options["patience"]
    if connection.info.get("patience", PATIENCE) != patience:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {_milliseconds(patience)}")
        connection.info["patience"] = patience
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options["writes"] else "BEGIN")


# PostgreSQL: the server ends a statement that takes too long, and the client a connection whose server does not even
# do that.


def _postgresql(url: URL) -> Engine:
    try:
        from proxy.store.postgres import Connection as Postgres
    except ImportError:
        raise DatabaseUnfit("PostgreSQL needs a driver: pip install 'mistral-proxy[postgres]'") from None
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=2,
        max_overflow=2,
        pool_timeout=PATIENCE,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "connect_timeout": int(PATIENCE),
            "application_name": "mistral-proxy",
            "options": f"-c statement_timeout={_milliseconds(PATIENCE)}"
            f" -c idle_in_transaction_session_timeout={IDLE_TRANSACTION}",
        },
    )

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> Postgres:
        return Postgres.connect(*arguments, **options)

    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _begin_postgresql(connection: Connection) -> None:
    patience = connection.get_execution_options()["patience"]
    driver: Any = connection.connection.driver_connection
    driver.patience = patience + GRACE
    if patience != PATIENCE:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {_milliseconds(patience)}")


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


# What went wrong.


def _trouble(cause: BaseException | None, url: URL) -> DatabaseGone | DatabaseUnfit:
    said = str(cause).strip().split("\n")[0]
    if url.password:
        said = said.replace(str(url.password), "***")
    if isinstance(cause, sqlite3.Error):
        return DatabaseUnfit(said) if _code(cause) & 0xFF in _HOPELESS_SQLITE else DatabaseGone(said)
    state = getattr(cause, "sqlstate", None) or ""
    return DatabaseUnfit(said) if state.startswith(_HOPELESS_POSTGRES) else DatabaseGone(said)


def _code(error: sqlite3.Error) -> int:
    """SQLite's extended result code; of an error of the driver's own 0."""
    return getattr(error, "sqlite_errorcode", 0)
