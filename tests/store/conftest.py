"""An empty database of each kind. A real PostgreSQL is always there: nothing is ever skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.store.database import Database, open_database
from proxy.store.migrations import migrate
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer

Connect = Callable[[str], Database]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests of a session."""
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """An empty Redis, which a test may freeze and kill."""
    redis_server.command("FLUSHALL")
    yield redis_server
    redis_server.cont()
    if redis_server.process.poll() is not None:
        redis_server.restart()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty database is."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.fresh()


@pytest.fixture
def database(url: str, connect: Callable[[str], Database]) -> Database:
    """A database that has its tables."""
    database = connect(url)
    migrate(database)
    return database


@pytest.fixture
def connect() -> Iterator[Callable[[str], Database]]:
    """Opens databases, and closes them at the end."""
    databases: list[Database] = []

    def opened(url: str) -> Database:
        databases.append(open_database(url))
        return databases[-1]

    yield opened
    for one in databases:
        one.close()
