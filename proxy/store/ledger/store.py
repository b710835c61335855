"""The ledger of one process: a journal, and a thread that brings it into the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from proxy.core.ledger import Intent, LedgerFull, Outcome
from proxy.core.quota import StoreGone
from proxy.core.services import Log
from proxy.store.database import Database
from proxy.store.ledger.batch import encode
from proxy.store.ledger.commit import Committer
from proxy.store.ledger.journal import Journal
from proxy.store.ledger.recovery import ORPHANED, Recovery
from proxy.store.ledger.retention import Retention
from proxy.store.ledger.rows import fit_intent, fit_outcome
from proxy.store.ledger.writer import Queue, Writer

MOST_SEGMENTS: Final = 64
"""Of the journal, which may wait for the database: 64 MiB, some 250,000 calls."""

LAST_ATTEMPT: Final = 5.0
"""Seconds that the end of the process waits for the database; what it does not take then stays in the journal."""

_LARGE: Final = 2_048
"""Bytes of a record above which a client must have made up a name."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """`rows` wait for the database in `segments` files; `gone`: it does not take them. `full`: nothing is let in."""

    rows: int
    segments: int
    gone: bool
    full: bool


class LedgerStore:
    """A core.ledger.Ledger. Belongs to the event loop that starts it, in a process that does not fork any more.

    `owner` begins the ids of the process's calls (`<owner>-<n>`) and is no other process's; `directory` holds the
    journals of all processes on this machine that have the same database. `now` gives Unix milliseconds, `kept` is
    how many of them rows are kept. A call that is open for longer than `orphaned` milliseconds is nobody's.
    """

    def __init__(
        self,
        database: Database,
        directory: Path,
        owner: str,
        *,
        log: Log,
        now: Callable[[], int],
        kept: int | None = None,
        orphaned: int = ORPHANED,
        most_segments: int = MOST_SEGMENTS,
    ) -> None:
        self._database, self._directory, self._owner, self._most = database, directory, owner, most_segments
        self._report, self._now, self._kept, self._orphaned = log, now, kept, orphaned
        self._full = False

    async def start(self) -> None:
        """Raises OSError when the directory is no place for a journal. The database may be away: the journal waits."""
        self._loop = asyncio.get_running_loop()
        self._journal = await asyncio.to_thread(Journal, self._directory, self._owner, self._most)
        self._queue = Queue(self._journal)
        committer = Committer(self._database)
        recovery = Recovery(committer, self._directory, self._log, self._now, self._orphaned)
        retention = Retention(self._database, self._kept, self._now)
        self._writer = Writer(self._database, self._queue, committer, recovery, retention, self._log)
        self._writer.start()

    def open(self, intent: Intent) -> None:
        try:
            record = encode(intent)
        except (OverflowError, UnicodeError):
            record = b""
        if not 0 < len(record) <= _LARGE:
            intent = fit_intent(intent)
            record = encode(intent)
        if not self._journal.append(record, intent):
            self._note(full=True)
            raise LedgerFull
        if self._full:
            self._note(full=False)
        self._queue.taken += 1
        if self._writer.asleep:
            self._writer.tell()

    def close(self, outcome: Outcome) -> None:
        try:
            record = encode(outcome)
        except (OverflowError, UnicodeError):
            outcome = fit_outcome(outcome)
            record = encode(outcome)
        if not self._journal.append(record, outcome, reserved=True):
            self._queue.late.append(outcome)  # no more of them than calls that were let in
        self._queue.taken += 1
        if self._writer.asleep:
            self._writer.tell()

    async def flush(self, seconds: float) -> None:
        """All rows so far are in the database, and those of processes that had died before this one began. Raises
        StoreGone, after so many seconds at the latest."""
        done = self._loop.create_future()
        self._writer.ask(partial(self._in_loop, _resolve, done))
        try:
            async with asyncio.timeout(seconds):
                failure = await done
        except TimeoutError:
            raise StoreGone("the database does not take the rows of the ledger") from None
        if failure:
            raise StoreGone(str(failure))

    async def close_down(self, seconds: float = LAST_ATTEMPT) -> bool:
        """Bring everything into the database; whether that was done. What is left waits for the next start."""
        return await asyncio.to_thread(self._end, seconds)

    @property
    def rows_waiting(self) -> int:
        return self._queue.taken - self._queue.written

    @property
    def backlog(self) -> Backlog:
        return Backlog(self.rows_waiting, self._journal.segments, self._writer.gone, self._full)

    def _end(self, seconds: float) -> bool:
        written = self._writer.stop(seconds)
        with suppress(OSError):  # whoever looks next for what the dead have left removes the rest of it
            self._journal.release(empty=written and not self._queue.waits())
        return written

    def _note(self, *, full: bool) -> None:
        """One line when nothing can be kept any more, one when it can again."""
        if full and not self._full:
            self._report("error", "ledger_full", reason=self._journal.shortage)
        elif self._full and not full:
            self._report("info", "ledger_has_room")
        self._full = full

    def _log(self, level: str, event: str, **fields: Any) -> None:
        """From the writer's thread: the log belongs to the loop."""
        self._in_loop(partial(self._report, level, event, **fields))

    def _in_loop(self, call: Callable[..., object], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call, *arguments)


def _resolve(done: asyncio.Future[Exception | None], failure: Exception | None) -> None:
    if not done.done():
        done.set_result(failure)
