"""What the tests of the Redis store share: stores on one server, a ledger's memory, and a relay that misbehaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from zoneinfo import ZoneInfo

from proxy.core.calendar import Calendar
from proxy.core.quota import WINDOWS, Claim, Counter, StoreGone, Unit
from proxy.core.secret import Secret
from proxy.store.redis import RedisStore, Timing

MINUTE = Counter("red", Unit.TOKENS, WINDOWS["minute"])
REQUESTS = Counter("red", Unit.REQUESTS, WINDOWS["hour"])
MONTH = Counter("red", Unit.SPEND, WINDOWS["month"])
SLOTS = Counter("red", Unit.CONCURRENCY, None)

QUICK = Timing(deadline=20.0, patience=20.0, settle_in=0.0, beat=0.02, retry=0.02)
"""Busy where it waits for the clock, patient where a slow machine would fail the test."""

HOUR = 3600.0

STILL = replace(QUICK, beat=HOUR)
"""Whose heart has beaten once before the test has the store, and does not again."""


def calendar() -> Calendar:
    return Calendar(ZoneInfo("Europe/Berlin"))


@dataclass
class Ledger:
    """A History: what it says of a counter, by its name."""

    rows: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    gone: bool = False

    async def used(self, counter: Counter, start: int, end: int) -> int:
        self.asked.append((counter.name, start, end))
        if self.gone:
            raise StoreGone("LedgerGone")
        return self.rows.get(counter.name, 0)


@dataclass
class Log:
    lines: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        self.lines.append((level, event, fields))

    def events(self) -> list[str]:
        return [event for _, event, _ in self.lines]


class Calls:
    """Ids of requests, and their claims."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._number = 0

    def next(self) -> str:
        self._number += 1
        return f"{self._owner}-{self._number}"


@asynccontextmanager
async def opened(
    url: Secret, owner: str = "w1", history: Ledger | None = None, timing: Timing = QUICK, **options: Any
) -> AsyncIterator[RedisStore]:
    rests = asyncio.Event()

    async def sleep(seconds: float) -> None:
        if seconds == HOUR:
            rests.set()
        await asyncio.sleep(seconds)

    given: dict[str, Any] = {"log": Log(), "wall": lambda: time.time_ns() // 1_000_000, "sleep": sleep}
    store = RedisStore(url, calendar(), history, owner=owner, timing=timing, **(given | options))
    await store.start()
    try:
        if timing.beat == HOUR:
            await rests.wait()
        yield store
    finally:
        await store.close(within=0.1)


@contextmanager
def impatient(store: RedisStore) -> Iterator[None]:
    """A store that soon gives up."""
    patient, store._link._deadline = store._link._deadline, 0.1
    yield
    store._link._deadline = patient


async def numbers(store: RedisStore, *counters: Counter) -> list[tuple[int, int]]:
    """(used, reserved) of each."""
    asked = [Claim(counter, 10**15, 0) for counter in counters]
    return [(one.used, one.reserved) for one in (await store.look(asked)).standings]


async def grant(store: RedisStore, call: str, claims: Sequence[Claim]) -> None:
    assert (await store.reserve(call, claims)).granted


class Relay:
    """Between a store and its server. `drop`: what the server answers does not arrive any more. `delay` in seconds."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self.drop = False
        self.delay = 0.0
        self.answers = 0
        self._refused = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Relay:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._listener.sockets[0].getsockname()[1]
        return self

    @property
    def url(self) -> Secret:
        return Secret(f"redis://127.0.0.1:{self.port}/0")

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def refuse(self, refused: bool = True) -> None:
        """Close every connection, and each that comes, until told otherwise."""
        self._refused = refused
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        if self._refused:
            writer.close()
            return
        self._tasks.add(task)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
            try:
                await asyncio.gather(self._up(reader, up_writer), self._down(up_reader, writer))
            finally:
                up_writer.close()
        except (asyncio.CancelledError, OSError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.delay:
                await asyncio.sleep(self.delay)
            self.answers += 1
            if not self.drop:
                writer.write(data)
                await writer.drain()
        writer.close()
