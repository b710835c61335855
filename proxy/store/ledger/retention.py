"""Rows that are too old go, a few at a time. The sums of usage stay for longer: they are small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from proxy.store.database import Database
from proxy.store.tables import DAY, OPEN

SUMS_KEPT: Final = 730 * DAY
"""How long the sums of usage are kept at least; no shorter than the calls themselves."""

EVERY: Final = 3_600_000
"""Milliseconds between two looks at what is too old."""

MOST_AT_ONCE: Final = 5_000
"""Rows of one transaction: others want to write too."""

_ROW: Final = {"sqlite": "rowid", "postgresql": "ctid"}


class Retention:
    """`kept` is how long rows of calls are kept, in milliseconds; None: for ever. `now` gives Unix milliseconds."""

    def __init__(self, database: Database, kept: int | None, now: Callable[[], int]) -> None:
        self._database = database
        self._kept = kept
        self._now = now
        self._next = 0

    def step(self) -> bool:
        """Delete some rows, if it is time. Whether more are to go. Raises DatabaseGone."""
        now = self._now()
        if self._kept is None or now < self._next:
            return False
        sums = now - max(self._kept, SUMS_KEPT)
        if self._calls(now - self._kept) or self._sums("usage", sums) or self._sums("usage_days", sums):
            return True
        self._next = now + EVERY
        return False

    def _calls(self, before: int) -> bool:
        row, mark = _ROW[self._database.dialect], self._database.mark
        return self._delete(
            f"DELETE FROM calls WHERE {row} IN (SELECT {row} FROM calls "  # noqa: S608 (names of ours)
            f"WHERE opened < {mark} AND status <> '{OPEN}' ORDER BY opened LIMIT {MOST_AT_ONCE})",
            before,
        )

    def _sums(self, table: str, before: int) -> bool:
        mark = self._database.mark
        columns = "team, start, key_id, model, operation"
        return self._delete(
            f"DELETE FROM {table} WHERE ({columns}) IN (SELECT {columns} FROM {table} "  # noqa: S608
            f"WHERE start < {mark} ORDER BY start LIMIT {MOST_AT_ONCE})",
            before,
        )

    def _delete(self, statement: str, before: int) -> bool:
        with self._database.begin() as connection:
            return connection.exec_driver_sql(statement, (before,)).rowcount == MOST_AT_ONCE
