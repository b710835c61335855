"""One transaction: rows of calls, and what those that have ended in it add to the sums of usage. Exactly once, however
often it is tried.

It is first tried as if no row were there already or ended. Then the database says how many rows it has changed: any
fewer, and the transaction is made again without those that it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import ColumnElement, literal_column, select, true
from sqlalchemy.exc import DataError, IntegrityError

from proxy.core.ledger import Intent, Outcome
from proxy.store.database import Database, DatabaseGone
from proxy.store.ledger.rows import INTENT, Row, ended, fit, has_ended, usage
from proxy.store.ledger.statements import BEGIN, END, add
from proxy.store.tables import CALLS, OPEN

_NAMES_AT_ONCE: Final = 500

_REFUSED: Final = (DataError, IntegrityError, OverflowError, ValueError)
"""Of the database, or of its driver: what is in a row."""


class Committer:
    """`commit` is called by one thread, for one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._begin, self._end = BEGIN[database.dialect], END[database.dialect]

    def commit(self, rows: Sequence[Row]) -> int:
        """Write these; a row that has ended stays as it is. Returns how many no database takes: they are lost.

        Raises DatabaseGone, DatabaseUnfit.
        """
        try:
            self._commit(rows)
        except _REFUSED:
            return self._one_by_one([fit(row) for row in rows])
        return 0

    def commit_strangers(self, outcomes: Sequence[Outcome]) -> None:
        """End those calls that the database has as open. What it does not know, nobody does."""
        known: dict[str, Intent] = {}
        for some in _pieces([outcome.call for outcome in outcomes], _NAMES_AT_ONCE):
            known.update((intent.call, intent) for intent in self._intents(CALLS.c.call.in_(some)))
        rows = {one.call: ended(known[one.call], one) for one in reversed(outcomes) if one.call in known}
        if rows:
            self.commit(list(rows.values()))

    def open_calls(self, before: int | None = None) -> list[Intent]:
        """All that have not ended, of whichever process; those that began before a time in Unix milliseconds."""
        return self._intents(true() if before is None else CALLS.c.opened < before)

    def _intents(self, which: ColumnElement[bool]) -> list[Intent]:
        columns = [CALLS.c[name] for name in INTENT]
        with self._database.read() as connection:
            rows = connection.execute(
                select(*columns).where(CALLS.c.status == literal_column(f"'{OPEN}'"), which)
            ).all()
        return [Intent(*row) for row in rows]

    def _commit(self, rows: Sequence[Row]) -> None:
        rows = sorted(rows, key=itemgetter(0))  # all in one order: no two processes wait for each other
        if not rows or self._try(rows):
            return
        news = self._changing(rows)
        if news and not self._try(news):
            raise DatabaseGone("another process writes the same rows")

    def _try(self, rows: Sequence[Row]) -> bool:
        """Whether all of the rows were news to the database; if not, it is left as it was."""
        began = [row for row in rows if not has_ended(row)]
        done = [row for row in rows if has_ended(row)]
        try:
            with self._database.begin() as connection:
                changed = self._begin(connection, began) if began else 0
                changed += self._end(connection, done) if done else 0
                if changed != len(rows):
                    raise _Known
                if done:
                    add(connection, self._database.mark, usage(done))
        except _Known:
            return False
        return True

    def _changing(self, rows: Sequence[Row]) -> list[Row]:
        """Those that the database does not have, or has as open where they have ended."""
        known: dict[str, str] = {}
        with self._database.read() as connection:
            for some in _pieces([row[0] for row in rows], _NAMES_AT_ONCE):
                query = select(CALLS.c.call, CALLS.c.status).where(CALLS.c.call.in_(some))
                known.update((call, status) for call, status in connection.execute(query))
        return [row for row in rows if row[0] not in known or (known[row[0]] == OPEN and has_ended(row))]

    def _one_by_one(self, rows: Sequence[Row]) -> int:
        lost = 0
        for row in rows:
            try:
                self._commit([row])
            except _REFUSED:
                lost += 1
        return lost


class _Known(Exception):
    """The database has some of the rows already."""


def _pieces(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for at in range(0, len(values), size):
        yield values[at : at + size]
