"""A Redis that is dead, frozen, slow, full, or no Redis: a miss, soon, and never an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from proxy.core.cache import CacheGone, Found, Role
from proxy.core.entry import Entry
from proxy.core.flight import Flight, Lost
from proxy.core.secret import Secret
from proxy.store.cache.redis import PREFIX, RedisCache
from proxy.store.cache.redis_lines import Timing
from proxy.store.cache.redis_wire import Wire
from tests.redis_server import PASSWORD, RedisServer, eventually
from tests.store.cache_redis_parts import (
    BOUNDS,
    IMPATIENT,
    KEY,
    MISS,
    PATIENT,
    Books,
    Worker,
    entry_of,
    flight_of,
    followed,
    found,
    keep,
    key_of,
    led,
    opened,
    stream,
)
from tests.store.redis_parts import Log, Relay

ENTRY = entry_of(b'{"answer": 42}')


async def misses(cache: RedisCache) -> None:
    """Everything that a request does, and it goes on without it."""
    flight = flight_of()
    assert await cache.look(KEY, 0, flight) == MISS
    await keep(cache, KEY, ENTRY, flight)
    await cache.look(KEY, 0, flight := flight_of())
    cache.drop(KEY, flight)


async def says_so(cache: RedisCache) -> None:
    for ask in (cache.delete("red"), cache.delete(None), cache.stats("red"), cache.stats(None), cache.verify()):
        with pytest.raises(CacheGone):
            await ask


async def is_back(cache: RedisCache) -> None:
    async with asyncio.timeout(20):
        await eventually(lambda: not cache._lines._gone, "it is connected")
        await keep(cache, KEY, ENTRY)
        while await found(cache, KEY) != ENTRY:
            await keep(cache, KEY, ENTRY)


async def test_killed_and_back_again(server: RedisServer) -> None:
    log = Log()
    async with opened(server.url, timing=IMPATIENT, log=log) as cache:
        await keep(cache, KEY, ENTRY)
        server.kill()
        for _ in range(20):
            await misses(cache)
        await says_so(cache)
        server.restart()
        await is_back(cache)
        assert (await cache.stats(None)).entries == 1
        await eventually(lambda: "cache_back" in log.events(), "it is said")
        assert log.events().count("cache_gone") == 1


async def test_not_there_at_start(server: RedisServer) -> None:
    server.kill()
    log = Log()
    async with opened(server.url, timing=IMPATIENT, log=log) as cache:
        assert log.events() == ["cache_gone"]
        await misses(cache)
        await says_so(cache)
        server.restart()
        await is_back(cache)


async def test_frozen(server: RedisServer) -> None:
    async with opened(server.url, timing=IMPATIENT) as cache:
        await keep(cache, KEY, ENTRY)
        server.freeze()
        await misses(cache)
        assert not cache._lines.questions.up
        await asyncio.gather(*(misses(cache) for _ in range(50)))
        await says_so(cache)
        server.cont()
        await is_back(cache)


async def test_no_request_waits_for_long(server: RedisServer) -> None:
    """With the timing that is shipped; of several attempts one is not slow because the machine is."""
    clock, waited = asyncio.get_running_loop().time, []
    for _ in range(3):
        async with opened(server.url, timing=Timing()) as cache:
            server.freeze()
            begun = clock()
            assert await cache.look(KEY, 0, flight_of()) == MISS
            waited.append(clock() - begun)
            begun = clock()
            for _ in range(100):
                assert await cache.look(KEY, 0, flight_of()) == MISS
            after = clock() - begun
            server.cont()
    assert min(waited) < 0.1
    assert after < 1.0  # nobody waits for what is known to be gone


async def test_a_crowd_is_served(server: RedisServer) -> None:
    """With the timing that is shipped; of several attempts one does not fail because the machine is busy."""
    hits = []
    async with opened(server.url, timing=Timing()) as cache:
        await keep(cache, KEY, ENTRY)
        for _ in range(3):
            answers = await asyncio.gather(*(cache.look(KEY, 0, flight_of()) for _ in range(1_000)))
            hits.append(sum(answer == Found(Role.DONE, ENTRY) for answer in answers))
    assert max(hits) == 1_000


async def test_h6_slow(server: RedisServer) -> None:
    async with Relay(server.port) as relay, opened(relay.url, timing=IMPATIENT) as cache:
        await keep(cache, KEY, ENTRY)
        relay.delay = 3600.0
        await misses(cache)
        relay.refuse()
        await misses(cache)
        relay.refuse(False)
        relay.delay = 0.0
        await is_back(cache)


async def test_one_that_is_cut_off_again_and_again(server: RedisServer) -> None:
    async with Relay(server.port) as relay, opened(relay.url, timing=IMPATIENT) as cache:
        for _ in range(10):
            await keep(cache, KEY, ENTRY)
            asked = asyncio.gather(*(cache.look(KEY, 0, flight_of()) for _ in range(20)))
            await asyncio.sleep(0)
            relay.refuse()
            for answer in await asked:
                assert answer.entry in (None, ENTRY)
            relay.refuse(False)
            await is_back(cache)


@asynccontextmanager
async def somebody_else(says: bytes) -> AsyncIterator[Secret]:
    """A server that answers so to everything but a greeting."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while asked := await reader.read(65536):
                writer.write(b"+PONG\r\n" if b"PING" in asked or b"SUBSCRIBE" in asked else says)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Secret(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
    finally:
        server.close()


@pytest.mark.parametrize(
    "says",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"+OK\r\n",
        b":1\r\n",
        b"$-1\r\n",
        b"*0\r\n",
        b"*1\r\n*1\r\n*1\r\n:1\r\n",
        b"-ERR no\r\n",
        b"-NOSCRIPT no\r\n",
        b"$5\r\nhello\r\n",
        b"*2\r\n$1\r\nx\r\n:7\r\n",
        b"*1\r\n$4\r\nx\r\n",
        b"*-1\r\n",
        b"*2\r\n$-1\r\n$-1\r\n",
        b"\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$1\r\ny\r\n" * 10,
        b"$99999999999\r\n",
        b"*9999999\r\n",
        b"$x\r\n",
        b"+" + b"x" * 200_000,
        b"*1\r\n" * 5_000,
    ],
    ids=range(20),
)
async def test_one_that_answers_something_else(says: bytes) -> None:
    async with somebody_else(says) as url, opened(url, timing=replace(IMPATIENT, deadline=0.1, behind=0.1)) as cache:
        for _ in range(3):
            await misses(cache)
        for ask in (cache.delete(None), cache.stats(None), cache.stats("red"), cache.verify()):
            with pytest.raises(CacheGone):
                await ask


async def test_no_redis_at_all() -> None:
    async with somebody_else(b"") as url:
        for other in (url, Secret(url.reveal().replace("redis://", "rediss://"))):
            async with opened(other, timing=replace(IMPATIENT, connecting=0.1)) as cache:
                await misses(cache)
                await says_so(cache)


async def test_without_a_right_to_anything(server: RedisServer) -> None:
    server.command("ACL", "SETUSER", "nobody", "on", f">{PASSWORD}", "~*", "&*", "-@all")
    log = Log()
    async with opened(server.url_for(PASSWORD, "nobody"), timing=IMPATIENT, log=log) as cache:
        await misses(cache)
        await says_so(cache)
    assert PASSWORD not in repr(log.lines)


async def test_without_a_right_to_listen(server: RedisServer) -> None:
    """Answers are shared, calls are not."""
    server.command("ACL", "SETUSER", "deaf", "on", f">{PASSWORD}", "~*", "resetchannels", "+@all")
    url = server.url_for(PASSWORD, "deaf")
    async with opened(url, "w1", timing=IMPATIENT) as one, opened(url, "w2", timing=IMPATIENT) as other:
        lead, again = flight_of(), flight_of()
        assert await one.look(KEY, 0, lead) == MISS
        assert await other.look(KEY, 0, again) == MISS
        await keep(one, KEY, ENTRY, lead)
        await eventually(lambda: Books(server).keys == {KEY}, "it is kept")
        assert await other.look(KEY, 0, flight_of()) == Found(Role.DONE, ENTRY)


async def test_full(server: RedisServer) -> None:
    """It takes no more; what is there is still given out, and nobody is kept from asking."""
    log = Log()
    async with opened(server.url, timing=IMPATIENT, log=log) as cache:
        await keep(cache, KEY, ENTRY)
        server.command("CONFIG", "SET", "maxmemory", "1")
        try:
            assert await cache.look(KEY, 0, flight_of()) == Found(Role.DONE, ENTRY)
            flight = flight_of()
            assert await cache.look(key_of(2), 0, flight) == MISS
            await keep(cache, key_of(2), ENTRY, flight)
            await keep(cache, key_of(3), ENTRY)
        finally:
            server.command("CONFIG", "SET", "maxmemory", "0")
        books = Books(server)
        assert books.keys == {KEY}
        books.check()
        assert books.lease(key_of(2)) is None
        assert await cache.delete(None) == 1
        await keep(cache, key_of(2), ENTRY)
        assert await cache.delete(None) == 1
        assert books.total == 0
    assert log.lines == [("warning", "cache_entry_not_kept", {"count": 1, "kind": "Full"})]


async def test_a_replica_takes_nothing(server: RedisServer) -> None:
    async with opened(server.url, timing=IMPATIENT) as cache:
        await keep(cache, KEY, ENTRY)
        server.command("REPLICAOF", "127.0.0.1", "1")
        try:
            assert await cache.look(KEY, 0, flight_of()) == Found(Role.DONE, ENTRY)
            await cache.look(key_of(2), 0, flight := flight_of())
            await keep(cache, key_of(2), ENTRY, flight)
        finally:
            server.command("REPLICAOF", "NO", "ONE")
        await eventually(lambda: cache._lines.orders.up and cache._lines.ear.up, "it is well")
        await keep(cache, key_of(3), ENTRY)
        assert await found(cache, key_of(3)) == ENTRY


# Those who follow.


async def test_who_waits_starts_over_when_redis_dies(server: RedisServer) -> None:
    async with opened(server.url, "w1", timing=IMPATIENT) as one, opened(server.url, "w2", timing=IMPATIENT) as other:
        await led(one)
        flight = await followed(other)
        with flight.follow():
            server.kill()
            await eventually(lambda: flight.lost, "it is lost")
        assert await other.look(KEY, 0, flight_of()) == MISS


async def test_a_stream_ends_when_redis_stays_away(server: RedisServer) -> None:
    async with opened(server.url, "w1", timing=IMPATIENT) as one, opened(server.url, "w2", timing=IMPATIENT) as other:
        lead = await led(one)
        flight = await followed(other)
        with flight.follow():
            lead.streamed = True
            lead.add(b"a part")
            await eventually(lambda: flight.size, "a part is here")
            server.freeze()
            await eventually(lambda: flight.lost, "it is lost")


async def test_a_stream_goes_on_when_redis_comes_back(server: RedisServer) -> None:
    """Empty: the leader takes its lease anew, and who follows asks again from where it was."""
    timing = replace(PATIENT, connecting=0.5)
    async with opened(server.url, "w1", timing=timing) as one, opened(server.url, "w2", timing=timing) as other:
        lead = await led(one)
        flight = await followed(other)
        with flight.follow():
            lead.streamed = True
            lead.add(b"one,")
            await eventually(lambda: flight.size, "a part is here")
            server.kill()
            lead.add(b"two,")
            server.restart()
            await eventually(lambda: one._lines.orders.up and Books(server).lease(KEY), "the lease is there")
            lead.add(b"three")
            await eventually(lambda: flight.size == lead.size or flight.lost, "the rest is here")
            if flight.lost:  # both of its looks fell into the time before the lease was there
                return
            lead.finish(entry := entry_of(b"one,two,three", stream=True), 33)
            await keep(one, KEY, entry, lead)
            await eventually(lambda: flight.over, "it has ended")
        assert flight.done
        assert b"".join(flight.parts) == b"one,two,three"


async def test_who_cannot_be_told_does_not_wait_for_ever(server: RedisServer) -> None:
    """It asks, and is heard, and hears nothing."""
    async with Relay(server.port) as relay, opened(server.url, "w1", timing=IMPATIENT) as one:
        async with opened(relay.url, "w2", timing=IMPATIENT) as other:
            await led(one)
            flight = await followed(other)
            with flight.follow():
                relay.drop = True
                await eventually(lambda: flight.lost, "it is lost")
            relay.drop = False


@pytest.mark.parametrize("how", ["kill", "freeze", "flush"])
async def test_trouble_in_mid_load(server: RedisServer, how: str) -> None:
    """Whoever asks gets the whole answer, or has a part of it and is told that there is no more."""
    whole = [b"data: %d\n\n" % number for number in range(10)]
    stop, answers, lost = False, 0, 0

    async def call(flight: Flight) -> Entry:
        return await stream(flight, whole)

    async def client(worker: Worker, number: int) -> None:
        nonlocal answers, lost
        while not stop:
            number += 1
            try:
                assert await worker.ask(key_of(number % 17), call) == b"".join(whole)
                answers += 1
            except Lost:
                lost += 1
            await asyncio.sleep(0)

    bounds = replace(BOUNDS, life=60)
    async with opened(server.url, "w1", bounds, IMPATIENT) as one, opened(server.url, "w2", bounds, IMPATIENT) as two:
        workers = [Worker(one), Worker(two)]
        clients = [asyncio.create_task(client(workers[number % 2], number)) for number in range(30)]
        await eventually(lambda: answers > 100, "it goes well")
        for _ in range(3):
            trouble: dict[str, Any] = {"kill": server.kill, "freeze": server.freeze}
            trouble.get(how, lambda: server.command("FLUSHALL"))()
            before = answers
            await eventually(lambda: answers > before + 60, "it goes on without it")  # noqa: B023
            if how == "kill":
                server.restart()
            server.cont()
            before = answers
            await eventually(lambda: one._lines.questions.up and two._lines.questions.up, "it is back")
            await eventually(lambda: answers > before + 60, "it goes well again")  # noqa: B023
        stop = True
        async with asyncio.timeout(20):
            await asyncio.gather(*clients)
        assert not one._leads.held()
        await eventually(lambda: not one._follows._follows and not two._follows._follows, "nobody waits")
    assert not server.client.keys(f"{PREFIX}=lease/*") or how != "flush"


async def test_what_is_said_while_it_begins_to_listen_is_heard() -> None:
    """It may come between the two answers that show that the server is there."""
    heard: list[tuple[bytes, bytes]] = []

    class Connection:
        answers: ClassVar[list[Any]] = [
            [b"subscribe", b"channel", 1],
            [b"message", b"channel", b"one"],
            [b"message", b"channel", b"two"],
            [b"pong", b""],
        ]

        async def send_command(self, *words: Any) -> None:
            pass

        async def read_response(self) -> Any:
            return self.answers.pop(0)

    wire = Wire(
        Secret("redis://localhost"),
        1.0,
        lambda kind: None,
        connecting=1.0,
        retry=1.0,
        sleep=asyncio.sleep,
        channel=b"channel",
        heard=lambda *said: heard.append(said),
    )
    greeted: Any = Connection()
    await wire._greet(greeted)
    assert heard == [(b"channel", b"one"), (b"channel", b"two")]
    greeted.answers.extend([[b"subscribe", b"channel", 1], b"something else"])
    with pytest.raises(ValueError, match="no Redis"):
        await wire._greet(greeted)
