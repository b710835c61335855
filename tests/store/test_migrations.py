from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import inspect, select

from proxy.store.database import Database, DatabaseUnfit
from proxy.store.migrations import MIGRATIONS, migrate
from proxy.store.tables import KEYS_VERSION, META, METADATA
from tests.store.conftest import Connect

NEXT: Sequence[Sequence[str]] = (*MIGRATIONS, ("CREATE TABLE later (a INTEGER)", "INSERT INTO later VALUES (1)"))

KILLED = """
import sys
import proxy.store.migrations as migrations
from proxy.store.database import open_database

class Stuck(str):
    def format(self, **words):
        print("in the middle", flush=True)
        sys.stdin.readline()

database = open_database(sys.argv[1])
migrations.migrate(database, (migrations.MIGRATIONS[0], (Stuck("never"),)))
"""


def tables(database: Database) -> dict[str, set[str]]:
    with database.read() as connection:
        there = inspect(connection)
        return {name: {one["name"] for one in there.get_columns(name)} for name in there.get_table_names()}


def test_what_is_made_is_what_the_queries_name(database: Database) -> None:
    assert tables(database) == {table.name: set(table.columns.keys()) for table in METADATA.tables.values()}
    with database.read() as connection:
        there = inspect(connection)
        for table in METADATA.tables.values():
            assert {one["name"] for one in there.get_indexes(table.name) if not one.get("duplicates_constraint")} == {
                index.name for index in table.indexes
            }
            primary = there.get_pk_constraint(table.name)["constrained_columns"]
            assert primary == [column.name for column in table.primary_key]
            nullable = {one["name"] for one in there.get_columns(table.name) if one["nullable"]}
            assert nullable == {column.name for column in table.columns if column.nullable}


def test_a_second_time_it_does_nothing(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(KEYS_VERSION.update().values(version=5))
    migrate(database)
    with database.read() as connection:
        assert connection.execute(select(KEYS_VERSION.c.version)).all() == [(5,)]


def test_the_next_version_keeps_what_is_there(database: Database) -> None:
    migrate(database, NEXT)
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT a FROM later").all() == [(1,)]
        assert connection.execute(select(META.c.version)).all() == [(len(NEXT),)]


def test_a_newer_schema_is_refused_and_left_alone(database: Database) -> None:
    migrate(database, NEXT)
    with pytest.raises(DatabaseUnfit, match=f"version {len(NEXT)}, and this mistral-proxy knows {len(MIGRATIONS)}"):
        migrate(database)
    with database.read() as connection:
        assert connection.execute(select(META.c.version)).all() == [(len(NEXT),)]


def test_many_that_start_at_once(url: str, connect: Connect) -> None:
    databases = [connect(url) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda one: migrate(one, NEXT), databases))
    with databases[0].read() as connection:
        assert connection.execute(select(META.c.version)).all() == [(len(NEXT),)]
        assert connection.exec_driver_sql("SELECT a FROM later").all() == [(1,)]


def test_one_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(Exception, match="nonsense"):
        migrate(database, (*MIGRATIONS, ("CREATE TABLE half (a INTEGER)", "nonsense")))
    assert "half" not in tables(database)
    migrate(database, NEXT)


def test_one_that_is_killed_leaves_nothing(url: str, connect: Connect) -> None:
    """kill -9 between two statements of a migration: it happens in the middle of the transaction."""
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, url], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert child.stdout
    assert child.stdin
    assert child.stdout.readline() == "in the middle\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    child.stdin.close()
    database = connect(url)
    assert tables(database) == {}
    migrate(database)
    assert "calls" in tables(database)
