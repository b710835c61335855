"""What the tests of the cache in Redis share: caches on one server, and workers that ask as the stage does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from proxy.core.cache import Bounds, Found, Role
from proxy.core.entry import Entry, Sealer, packed
from proxy.core.flight import Flight, Lost
from proxy.core.secret import Secret
from proxy.store.cache.redis import PREFIX, RedisCache
from proxy.store.cache.redis_lines import Timing
from tests.redis_server import RedisServer
from tests.store.redis_parts import Log

SECRET = b"a secret of thirty-two bytes, or so"
SEALER = Sealer(SECRET)
BOUNDS = Bounds(life=600_000, most_bytes=1 << 28, most_entry=1 << 20)
MOST = 1 << 20
MISS = Found(Role.LEAD, None)
LATER = 1 << 60
"""Nothing is as young as this."""

PATIENT = Timing(
    deadline=20.0,
    behind=20.0,
    connecting=20.0,
    retry=0.02,
    lease=20.0,
    beat=0.05,
    moment=0.05,
    quiet=0.1,
    patience=20.0,
)
"""Busy where it waits for the clock, patient where a slow machine would fail the test."""

IMPATIENT = Timing(
    deadline=0.25, behind=0.5, connecting=0.5, retry=0.02, lease=1.0, beat=0.05, moment=0.05, quiet=0.1, patience=0.5
)


def wall() -> int:
    return time.time_ns() // 1_000_000


def key_of(number: int, team: str = "red") -> str:
    return f"{team}/{number:064x}"


KEY = key_of(1)


def entry_of(body: bytes, *, stream: bool = False, created: int | None = None) -> Entry:
    return Entry(
        wall() if created is None else created, stream, body, 11, 22, 33, ("drop:user",), packed([0, len(body)])
    )


def flight_of(most: int = MOST) -> Flight:
    return Flight(most, time.monotonic)


@asynccontextmanager
async def opened(
    url: Secret, owner: str = "w1", bounds: Bounds = BOUNDS, timing: Timing = PATIENT, **options: Any
) -> AsyncIterator[RedisCache]:
    given: dict[str, Any] = {"log": Log(), "wall": wall, "monotonic": time.monotonic}
    cache = RedisCache(url, bounds, SECRET, owner=owner, timing=timing, **(given | options))
    await cache.start()
    try:
        yield cache
    finally:
        await cache.close(within=0.5)


async def keep(cache: RedisCache, key: str, entry: Entry, flight: Flight | None = None) -> None:
    """Returns when it is done."""
    done = asyncio.Event()
    cache.keep(key, entry, flight or flight_of(), lambda *_: done.set())
    await done.wait()


async def found(cache: RedisCache, key: str) -> Entry | None:
    """What is kept. No lease is left behind."""
    flight = flight_of()
    entry = (await cache.look(key, 0, flight)).entry
    cache.drop(key, flight)
    return entry


async def led(cache: RedisCache, key: str = KEY) -> Flight:
    flight = flight_of()
    assert await cache.look(key, 0, flight) == MISS
    flight.called = True
    return flight


async def followed(cache: RedisCache, key: str = KEY) -> Flight:
    flight = flight_of()
    assert (await cache.look(key, 0, flight)).role is Role.FOLLOW
    flight.begins()
    return flight


class Books:
    """What Redis has written down of the entries, read by somebody else."""

    def __init__(self, server: RedisServer, prefix: str = PREFIX) -> None:
        self._prefix = prefix
        self._client = server.client

    @property
    def total(self) -> int:
        return int(self._client.hget(f"{self._prefix}=totals", "bytes") or 0)

    @property
    def sizes(self) -> dict[str, int]:
        return {key: int(size) for key, size in self._client.hgetall(f"{self._prefix}=sizes").items()}

    @property
    def index(self) -> dict[str, float]:
        return dict(self._client.zrange(f"{self._prefix}=index", 0, -1, withscores=True))

    @property
    def keys(self) -> set[str]:
        start = len(self._prefix)
        keys = {key[start:] for key in self._client.scan_iter(f"{self._prefix}*", count=1000)}
        return {key for key in keys if not key.startswith("=")}

    def lease(self, key: str) -> str | None:
        found: str | None = self._client.get(f"{self._prefix}=lease/{key}")
        return found

    def check(self) -> None:
        """They agree."""
        sizes = self.sizes
        assert self.total == sum(sizes.values())
        assert set(sizes) == set(self.index)


Call = Callable[[Flight], Awaitable[Entry]]
"""What a provider does: tells the flight of pieces, and returns what is to be kept."""


class Worker:
    """Asks as stages/cache.py does."""

    def __init__(self, cache: RedisCache) -> None:
        self.cache = cache
        self._flights: dict[str, Flight] = {}

    async def ask(self, key: str, call: Call) -> bytes:
        """The answer. Whoever has begun to get one and loses it fails."""
        for _ in range(50):
            flight = self._flights.get(key)
            if flight is None or not flight.open:
                flight = self._flights[key] = flight_of()
                found = await self._look(key, flight)
                if found.role is Role.DONE:
                    assert found.entry
                    flight.finish(found.entry, 0)
                    self._forget(key, flight)
                    return found.entry.body
                flight.called = True
                if found.role is Role.LEAD:
                    return await self._lead(key, flight, call)
                flight.at_end(lambda flight=flight: self._forget(key, flight))  # type: ignore[misc]
            with flight.follow():
                try:
                    await flight.begun()
                except Lost:
                    continue
                if flight.done and flight.entry:
                    return flight.entry.body
                return b"".join([piece async for piece in flight.pieces()])
        raise AssertionError("no answer in fifty attempts")

    async def _look(self, key: str, flight: Flight) -> Any:
        try:
            return await self.cache.look(key, 0, flight)
        except BaseException:
            flight.fail(None)
            self._forget(key, flight)
            self.cache.drop(key, flight)
            raise

    async def _lead(self, key: str, flight: Flight, call: Call) -> bytes:
        try:
            entry = await call(flight)
            flight.finish(entry, 33)
            await keep(self.cache, key, entry, flight)
            return entry.body
        except BaseException:
            flight.fail(None)
            self.cache.drop(key, flight)
            raise
        finally:
            self._forget(key, flight)

    def _forget(self, key: str, flight: Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


async def stream(flight: Flight, pieces: Sequence[bytes], pause: float = 0.002) -> Entry:
    flight.streamed = True
    for piece in pieces:
        await asyncio.sleep(pause)
        flight.add(piece)
    return entry_of(b"".join(pieces), stream=True)


async def die(cache: RedisCache) -> None:
    """As one that is killed: nothing is given back, and nobody is told."""
    await cache._follows.close()
    for task in cache._leads._telling.values():
        task.cancel()
    await cache._stop()
