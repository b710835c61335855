"""What the tests of the ledger share: rows, stores over both databases, and what must hold of every database."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Table, select

from proxy.core.ledger import Intent, Outcome
from proxy.store.database import Database
from proxy.store.ledger.rows import COLUMNS, KEY, SUMS, Usage, by_day, usage
from proxy.store.ledger.store import LedgerStore
from proxy.store.tables import CALLS, USAGE, USAGE_DAYS

NOW = 1_795_000_000_000
"""Unix milliseconds: in November 2026."""

OWNER = "00ff00ff00ff00ff"


def intent(n: int, owner: str = OWNER, **fields: Any) -> Intent:
    values: dict[str, Any] = {
        "call": f"{owner}-{n}",
        "request_id": f"req_{n}",
        "opened": NOW,
        "team": "research",
        "key_id": "k1",
        "operation": "chat",
        "provider": "mistral",
        "model_asked": "small",
        "model": "mistral-small-latest",
        "priced_as": "mistral-small-2506",
        "price_version": "2026-11-01",
        "stream": True,
        "prompt": 100,
        "tokens": 1_100,
        "cost": 330_000,
    }
    return Intent(**values | fields)


def outcome(n: int, owner: str = OWNER, **fields: Any) -> Outcome:
    values: dict[str, Any] = {
        "call": f"{owner}-{n}",
        "closed": NOW + 1_500,
        "status": "settled",
        "http_status": 200,
        "error": None,
        "attempts": 1,
        "latency": 1_500_000,
        "first_byte": 200_000,
        "prompt": 98,
        "cached": 10,
        "completion": 40 + n,
        "reasoning": 0,
        "audio_seconds": 0,
        "pages": 0,
        "cost": 21_800 + n,
        "estimated": False,
    }
    return Outcome(**values | fields)


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    def events(self, but: Iterable[str] = ()) -> list[str]:
        return [event for event, _ in self.lines if event not in but]


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@asynccontextmanager
async def ledger(database: Database, directory: Path, owner: str = OWNER, **options: Any) -> AsyncIterator[LedgerStore]:
    """A store that is running, and closed at the end whatever happens."""
    options = {"log": Lines(), "now": Clock(), **options}
    store = LedgerStore(database, directory, owner, **options)
    await store.start()
    try:
        yield store
    finally:
        await store.close_down()


async def calls(database: Database) -> list[dict[str, Any]]:
    """All rows of calls, in the order of their ids."""
    return await asyncio.to_thread(read_calls, database)


def read_calls(database: Database) -> list[dict[str, Any]]:
    with database.read() as connection:
        return [dict(row._mapping) for row in connection.execute(select(CALLS).order_by(CALLS.c.call))]


def read_sums(database: Database, table: Table = USAGE) -> Usage:
    with database.read() as connection:
        rows = connection.execute(select(*(table.c[name] for name in (*KEY, *SUMS))))
        return {tuple(row[: len(KEY)]): list(row[len(KEY) :]) for row in rows}


def check_consistent(database: Database) -> None:
    """Sums are those of the calls that have ended, no call is there twice, and the file is whole."""
    rows = read_calls(database)
    assert max(Counter(row["call"] for row in rows).values(), default=1) == 1
    done = [tuple(row[name] for name in COLUMNS) for row in rows if row["status"] != "open"]
    assert read_sums(database) == usage(done)
    assert read_sums(database, USAGE_DAYS) == by_day(usage(done))
    if database.dialect == "sqlite":
        with database.read() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"


async def consistent(database: Database) -> None:
    await asyncio.to_thread(check_consistent, database)


def sqlite_file(database: Database) -> str:
    path: str = database._engine.url.database or ""
    return path


def connect(path: str) -> sqlite3.Connection:
    """Another process's connection to it, as far as SQLite is concerned."""
    return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Another process writes to the tables for as long, and lets nobody else."""
    if database.dialect == "sqlite":
        other: Any = connect(sqlite_file(database))
        other.execute("BEGIN IMMEDIATE")
    else:
        other = psycopg.connect(database._engine.url.set(drivername="postgresql").render_as_string(False))
        other.execute("LOCK TABLE calls IN ACCESS EXCLUSIVE MODE")
    try:
        yield
    finally:
        other.rollback()
        other.close()
