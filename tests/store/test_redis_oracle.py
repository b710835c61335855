"""The Redis store and the plainly right model agree, whatever happens, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from itertools import count

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from proxy.core.calendar import Calendar
from proxy.core.quota import WINDOWS, Claim, Counter, Unit, Verdict
from proxy.store import redis_link
from proxy.store.redis import RedisStore, Timing
from tests.redis_server import RedisServer
from tests.store.oracle import BEGIN, ZONE, Oracle, Past, machine, nothing
from tests.store.redis_parts import Log

_TIME = b"redis.call('TIME')"
_EXAMPLES = count()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
def clock_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts as they are, but for where they read the time."""
    for script in redis_link.SCRIPTS:
        assert script.text.count(_TIME) == 1
        text = script.text.replace(_TIME, b"{0, redis.call('GET', 'clock') * 1000}")
        monkeypatch.setattr(script, "text", text)
        monkeypatch.setattr(script, "sha", hashlib.sha1(text).hexdigest())


class FromPast:
    """A History."""

    def __init__(self, past: Past) -> None:
        self._past = past

    async def used(self, counter: Counter, start: int, end: int) -> int:
        return self._past(counter, start, end)


class Driven:
    """A RedisStore that is asked by a test without a loop."""

    def __init__(self, server: RedisServer, calendar: Calendar, past: Past) -> None:
        self._client = server.client
        self._client.set("clock", 1_700_000_000_000)
        self._loop = asyncio.new_event_loop()
        self._store = RedisStore(
            server.url,
            calendar,
            FromPast(past),
            owner="w1",
            prefix=f"{next(_EXAMPLES)}:{{quota}}:",
            timing=Timing(settle_in=0.0, deadline=30.0, patience=30.0, lease=3600.0),
            log=Log(),
            wall=lambda: 1_700_000_000_000,
        )
        self._loop.run_until_complete(self._store.start())

    def at(self, now: int) -> None:
        self._client.set("clock", now)

    def reserve(self, call: str, claims: Sequence[Claim]) -> Verdict:
        return self._loop.run_until_complete(self._store.reserve(call, claims))

    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None:
        async def whole() -> bool:
            self._store.settle(call, claims, used)
            return await self._store.drain(30)

        assert self._loop.run_until_complete(whole())

    def look(self, claims: Sequence[Claim]) -> Verdict:
        return self._loop.run_until_complete(self._store.look(claims))

    def close(self) -> None:
        self._loop.run_until_complete(self._store.close())
        self._loop.close()
        self._client.close()


@pytest.mark.usefixtures("clock_of_the_test")
def test_it_agrees_with_the_model(server: RedisServer):
    def opened(calendar: Calendar, past: Past) -> Driven:
        return Driven(server, calendar, past)

    held = machine(opened, backwards=False)
    run_state_machine_as_test(held, settings=settings(max_examples=40, stateful_step_count=40, deadline=None))


@pytest.mark.usefixtures("clock_of_the_test")
@pytest.mark.parametrize("apart", [1, 599, 600, 601, 666])
def test_neighbours_share_an_entry_for_a_hundredth_of_the_span(server: RedisServer, apart: int):
    counter = Counter("red", Unit.TOKENS, WINDOWS["minute"])
    store, model = Driven(server, Calendar(ZONE), nothing), Oracle(Calendar(ZONE))
    try:
        for number, passed in enumerate((0, apart, 59_999, 60_000, 59_999 + apart, 60_000 + apart)):
            for one in (store, model):
                one.at(BEGIN + passed)
            asked = [Claim(counter, 2, 1)]
            assert store.reserve(f"call-{number}", asked) == model.reserve(f"call-{number}", asked)
    finally:
        store.close()
