"""The calls of processes that are dead. Whoever finds a journal that nobody holds brings it into the database, and ends
what was left open at the most that it can have cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Final

from proxy.core.ledger import Intent
from proxy.core.services import Log
from proxy.store.ledger.batch import MOST_AT_ONCE, Assembly
from proxy.store.ledger.commit import Committer
from proxy.store.ledger.journal import Estate, estates, owners
from proxy.store.ledger.rows import died, ended
from proxy.store.ledger.segment import Foreign

ORPHANED: Final = 3_600_000
"""Milliseconds after which a call is nobody's whose process has no journal on this machine: the machine it was on may
be gone. A call must not be able to last as long."""


class Recovery:
    """`now` gives Unix milliseconds. `orphaned` is ORPHANED, or more where calls may last for longer. Its methods raise
    DatabaseGone, DatabaseUnfit and OSError."""

    def __init__(self, committer: Committer, directory: Path, log: Log, now: Callable[[], int], orphaned: int) -> None:
        self._committer = committer
        self._directory = directory
        self._log = log
        self._now = now
        self._orphaned = orphaned

    def estates(self) -> None:
        """Replay the journals of dead processes on this machine."""
        for estate in estates(self._directory, self._now):
            try:
                self._settle(estate)
            except Foreign:
                self._log("error", "ledger_foreign_journal", owner=estate.owner)
            else:
                estate.remove()

    def orphans(self) -> None:
        """End the calls that are open for too long and whose process nobody here knows."""
        before = self._now() - self._orphaned
        here = owners(self._directory)
        lost = [one for one in self._committer.open_calls(before) if _owner(one.call) not in here]
        self._end(lost)
        if lost:
            self._log("warning", "ledger_orphans", calls=len(lost))

    def _settle(self, estate: Estate) -> None:
        assembly = Assembly()
        records = estate.records()
        written = 0
        while some := list(islice(records, MOST_AT_ONCE)):
            rows = assembly.rows(some)
            self._committer.commit(rows)
            written += len(rows)
            self._committer.commit_strangers(assembly.strangers)
            assembly.strangers.clear()
        unknown = [one for one in self._committer.open_calls() if _owner(one.call) == estate.owner]
        left = assembly.open | {one.call: one for one in unknown}
        self._end(left.values())
        level = "error" if assembly.damaged else "info"
        self._log(level, "ledger_recovered", owner=estate.owner, rows=written, died=len(left), damaged=assembly.damaged)

    def _end(self, intents: Iterable[Intent]) -> None:
        now = self._now()
        rows = [ended(intent, died(intent, now)) for intent in intents]
        for at in range(0, len(rows), MOST_AT_ONCE):
            self._committer.commit(rows[at : at + MOST_AT_ONCE])


def _owner(call: str) -> str:
    return call.rpartition("-")[0]
