from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from proxy.store.database import Database, DatabaseGone, DatabaseUnfit, _prepare_sqlite, open_database
from proxy.store.migrations import MIGRATIONS, migrate
from proxy.store.tables import META
from tests.postgres_server import PASSWORD, PostgresServer
from tests.store.conftest import Connect


def version(database: Database) -> int:
    with database.read() as connection:
        number: int = connection.execute(select(META.c.version)).scalar_one()
    return number


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "ledger.db",
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://user:secret-word@host/name",
        "postgresql://user:secret-word@host:port/name",
        "postgresql+psycopg2://user:secret-word@host/name",
    ],
)
def test_a_url_of_nothing_we_know(bad: str) -> None:
    with pytest.raises(DatabaseUnfit) as caught:
        open_database(bad)
    assert "secret-word" not in str(caught.value)
    assert "sqlite:///" in str(caught.value)


def test_without_a_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "proxy.store.postgres", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DatabaseUnfit, match=r"mistral-proxy\[postgres\]"):
        open_database("postgresql://user@host/name")


def test_a_file_that_is_no_database(tmp_path: Path, connect: Connect) -> None:
    (tmp_path / "notes.txt").write_text("Not a database. " * 100)
    with pytest.raises(DatabaseUnfit, match="not a database"):
        migrate(connect(f"sqlite:///{tmp_path}/notes.txt"))


def test_a_folder_that_does_not_exist(tmp_path: Path, connect: Connect) -> None:
    with pytest.raises(DatabaseGone, match="unable to open"):
        migrate(connect(f"sqlite:///{tmp_path}/missing/ledger.db"))


def test_sqlite_keeps_what_it_has_committed_through_a_power_failure(tmp_path: Path, connect: Connect) -> None:
    with connect(f"sqlite:///{tmp_path}/ledger.db").read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2


def test_what_is_raised_in_a_transaction_undoes_it(database: Database) -> None:
    with pytest.raises(RuntimeError), database.begin() as connection:
        connection.execute(META.update().values(version=77))
        raise RuntimeError
    assert version(database) == len(MIGRATIONS)


def test_all_that_is_read_in_one_transaction_is_of_one_state(database: Database) -> None:
    query = select(META.c.version)
    with database.read() as reading:
        before = reading.execute(query).scalar_one()
        with database.begin() as connection:
            connection.execute(META.update().values(version=77))
        assert reading.execute(query).scalar_one() == before
    assert version(database) == 77


def test_a_connection_that_has_read_can_write(remote: Database) -> None:
    for number in range(5):
        with remote.begin() as connection:
            connection.execute(META.update().values(version=number))
        assert version(remote) == number


def test_who_reads_cannot_write(remote: Database) -> None:
    with pytest.raises(DatabaseGone, match="read-only"), remote.read() as connection:
        connection.execute(META.update().values(version=77))


def test_a_constraint_is_no_trouble_of_the_database(database: Database) -> None:
    with pytest.raises(IntegrityError), database.begin() as connection:
        connection.execute(insert(META).values(version=None))


def test_a_writer_waits_for_another_one_though_it_reads_first(tmp_path: Path, connect: Connect) -> None:
    """SQLite fails at once, whatever the timeout, when a transaction that has read is to write after another one."""
    database = connect(f"sqlite:///{tmp_path}/ledger.db")
    migrate(database)
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    with database.begin() as connection:
        assert connection.execute(select(META.c.version)).scalar_one() == len(MIGRATIONS)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("PRAGMA busy_timeout = 0").connection.execute("BEGIN IMMEDIATE")
        connection.execute(META.update().values(version=88))
    assert version(database) == 88
    other.close()


def test_a_lock_is_not_waited_for_longer_than_said(tmp_path: Path, connect: Connect) -> None:
    database = connect(f"sqlite:///{tmp_path}/ledger.db")
    migrate(database)
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseGone, match="locked"), database.begin(0.05):
        pass
    other.execute("ROLLBACK")
    with database.begin(0.05) as connection:
        connection.execute(META.update().values(version=5))
    other.close()


# PostgreSQL.


@pytest.fixture
def remote(postgres: PostgresServer, connect: Connect) -> Database:
    database = connect(postgres.fresh())
    migrate(database)
    return database


@pytest.mark.parametrize(("word", "replaced"), [(PASSWORD, "wrong-word"), ("test_", "missing_")])
def test_who_is_not_let_in(postgres: PostgresServer, word: str, replaced: str, connect: Connect) -> None:
    bad = connect(postgres.fresh().replace(word, replaced))
    with pytest.raises((DatabaseGone, DatabaseUnfit)) as caught, bad.read():
        pass
    assert PASSWORD not in str(caught.value)
    assert "wrong-word" not in str(caught.value)


def test_the_server_ends_what_takes_too_long(remote: Database) -> None:
    with pytest.raises(DatabaseGone, match="statement timeout"), remote.read(0.05) as connection:
        connection.exec_driver_sql("SELECT pg_sleep(20)")
    assert version(remote) == len(MIGRATIONS)


def test_a_server_that_is_killed_and_comes_back(postgres: PostgresServer, remote: Database) -> None:
    postgres.kill()
    with pytest.raises(DatabaseGone, match="refused"):
        version(remote)
    postgres.start()
    assert version(remote) == len(MIGRATIONS)


def test_a_session_that_was_ended(postgres: PostgresServer, remote: Database) -> None:
    with pytest.raises(DatabaseGone), remote.begin() as connection:
        name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
        postgres.disconnect(name)
        connection.execute(META.update().values(version=5))
    assert version(remote) == len(MIGRATIONS)


def test_a_server_that_is_frozen_in_the_middle(postgres: PostgresServer, remote: Database) -> None:
    """Its kernel takes all that we send: nothing but our own clock ends the wait."""
    with pytest.raises(DatabaseGone), remote.read(0.05) as connection:
        with postgres.frozen():
            connection.execute(select(META.c.version))
    assert version(remote) == len(MIGRATIONS)


def test_a_server_is_named_by_its_trouble_only(remote: Database) -> None:
    with pytest.raises(DatabaseUnfit, match="does not exist") as caught, remote.read() as connection:
        connection.exec_driver_sql("SELECT 'a-value' FROM missing")
    assert "a-value" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_new_file_that_others_change_to_wal_as_well(tmp_path: Path) -> None:
    """SQLite then says so at once, to all of them but one: their start must not fail."""

    class Hindered(sqlite3.Connection):
        refusals = 2

        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if "journal_mode" in sql and self.refusals:
                self.refusals -= 1
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise error
            return super().execute(sql, *parameters)

    connection = sqlite3.connect(tmp_path / "ledger.db", factory=Hindered)
    _prepare_sqlite(connection, None)
    assert connection.refusals == 0
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
