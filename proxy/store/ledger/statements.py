"""How many rows go into the database with little work: statements of text that are made once, for each of the two.

SQLite's driver lets go of the interpreter once a statement, and has to get it back from a busy event loop: so many rows
go into one. PostgreSQL's spends more on a value than on anything else: there all rows are one value, as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Final

import msgspec
from sqlalchemy import Connection

from proxy.store.ledger.rows import BEGUN, COLUMNS, KEY, OUTCOME, SUMS, Row, Usage, by_day
from proxy.store.tables import OPEN

Write = Callable[[Connection, Sequence[Row]], int]
"""Insert rows, or end those that are open; returns how many rows it has changed."""

_MOST_ROWS: Final = 128
"""Of one statement; any number of them is a few statements, each of as many rows as a power of two."""

_IF_OPEN: Final = (
    f"ON CONFLICT (call) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in OUTCOME)} "
    f"WHERE calls.status = '{OPEN}'"
)
_UNLESS_THERE: Final = "ON CONFLICT (call) DO NOTHING"


def begin_sqlite(connection: Connection, rows: Sequence[Row]) -> int:
    return _insert(connection, BEGUN, _UNLESS_THERE, [row[: len(BEGUN)] for row in rows])


def end_sqlite(connection: Connection, rows: Sequence[Row]) -> int:
    return _insert(connection, COLUMNS, _IF_OPEN, rows)


def begin_postgresql(connection: Connection, rows: Sequence[Row]) -> int:
    return _insert_json(connection, BEGUN, _UNLESS_THERE, rows)


def end_postgresql(connection: Connection, rows: Sequence[Row]) -> int:
    return _insert_json(connection, COLUMNS, _IF_OPEN, rows)


BEGIN: Final[dict[str, Write]] = {"sqlite": begin_sqlite, "postgresql": begin_postgresql}
END: Final[dict[str, Write]] = {"sqlite": end_sqlite, "postgresql": end_postgresql}


def add(connection: Connection, mark: str, usage: Usage) -> None:
    """Add to the sums, all in one order: no two processes wait for each other."""
    for table, sums in (("usage", usage), ("usage_days", by_day(usage))):
        connection.exec_driver_sql(_add(table, mark), [(*key, *values) for key, values in sorted(sums.items())])


def _insert(connection: Connection, columns: tuple[str, ...], conflict: str, rows: Sequence[Row]) -> int:
    changed = 0
    for some in _portions(rows):
        statement = _values(columns, conflict, len(some))
        changed += connection.exec_driver_sql(statement, tuple(chain.from_iterable(some))).rowcount
    return changed


def _insert_json(connection: Connection, columns: tuple[str, ...], conflict: str, rows: Sequence[Row]) -> int:
    value = msgspec.json.encode([dict(zip(columns, row, strict=False)) for row in rows]).decode()
    changed: int = connection.exec_driver_sql(_recordset(columns, conflict), (value,)).rowcount
    return changed


def _portions(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    at = 0
    while left := len(rows) - at:
        size = min(_MOST_ROWS, 1 << left.bit_length() - 1)
        yield rows[at : at + size]
        at += size


@cache
def _values(columns: tuple[str, ...], conflict: str, rows: int) -> str:
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO calls ({', '.join(columns)}) VALUES {', '.join([row] * rows)} {conflict}"  # noqa: S608 (ours)


@cache
def _recordset(columns: tuple[str, ...], conflict: str) -> str:
    names = ", ".join(columns)
    source = "json_populate_recordset(NULL::calls, %s::json)"
    return f"INSERT INTO calls ({names}) SELECT {names} FROM {source} {conflict}"  # noqa: S608 (names of ours)


@cache
def _add(table: str, mark: str) -> str:
    names = (*KEY, *SUMS)
    sums = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in SUMS)
    return (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join([mark] * len(names))}) "  # noqa: S608 (ours)
        f"ON CONFLICT ({', '.join(KEY)}) DO UPDATE SET {sums}"
    )
