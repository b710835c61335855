"""What the ledger knows of the past, for counters that are made anew."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Table, case, func, literal_column, select

from proxy.core.quota import Counter, HistoryGone, StoreGone, Unit
from proxy.store.database import Database, DatabaseGone, DatabaseUnfit
from proxy.store.ledger.spans import pieces
from proxy.store.tables import CALLS, OPEN, QUARTER

PATIENCE: Final = 2.0
"""Seconds that a request waits for what its counters were."""

RECOVERY: Final = 60.0
"""Seconds that a start waits for what dead processes have left: the journal of a crash may have 250,000 rows."""

LONG: Final = 20.0
"""Seconds that the calls of an hour may take to be summed up, at start."""

_OPEN: Final = CALLS.c.status == literal_column(f"'{OPEN}'")  # as it is written in the index
_MODEL: Final = func.coalesce(CALLS.c.priced_as, CALLS.c.model, "")

# What a row counts for: of sums, of a call that has ended, and of one that has not.
_USED: Final[dict[Unit, Callable[[Table], Any]]] = {
    Unit.REQUESTS: lambda sums: sums.c.requests,
    Unit.TOKENS: lambda sums: sums.c.prompt + sums.c.completion,
    Unit.SPEND: lambda sums: sums.c.cost,
}
_ENDED: Final[dict[Unit, Any]] = {
    Unit.REQUESTS: literal_column("1"),
    Unit.TOKENS: CALLS.c.prompt + CALLS.c.completion,
    Unit.SPEND: func.coalesce(CALLS.c.cost, 0),
}
_RESERVED: Final[dict[Unit, Any]] = {
    Unit.REQUESTS: literal_column("1"),
    Unit.TOKENS: CALLS.c.most_tokens,
    Unit.SPEND: CALLS.c.most_cost,
}


@dataclass(frozen=True, slots=True)
class Recent:
    """What the calls that a key let in within one second have used of one model, or may still use. `second` is Unix
    seconds."""

    team: str
    key_id: str
    model: str
    second: int
    requests: int
    tokens: int
    cost: int


class LedgerHistory:
    """A core.quota.History. `flush` brings our own rows into the database first, within so many seconds. Its threads
    are two, so that many who ask a database that does not answer wait for nobody else's. `patience` is in seconds."""

    def __init__(
        self, database: Database, flush: Callable[[float], Awaitable[None]], patience: float = PATIENCE
    ) -> None:
        self._database = database
        self._flush = flush
        self._patience = patience
        self._threads = ThreadPoolExecutor(2, "ledger-history")

    async def used(self, counter: Counter, start: int, end: int) -> int:
        try:
            async with asyncio.timeout(self._patience):
                await self._flush(self._patience)
                used: int = await self._in_thread(self._used, counter, start, end)
        except TimeoutError:
            raise HistoryGone("the ledger's database does not answer") from None
        except StoreGone as error:
            raise HistoryGone(str(error)) from None
        return used

    async def recent(self, since: int, patience: float = RECOVERY) -> list[Recent]:
        """The calls that were let in from `since` on, in Unix milliseconds. `patience` is how many seconds those are
        waited for that are in a journal yet. Raises StoreGone."""
        await self._flush(patience)
        recent: list[Recent] = await self._in_thread(self._recent, since)
        return recent

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, read, *arguments)
        except (DatabaseGone, DatabaseUnfit) as error:
            raise StoreGone(str(error)) from None

    def _used(self, counter: Counter, start: int, end: int) -> int:
        """Of whole quarter hours there are sums; of a part at either end the calls themselves are summed up."""
        first, last = -(-start // QUARTER) * QUARTER, end // QUARTER * QUARTER
        if first > last:
            parts = [(start, end)]
        else:
            parts = [(one, other) for one, other in ((start, first), (last, end)) if one < other]
        with self._database.read() as connection:
            which = _of(CALLS, _MODEL, counter)
            used = _sum(connection, _RESERVED[counter.unit], [*which, _OPEN], CALLS.c.opened, start, end)
            for one, other in parts:
                used += _sum(connection, _ENDED[counter.unit], [*which, ~_OPEN], CALLS.c.opened, one, other)
            for piece in pieces(first, max(first, last)):
                what, sums = _USED[counter.unit](piece.table), piece.table
                which = _of(sums, sums.c.model, counter)
                used += piece.sign * _sum(connection, what, which, sums.c.start, piece.start, piece.end)
        return used

    def _recent(self, since: int) -> list[Recent]:
        sums = [func.sum(case((_OPEN, _RESERVED[unit]), else_=_ENDED[unit])) for unit in _ENDED]
        second = CALLS.c.opened // 1000
        groups = (CALLS.c.team, CALLS.c.key_id, _MODEL, second)
        query = select(*groups, *sums).where(CALLS.c.opened >= since).group_by(*(literal_column(n) for n in "1234"))
        with self._database.read(LONG) as connection:
            return [Recent(*row[:4], *map(int, row[4:])) for row in connection.execute(query)]


def _of(table: Table, model: ColumnElement[str], counter: Counter) -> list[ColumnElement[bool]]:
    """The rows that a counter is for."""
    which = [table.c.team == counter.team]
    if counter.key is not None:
        which.append(table.c.key_id == counter.key)
    if counter.model is not None:
        which.append(model == counter.model)
    return which


def _sum(connection: Connection, what: Any, which: list[ColumnElement[bool]], when: Any, start: int, end: int) -> int:
    query = select(func.coalesce(func.sum(what), 0)).where(*which, when >= start, when < end)
    return int(connection.execute(query).scalar_one())
