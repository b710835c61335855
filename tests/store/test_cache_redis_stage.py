"""The cache stage of two workers that share a Redis: what is between a provider and its own client holds up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Message, Send

from proxy.core.cache import Answers
from proxy.core.errors import UpstreamFailed
from proxy.core.exchange import Exchange
from proxy.stages import cache
from tests.redis_server import RedisServer, eventually
from tests.stages.cache_setting import Gated, Provider, Setting, streamed, whole
from tests.store.cache_redis_parts import SECRET, opened, wall


@asynccontextmanager
async def workers(server: RedisServer, play: Provider, **options: Any) -> AsyncIterator[tuple[Setting, Setting]]:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as two:
        settings = []
        for backend in (one, two):
            setting = Setting(play, options=options, now=wall())
            setting.answers = Answers(backend, SECRET)
            setting.build(cache.Config(**options))
            settings.append(setting)
        yield settings[0], settings[1]


def not_read(of: str) -> tuple[Callable[[Message], Awaitable[None]], asyncio.Event]:
    """A client that does not take this, until it is told to."""
    reads = asyncio.Event()

    async def taking(message: Message) -> None:
        if message["type"] == "http.response.body" and (of == "all" or not message.get("more_body")):
            await reads.wait()

    return taking, reads


async def spoiled(about: Exchange, send: Send) -> None:
    assert about.context
    about.context.spoiled = True
    await whole(about, send)


@pytest.mark.parametrize("play", [whole, streamed])
async def test_who_is_at_another_worker_does_not_wait_for_the_first_ones_client(
    server: RedisServer, play: Provider
) -> None:
    async with workers(server, play) as (one, two):
        taking, reads = not_read("the last")
        first = asyncio.create_task(one.ask(taking=taking))
        await eventually(lambda: one.calls and not one.answers.flights, "it is kept")
        found = await two.ask()
        assert (found.exchange.cache, two.calls, first.done()) == ("hit", 0, False)
        reads.set()
        assert (await first).body == found.body


async def test_what_is_for_nobody_else_is_for_nobody_at_another_worker(server: RedisServer) -> None:
    async with workers(server, spoiled) as (one, two):
        taking, reads = not_read("all")
        first = asyncio.create_task(one.ask(taking=taking))
        await eventually(lambda: one.calls and not one.answers.flights, "it has ended")
        assert (await two.ask()).exchange.cache == "miss"
        assert two.calls == 1
        reads.set()
        await first


async def test_a_call_that_has_failed_holds_up_nobody_at_another_worker(server: RedisServer) -> None:
    """Its own client gets what is old, and takes its time."""

    async def fails(about: Exchange, send: Send) -> None:
        about.attempts = 1
        raise UpstreamFailed("x")

    async with workers(server, whole, ttl="1ms") as (one, two):
        await one.ask()
        await eventually(lambda: not one.answers.flights, "it is kept")
        for setting in (one, two):
            setting.now = wall() + 1_000
            setting.play = Gated(fails)
        taking, reads = not_read("all")
        first = asyncio.create_task(one.ask(taking=taking))
        await eventually(lambda: one.calls == 2, "it calls")
        second = asyncio.create_task(two.ask())
        await eventually(lambda: any(flight.followers for flight in one.answers.flights.values()), "it is followed")
        one.play.gate.set()  # type: ignore[attr-defined]
        two.play.gate.set()  # type: ignore[attr-defined]
        assert (await second).exchange.cache == "stale"
        assert not first.done()
        reads.set()
        assert (await first).exchange.cache == "stale"


async def test_what_was_reported_before_a_stream_is_told_to_whoever_joins_it(server: RedisServer) -> None:
    async def mended(about: Exchange, send: Send) -> None:
        about.rewrites["repair:messages"] = None
        about.rewrites["drop:metadata.a"] = None
        await streamed(about, send)

    async with workers(server, gated := Gated(mended)) as (one, two):
        first = asyncio.create_task(one.ask())
        await eventually(lambda: one.calls, "it calls")
        others = [asyncio.create_task(setting.ask()) for setting in (one, two)]
        await eventually(lambda: sum(flight.followers for flight in one.answers.flights.values()) == 2, "they follow")
        gated.gate.set()
        assert list((await first).exchange.rewrites) == ["repair:messages", "drop:metadata.a"]
        for found in await asyncio.gather(*others):
            assert (found.exchange.cache, list(found.exchange.rewrites)) == ("joined", ["repair:messages"])
        for setting in (one, two):
            found = await setting.ask()
            assert (found.exchange.cache, list(found.exchange.rewrites)) == ("hit", ["repair:messages"])
