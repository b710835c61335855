"""The one thread of a process that brings rows from the journals into the database. It never gives up, and nobody waits
for it: while the database is away, rows wait in the journal.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final

from proxy.core.errors import place_of
from proxy.core.ledger import Outcome
from proxy.core.services import Log
from proxy.store.database import Database, DatabaseGone, DatabaseUnfit
from proxy.store.ledger.batch import MOST_AT_ONCE, Assembly
from proxy.store.ledger.commit import Committer
from proxy.store.ledger.journal import Journal
from proxy.store.ledger.recovery import Recovery
from proxy.store.ledger.retention import Retention
from proxy.store.ledger.rows import Row
from proxy.store.migrations import migrate

GATHER: Final = 0.2
"""Seconds that rows wait for others: a transaction costs as much as a hundred rows of it. No longer than a shared store
waits for the rows of others before it has a counter born from the ledger (redis.Timing)."""

FIRST_WAIT, LONGEST_WAIT = 0.1, 2.0
"""Seconds between attempts while the database is away: the first and, doubling, at most."""

ROUND: Final = 5.0
"""Seconds between two looks for what dead processes have left, and for rows that are too old."""

Asked = Callable[[Exception | None], None]
"""Who waits for all rows so far to be in the database, or for what prevents it."""


class Queue:
    """The records of this process: those of the journal, and outcomes that it had no room for (`late`)."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.late: deque[Outcome] = deque()
        self._assembly = Assembly()
        self._rows: list[Row] | None = None
        self._read = 0
        self.taken = 0
        """Records that were handed over, counted by the event loop once they are in the journal, or late."""
        self.written = 0
        """Records that are in the database."""

    def waits(self) -> bool:
        return self.journal.waits() or bool(self.late)

    def write_all(self, committer: Committer, log: Log) -> None:
        """All that was there when this began. Of what comes meanwhile no more than is in the same transactions: under
        load there is no end of it."""
        until = self.taken
        while self._write(committer, log) and (self.written < until or self.late):
            pass

    def _write(self, committer: Committer, log: Log) -> bool:
        """One transaction; whether there may be more than it had room for. After an error the next one tries the same
        again."""
        again = self._rows is not None
        if self._rows is None:
            self._rows = self._next()
        lost = committer.commit(self._rows)
        committer.commit_strangers(self._assembly.strangers)
        damaged = self._assembly.damaged
        if lost or damaged:
            log("error", "ledger_rows_lost", refused=lost, damaged=damaged)
        count, self._read, self._rows = self._read, 0, None
        self._assembly.strangers.clear()
        self._assembly.damaged = 0
        self.written += count
        self.journal.committed()
        return again or count >= MOST_AT_ONCE

    def _next(self) -> list[Row]:
        records = self.journal.read(MOST_AT_ONCE)
        if len(records) < MOST_AT_ONCE:  # what is late comes after all that the journal has
            records += [self.late.popleft() for _ in range(min(len(self.late), MOST_AT_ONCE))]
        self._read = len(records)
        return self._assembly.rows(records)


class Writer:
    """The thread. It ends when it is told to, or with the process."""

    def __init__(
        self, database: Database, queue: Queue, committer: Committer, recovery: Recovery, retention: Retention, log: Log
    ) -> None:
        self._database, self._queue, self._committer, self._log = database, queue, committer, log
        self._recovery, self._retention = recovery, retention
        self._wake: SimpleQueue[Asked | None] = SimpleQueue()
        self._asked: list[Asked] = []
        self.asleep = self._stopping = self._ready = self._finished = False
        self._rounds_fail = False
        self._failures = self._replaced = 0
        self._next_round = 0.0
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def tell(self) -> None:
        """There is something to write. Whoever calls it after every record looks first whether it is `asleep`."""
        if self.asleep:
            self.asleep = False
            self._wake.put(None)

    def ask(self, asked: Asked) -> None:
        """Write at once, and call back, in this thread."""
        self._wake.put(asked)

    def stop(self, seconds: float) -> bool:
        """Write what there is, and end. Whether all of it is in the database. May be called twice."""
        self._stopping = True
        self._wake.put(None)
        self._thread.join(seconds)
        return self._finished

    @property
    def gone(self) -> bool:
        """Whether the last attempt to write has failed."""
        return self._failures > 0

    def _run(self) -> None:
        while not self._stopping:
            self._attempt()
            self._sleep()
        self._attempt()
        self._finished = not self.gone
        _answer(self._asked, DatabaseGone("the ledger is closed"))

    def _attempt(self) -> None:
        """Write all that there is, or note why not. Whatever it is, this must not be the last attempt."""
        asked, self._asked = self._asked, []
        failure: Exception | None = None
        try:
            self._prepare()
            self._queue.write_all(self._committer, self._log)
        except Exception as error:
            failure = DatabaseGone(_reason(error))
        self._note(failure)
        _answer(asked, failure)
        if failure is None and not self._stopping:
            self._look_around()

    def _prepare(self) -> None:
        """Before anything is answered that depends on it, the rows of those who died before us are there. A database of
        which the file has become another one may have nothing at all."""
        self._database.look()
        if not self._ready or self._replaced != self._database.replaced:
            migrate(self._database)
            self._recovery.estates()
            self._ready = True
        if self._replaced != self._database.replaced:
            self._replaced = self._database.replaced
            self._log("warning", "ledger_replaced")

    def _look_around(self) -> None:
        if time.monotonic() < self._next_round:
            return
        more, failure = False, None
        try:
            self._recovery.estates()
            self._recovery.orphans()
            more = self._retention.step()
        except Exception as error:
            failure = _reason(error)
        self._note_round(failure)
        self._next_round = time.monotonic() + (GATHER if more else ROUND)

    def _note_round(self, failure: str | None) -> None:
        """One line when they begin to fail, one when they no longer do."""
        if failure and not self._rounds_fail:
            self._log("warning", "ledger_round_failed", reason=failure)
        if self._rounds_fail and not failure:
            self._log("info", "ledger_round_done")
        self._rounds_fail = failure is not None

    def _note(self, failure: Exception | None) -> None:
        """One line when the database goes, one when it is back."""
        if failure and not self._failures:
            self._log("error", "ledger_gone", reason=str(failure))
        if self._failures and not failure:
            self._log("info", "ledger_back", written=self._queue.written)
        self._failures = self._failures + 1 if failure else 0

    def _sleep(self) -> None:
        """Until there is something to do, and somewhat longer: more of it will come."""
        if self._failures:
            time.sleep(FIRST_WAIT)  # whoever asks for something may try again soon, but not all the time
            self._pause(min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(self._failures, 10)) - FIRST_WAIT)
            return
        self.asleep = True
        woken = self._queue.waits() or self._pause(max(0.0, self._next_round - time.monotonic()))
        self.asleep = False
        if woken:
            self._pause(GATHER)

    def _pause(self, seconds: float) -> bool:
        """Whether it ended early. Whoever asks does not wait."""
        if self._asked or self._stopping:
            return True
        try:
            asked = self._wake.get(timeout=seconds)
        except Empty:
            return False
        if asked:
            self._asked.append(asked)
        return True


def _reason(error: Exception) -> str:
    """The database's own words have no secret in them; of anything else only what it is, and where."""
    if isinstance(error, DatabaseGone | DatabaseUnfit):
        return str(error)
    return f"{type(error).__name__} in {place_of(error)}"


def _answer(asked: Sequence[Asked], failure: Exception | None) -> None:
    for one in asked:
        one(failure)
