"""The cache on a real Redis: what is kept comes back as it was or not at all, within the bounds of all together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import replace
from hashlib import sha1
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace as replace_entry

from proxy.core.cache import Bounds, CacheGone, Found, Role, Stats, Verified
from proxy.core.entry import Entry, Sealer
from proxy.store.cache.redis import AROUND, LARGE, PREFIX, RedisCache
from proxy.store.cache.redis_wire import KEEP, Script
from tests.redis_server import RedisServer, eventually
from tests.store.cache_redis_parts import (
    BOUNDS,
    IMPATIENT,
    KEY,
    LATER,
    MISS,
    PATIENT,
    SEALER,
    SECRET,
    Books,
    entry_of,
    flight_of,
    found,
    keep,
    key_of,
    led,
    opened,
    wall,
)
from tests.store.redis_parts import Log, Relay

ENTRY = entry_of(b'{"answer": 42}')
SEALED = SEALER.seal(KEY, ENTRY)


@pytest.fixture
def books(server: RedisServer) -> Books:
    return Books(server)


async def test_what_was_kept_is_found_by_all(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        await keep(one, KEY, ENTRY)
        for cache in (one, other):
            assert await cache.look(KEY, ENTRY.created, flight_of()) == Found(Role.DONE, ENTRY)
            assert cache.at_hand(KEY) is None
            assert not cache.near
        assert await other.look(key_of(2), 0, flight_of()) == MISS


async def test_what_is_not_young_enough_comes_with_the_lead(server: RedisServer, books: Books) -> None:
    async with opened(server.url) as cache:
        await keep(cache, KEY, ENTRY)
        assert await cache.look(KEY, ENTRY.created + 1, flight_of()) == Found(Role.LEAD, ENTRY)
        assert (books.lease(KEY) or "").endswith(":w1")


async def test_what_would_be_found_is_and_nothing_is_taken_for_it(server: RedisServer, books: Books) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        kept, old = entry_of(b"answer"), entry_of(b"old", created=wall() - 60_000)
        await keep(one, KEY, kept)
        await keep(one, key_of(2), old)
        server.client.set(f"{PREFIX}{key_of(3)}", b"no entry")
        before = books.keys
        for cache in (one, other) * 3:
            assert cache.peek(KEY) is None
            assert await cache.would_find(KEY, 0) == Found(Role.DONE, kept)
            assert await cache.would_find(key_of(2), wall() - 1_000) == Found(Role.LEAD, old)
            assert [await cache.would_find(key_of(number), 0) for number in (3, 4)] == [MISS, MISS]
        assert (books.keys, books.lease(KEY), books.lease(key_of(4))) == (before, None, None)
        flight = await led(one, key_of(5))
        assert await other.would_find(key_of(5), 0) == Found(Role.FOLLOW, None)
        assert await one.would_find(key_of(5), 0) == MISS  # which its own flights know better
        one.drop(key_of(5), flight)
        await eventually(lambda: not server.command("EXISTS", f"{PREFIX}=lease/{key_of(5)}"), "nobody makes it")
        assert await other.would_find(key_of(5), 0) == MISS
    async with Relay(server.port) as relay, opened(relay.url, timing=IMPATIENT) as cut:
        relay.refuse()
        assert await cut.would_find(KEY, 0) == MISS


@pytest.mark.parametrize("created", [0, 127, 2**31, 2**32 - 1, 2**32, 2**53 - 1])
async def test_whenever_it_was_made(server: RedisServer, created: int) -> None:
    """A number that the script cannot read is an old one; nobody is given what is too old."""
    entry = entry_of(b"{}", created=created)
    async with opened(server.url, wall=lambda: created) as cache:
        await keep(cache, KEY, entry)
        assert (await cache.look(KEY, created + 1, flight_of())).role is Role.LEAD
        role, at_all = await cache.look(KEY, created, flight_of())
        assert at_all == entry
        assert role is (Role.LEAD if 0 < created < 2**32 else Role.DONE)


async def test_it_is_kept_sealed_and_not_for_ever(server: RedisServer) -> None:
    async with opened(server.url) as cache:
        await keep(cache, KEY, ENTRY)
    client = server.client
    client = type(client).from_url(server.url.reveal())
    assert client.get(PREFIX + KEY) == SEALED
    assert 0 < client.pttl(PREFIX + KEY) <= BOUNDS.life
    client.close()


async def test_it_expires_and_leaves_the_books_with_the_next_one(server: RedisServer, books: Books) -> None:
    async with opened(server.url, bounds=replace(BOUNDS, life=30)) as cache:
        await keep(cache, KEY, ENTRY)
        await eventually(lambda: not books.keys, "it has expired")
        assert books.total
        await keep(cache, key_of(2), ENTRY)
        assert set(books.index) <= {key_of(2)}
        books.check()
        await eventually(lambda: not books.keys, "it has expired, too")
        assert (await cache.stats(None)).entries == 0
        assert books.total == 0


async def test_a_shorter_life_is_for_what_is_here_already(server: RedisServer) -> None:
    async with opened(server.url) as cache:
        old = entry_of(b"{}", created=wall() - 60_000)
        await keep(cache, KEY, old)
        assert await found(cache, KEY) == old
        cache.become(replace(BOUNDS, life=30_000))
        assert await found(cache, KEY) is None
        assert await cache.look(KEY, 0, flight_of()) == MISS


async def test_what_is_too_large_is_not_kept(server: RedisServer, books: Books) -> None:
    sealed = len(SEALER.seal(KEY, entry_of(b"x" * 1000)))
    async with opened(server.url, bounds=replace(BOUNDS, most_entry=sealed)) as cache:
        await keep(cache, KEY, entry_of(b"x" * 1000))
        await keep(cache, key_of(2), entry_of(b"x" * 1001))
        assert books.keys == {KEY}
        cache.become(replace(BOUNDS, most_bytes=1000))
        await keep(cache, key_of(3), entry_of(b"x" * 1000))
        assert books.keys == {KEY}


async def test_where_there_is_never_room_nothing_is_kept_and_the_lease_is_given_back(
    server: RedisServer, books: Books
) -> None:
    """Others may take all of it, each time that it was made."""
    log = Log()
    async with opened(server.url, log=log) as cache:
        flight, order = await led(cache), cache._lines.order

        async def taken(script: Script, *arguments: bytes) -> Any:
            return 2 if script is KEEP else await order(script, *arguments)

        cache._lines.order = taken  # type: ignore[method-assign]
        await keep(cache, KEY, ENTRY, flight)
        assert books.lease(KEY) is None
        assert [fields["kind"] for _, event, fields in log.lines if event == "cache_entry_not_kept"] == ["Full"]


async def test_an_old_answer_that_takes_too_long_to_come_does_not_hide_who_makes_it_anew(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        await keep(one, KEY, entry_of(b"x" * 2 * LARGE))
        lead = flight_of()
        assert (await one.look(KEY, LATER, lead)).role is Role.LEAD

        async def gone(*_: bytes) -> Any:
            raise CacheGone("TimeoutError")

        other._lines.bulk.ask = gone  # type: ignore[method-assign]
        assert await other.look(KEY, LATER, flight_of()) == Found(Role.FOLLOW, None)


async def test_another_answer_takes_the_place_of_the_first(server: RedisServer, books: Books) -> None:
    async with opened(server.url) as cache:
        for size in (100, 5000, 0, 70):
            await keep(cache, KEY, entry := entry_of(b"x" * size))
            assert await found(cache, KEY) == entry
            assert books.sizes == {KEY: len(SEALER.seal(KEY, entry)) + 3 * len(KEY) + AROUND}
            books.check()


# What does not open.


@pytest.mark.parametrize(
    "data",
    [b"", b"garbage", SEALED[:-1], SEALED + b"x", SEALER.seal(key_of(2), ENTRY), Sealer(b"other").seal(KEY, ENTRY)],
    ids=["empty", "garbage", "cut", "longer", "of another key", "of another secret"],
)
async def test_h5_what_does_not_open_is_a_miss_and_gone(server: RedisServer, books: Books, data: bytes) -> None:
    log = Log()
    async with opened(server.url, log=log) as cache:
        await keep(cache, KEY, ENTRY)
        for _ in range(3):
            server.command("SET", PREFIX + KEY, data)
            flight = flight_of()
            assert await cache.look(KEY, 0, flight) == MISS
            cache.drop(KEY, flight)
            await eventually(lambda: KEY not in books.keys, "it is gone")
        assert books.total == 0
        books.check()
    assert [line for line in log.lines if line[0] != "info"] == [("warning", "cache_entry_rejected", {"count": 1})]


async def test_what_is_no_string_is_a_miss_and_gone(server: RedisServer, books: Books) -> None:
    async with opened(server.url) as cache:
        server.command("RPUSH", PREFIX + KEY, "a", "b")
        assert await found(cache, KEY) is None
        await eventually(lambda: not books.keys, "it is gone")
        server.command("RPUSH", PREFIX + KEY, "a", "b")
        await keep(cache, KEY, ENTRY)
        assert await found(cache, KEY) == ENTRY


async def test_a_lease_that_is_none_keeps_nobody_from_asking(server: RedisServer, books: Books) -> None:
    """Nor a crowd from being one: somebody has one then."""
    async with opened(server.url) as cache:
        for command in (("SET", "garbage"), ("SET", "a:b:c:"), ("SET", ":"), ("RPUSH", "x")):
            server.command("DEL", f"{PREFIX}=lease/{KEY}")
            server.command(command[0], f"{PREFIX}=lease/{KEY}", command[1])
            flight = flight_of()
            if (await cache.look(KEY, 0, flight)).role is Role.FOLLOW:
                await eventually(lambda: flight.lost, "nobody is there")  # noqa: B023
                flight = await led(cache)
            assert (books.lease(KEY) or "").endswith(":w1")
            assert server.client.pttl(f"{PREFIX}=lease/{KEY}") > 0
            await keep(cache, KEY, ENTRY)
            cache.drop(KEY, flight)
            assert await cache.delete(None) == 1


async def test_another_one_by_now_is_not_thrown_away(server: RedisServer, books: Books) -> None:
    async with opened(server.url) as cache:
        await keep(cache, KEY, ENTRY)
        await cache._care.reject(KEY, b"garbage")
        assert books.keys == {KEY}


async def test_scripts_that_redis_has_forgotten_are_taught_again(server: RedisServer) -> None:
    async with opened(server.url) as cache:
        await keep(cache, KEY, ENTRY)
        server.command("SCRIPT", "FLUSH")
        assert await found(cache, KEY) == ENTRY
        server.command("SCRIPT", "FLUSH")
        await keep(cache, key_of(2), ENTRY)
        assert (await cache.stats(None)).entries == 2


# The bounds of all.


async def test_the_oldest_makes_room(server: RedisServer, books: Books) -> None:
    size = len(SEALED) + 3 * len(KEY) + AROUND
    async with opened(server.url, bounds=replace(BOUNDS, most_bytes=5 * size)) as cache:
        for number in range(8):
            await keep(cache, key_of(number), ENTRY)
            await asyncio.sleep(0.002)  # those of one millisecond have no order
            assert books.total <= 5 * size
        assert books.keys == {key_of(number) for number in range(3, 8)}
        books.check()
        assert await cache.stats(None) == Stats(5, 5 * size, 3)
        cache.become(replace(BOUNDS, most_bytes=2 * size))
        await keep(cache, key_of(7), ENTRY)
        assert books.keys == {key_of(6), key_of(7)}
        assert (await cache.stats(None)).evicted == 6


async def test_thousands_make_room_for_one(server: RedisServer, books: Books) -> None:
    async with opened(server.url) as cache:
        await asyncio.gather(*(keep(cache, key_of(number), ENTRY) for number in range(2_000)))
        assert len(books.keys) == 2_000
        large = entry_of(b"x" * 500_000)
        cache.become(replace(BOUNDS, most_bytes=510_000))
        await keep(cache, KEY, large)
        assert KEY in books.keys
        assert books.total <= 510_000
        books.check()
        assert await found(cache, KEY) == large


async def test_books_that_somebody_has_taken_away_begin_anew(server: RedisServer, books: Books) -> None:
    size = len(SEALED) + 3 * len(KEY) + AROUND
    async with opened(server.url, bounds=replace(BOUNDS, most_bytes=2 * size)) as cache:
        for number in range(2):
            await keep(cache, key_of(number), ENTRY)
        server.command("DEL", f"{PREFIX}=index")
        for number in range(2, 7):
            await keep(cache, key_of(number), ENTRY)
        books.check()
        assert books.total == 2 * size


async def test_an_entry_takes_no_more_than_it_counts_for(server: RedisServer, books: Books) -> None:
    """With the largest tables that Redis makes: those that have just grown."""
    number, client = 1_100, server.client
    async with opened(server.url) as cache:
        for key, entry in ((key_of(n, "a-team-of-some-length:a-key-id"), entry_of(b"x" * 700)) for n in range(number)):
            await keep(cache, key, entry)
    values = sum(client.memory_usage(PREFIX + key) for key in books.keys)
    tables = sum(client.memory_usage(f"{PREFIX}={name}", samples=0) for name in ("index", "sizes"))
    expires = 64 * number  # what MEMORY USAGE does not say: the entry of the table of expiries
    taken = values + tables + expires
    assert taken <= books.total <= 1.2 * taken
    client.close()


# Those who look after it.


async def test_a_team_is_forgotten_and_no_other(server: RedisServer, books: Books) -> None:
    teams = ["a", "ab", "a*", "*", "b", "A", "a:k1", "a:k2", "ab:k1", "[ab]", "a?"]
    async with opened(server.url) as cache:
        for team in teams:
            await keep(cache, key_of(1, team), ENTRY)
        size = books.sizes[key_of(1, "a")]
        assert (await cache.stats("a")).entries == 3
        assert await cache.stats("b") == Stats(1, size)
        assert await cache.stats("nobody") == Stats(0, 0)
        assert await cache.delete("a") == 3
        assert books.keys == {key_of(1, team) for team in teams if team not in ("a", "a:k1", "a:k2")}
        books.check()
        assert await cache.delete("*") == 1
        assert await cache.delete("[ab]") == 1
        assert await cache.delete("a") == 0
        assert await cache.delete(None) == 6
        assert not books.keys
        assert books.total == 0


def asked(began: int, body: bytes) -> Entry:
    return replace_entry(ENTRY, body=body, began=began)


async def text(cache: RedisCache) -> bytes | None:
    entry = await found(cache, KEY)
    return entry.body if entry else None


@pytest.mark.parametrize("lease", [False, True])
async def test_what_was_asked_for_later_stays(server: RedisServer, books: Books, lease: bool) -> None:
    now = wall()
    async with opened(server.url) as cache:
        flight = await led(cache) if lease else flight_of()
        await keep(cache, KEY, asked(now, b"newer"))
        await keep(cache, KEY, asked(now - 1_000, b"older"), flight)
        assert (await text(cache)) == b"newer"
        assert books.lease(KEY) is None
        books.check()
        await keep(cache, KEY, asked(now, b"at the same time"))
        await keep(cache, KEY, asked(now + 1_000, b"newest"))
        assert (await text(cache)) == b"newest"
        await keep(cache, KEY, asked(now + 60_000, b"of a clock that is ahead"))
        await keep(cache, KEY, asked(now + 2_000, b"of ours"))
        assert (await text(cache)) == b"of ours"


@pytest.mark.parametrize("team", ["red", None])
async def test_what_was_under_way_when_a_team_was_forgotten_is_not_kept(server: RedisServer, team: str | None) -> None:
    before, other = wall() - 10, key_of(1, "blue")
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as two:
        assert await two.delete(team) == 0
        for key in (KEY, "red:key/1", other):
            await keep(one, key, asked(before, b"older"))
        assert (await found(one, KEY), await found(one, "red:key/1")) == (None, None)
        assert (await found(one, other) is None) is (team is None)
        await keep(one, KEY, asked(wall() + 10, b"newer"))
        assert await found(one, KEY)
        server.command("SET", f"{PREFIX}=deleted", "garbage")
        assert await two.delete(team) == 1
        await keep(one, KEY, asked(before, b"older"))
        assert not await found(one, KEY)


@pytest.mark.parametrize("team", ["red", "*"])
async def test_what_will_be_forgotten_one_day_is_kept_until_then(server: RedisServer, team: str) -> None:
    """A clock that was ahead when somebody forgot it must not keep out what is new."""
    async with opened(server.url) as cache:
        server.command("HSET", f"{PREFIX}=deleted", team, str(wall() + 3_600_000))
        await keep(cache, KEY, asked(wall(), b"new"))
        assert await text(cache) == b"new"


async def test_a_server_that_was_too_full_to_be_told_is_told_when_it_has_room(server: RedisServer) -> None:
    began = wall()
    async with opened(server.url) as cache:
        for number in range(2, 12):
            await keep(cache, key_of(number), entry_of(b"x" * 200_000))
        used = int(server.client.info("memory")["used_memory"])
        server.command("CONFIG", "SET", "maxmemory", str(used - 500_000))
        try:
            assert await cache.delete("red") == 10
        finally:
            server.command("CONFIG", "SET", "maxmemory", "0")
        await keep(cache, KEY, asked(began, b"from before"))
        assert await text(cache) is None


@pytest.mark.parametrize("size", [LARGE // 2, LARGE + 1, 3 * LARGE])
@pytest.mark.parametrize("old", [False, True])
async def test_what_takes_long_to_come_is_asked_for_where_nobody_waits_behind_it(
    server: RedisServer, size: int, old: bool
) -> None:
    entry, asked_for = entry_of(b"x" * size), list[bytes]()
    async with opened(server.url) as cache:
        await keep(cache, KEY, entry)
        ask = cache._lines.bulk.ask

        async def asks(*words: bytes) -> Any:
            asked_for.append(words[0])
            return await ask(*words)

        cache._lines.bulk.ask = asks  # type: ignore[method-assign]
        flight = flight_of()
        found = await cache.look(KEY, LATER if old else 0, flight)
        assert found == Found(Role.LEAD if old else Role.DONE, entry)
        assert asked_for == ([b"GET"] if size > LARGE else [])
        cache.drop(KEY, flight)


@pytest.mark.parametrize("old", [False, True])
async def test_what_takes_too_long_to_come_is_a_miss(server: RedisServer, books: Books, old: bool) -> None:
    async with opened(server.url) as cache:
        await keep(cache, KEY, entry_of(b"x" * 2 * LARGE))

        async def gone(*_: bytes) -> Any:
            raise CacheGone("TimeoutError")

        cache._lines.bulk.ask = gone  # type: ignore[method-assign]
        flight = flight_of()
        assert await cache.look(KEY, LATER if old else 0, flight) == MISS
        assert (books.lease(KEY) is not None) is old
        cache.drop(KEY, flight)


async def test_connections_that_are_idle_say_a_word_now_and_then(server: RedisServer) -> None:
    """Servers close those that do not (`timeout`). One that is gone does not keep the others from it."""
    asked: list[str] = []
    async with opened(server.url) as cache:

        def listened_to(name: str, wire: Any) -> None:
            ask = wire.ask

            async def asks(*words: bytes) -> Any:
                if words == (b"PING",):
                    asked.append(name)
                    if name == "questions":
                        raise CacheGone("Closed")
                return await ask(*words)

            wire.ask = asks

        for name in ("questions", "bulk", "orders"):
            listened_to(name, getattr(cache._lines, name))
        await eventually(lambda: asked.count("orders") > 1, "a word is said")
        assert set(asked) == {"questions", "bulk", "orders"}


@pytest.mark.parametrize("junk", ["junk", "nan", "-nan", "inf", "1e400", "-5", "99999999999999999999"])
async def test_junk_in_the_books_does_not_stop_what_meets_it(server: RedisServer, books: Books, junk: str) -> None:
    async with opened(server.url) as cache:
        await keep(cache, KEY, ENTRY)
        size = books.total
        server.command("HSET", f"{PREFIX}=sizes", KEY, junk)
        await keep(cache, KEY, ENTRY)
        assert (await text(cache), books.sizes) == (ENTRY.body, {KEY: size})
        assert books.total == 2 * size  # nobody knows what it was, so it counts for nothing
        server.command("HSET", f"{PREFIX}=sizes", KEY, junk)
        assert await cache.delete("red") == 1


async def test_thousands_are_forgotten(server: RedisServer, books: Books) -> None:
    async with opened(server.url) as cache:
        keys = [key_of(number, ("red", "blue", "red:k")[number % 3]) for number in range(3_000)]
        await asyncio.gather(*(keep(cache, key, ENTRY) for key in keys))
        server.command("SET", "something else", "of somebody else")
        assert (await cache.stats("red")).entries == 2_000
        assert await cache.delete("red") == 2_000
        books.check()
        assert (await cache.stats(None)).entries == 1_000
        assert await cache.delete(None) == 1_000
        assert server.command("GET", "something else")


async def test_every_entry_is_looked_at(server: RedisServer, books: Books) -> None:
    async with opened(server.url) as cache:
        for number in range(5):
            await keep(cache, key_of(number), ENTRY)
        assert await cache.verify() == Verified(5, 0)
        server.command("SETRANGE", PREFIX + key_of(1), "50", "?")
        server.command("SET", PREFIX + key_of(2), "")
        server.command("SET", PREFIX + "red/no key", "garbage")
        server.command("RPUSH", PREFIX + "list", "garbage")
        assert (await cache.look(key_of(9), 0, flight_of())).role is Role.LEAD  # a lease is no entry
        assert await cache.verify() == Verified(3, 4)
        assert await cache.verify() == Verified(3, 0)
        assert books.keys == {key_of(0), key_of(3), key_of(4)}
        books.check()


async def test_what_waits_is_cancelled_without_harm(server: RedisServer, books: Books) -> None:
    """Each at another moment; no lease and no task is left."""
    async with opened(server.url) as cache:
        for steps in range(12):
            flight = flight_of()
            task = asyncio.create_task(cache.look(KEY, LATER, flight))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                assert (await task).role is Role.LEAD
            cache.drop(KEY, flight)
            await eventually(lambda: books.lease(KEY) is None and not cache._leads._leads, "it is free")
            keeping = asyncio.create_task(keep(cache, KEY, ENTRY))
            for _ in range(steps + 1):
                await asyncio.sleep(0)
            keeping.cancel()
            await asyncio.wait([keeping])
            await eventually(lambda: books.keys == {KEY}, "it is kept all the same")
            assert await cache.delete(None) == 1


async def test_nobody_gets_what_another_one_has_asked_for(server: RedisServer) -> None:
    """However many of those who ask at once do not wait for their answers."""
    log = Log()
    async with opened(server.url, log=log) as cache:
        entries = {key_of(number): entry_of(b"%d" % number * number) for number in range(50)}
        for key, entry in entries.items():
            await keep(cache, key, entry)
        for seed in range(20):
            order = random.Random(seed)
            tasks = {key: asyncio.create_task(cache.look(key, 0, flight_of())) for key in entries}
            for _ in range(order.randrange(8)):
                await asyncio.sleep(0)
            left = [key for key in tasks if order.random() < 0.5]
            for key in left:
                tasks[key].cancel()
            for key, task in tasks.items():
                with suppress(asyncio.CancelledError):
                    assert await task == Found(Role.DONE, entries[key])
        assert await cache.verify() == Verified(50, 0)
    assert not log.lines


# Whatever comes.


class Driven:
    """A RedisCache that is asked by a test without a loop."""

    def __init__(self, server: RedisServer, bounds: Bounds = BOUNDS, prefix: str = PREFIX) -> None:
        self._loop = asyncio.new_event_loop()
        self.cache = RedisCache(
            server.url,
            bounds,
            SECRET,
            owner="w1",
            log=Log(),
            wall=wall,
            monotonic=lambda: 0.0,
            prefix=prefix,
            timing=replace(PATIENT, beat=3600.0),
        )
        self.do(self.cache.start())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        self.do(self.cache.close(20.0))
        self._loop.close()


@pytest.fixture
def driven(server: RedisServer) -> Iterator[Driven]:
    driven = Driven(server)
    yield driven
    driven.close()


@pytest.mark.parametrize("bit", range(8))
async def test_an_entry_that_says_to_be_of_the_end_of_time_is_a_miss(server: RedisServer, bit: int) -> None:
    """However often it is asked for, and whoever asks."""
    async with opened(server.url) as cache:
        for at in (37, 38):
            changed = bytearray(SEALED)
            changed[at] ^= 1 << bit
            server.client.set(PREFIX + KEY, bytes(changed))
            assert await cache.would_find(KEY, 0) == MISS
            server.client.set(PREFIX + KEY, bytes(changed))
            flight = flight_of()
            assert await cache.look(KEY, 0, flight) == MISS
            cache.drop(KEY, flight)


class Ahead:
    """The clock of a replica."""

    def __init__(self, milliseconds: int) -> None:
        self.ahead = milliseconds

    def __call__(self) -> int:
        return wall() + self.ahead


@pytest.mark.parametrize("ahead", [-4_000, 4_000])
async def test_clocks_that_differ_have_one_order(server: RedisServer, ahead: int) -> None:
    clock = Ahead(ahead)
    async with opened(server.url, "w1", wall=clock) as one, opened(server.url, "w2") as two:
        flight = await led(one)  # which learns what time it is there
        before = clock() - 1_000
        assert await two.delete(None) == 0
        await keep(one, KEY, asked(before, b"from before it was cleared"), flight)
        assert await text(two) is None
        await keep(one, KEY, asked(clock() + 1_000, b"from after that"))
        assert await text(two) == b"from after that"
        await keep(two, KEY, asked(wall() + 2_000, b"newer"))
        await keep(one, KEY, asked(clock() + 1_000, b"older"))
        assert await text(two) == b"newer"
        await keep(one, KEY, asked(clock() + 3_000, b"newest"))
        assert await text(two) == b"newest"


@pytest.mark.parametrize(
    ("before", "there", "after", "ahead"),
    [(100, 150, 200, 0), (100, 100, 200, 0), (100, 200, 200, 0), (100, 90, 200, -10), (100, 215, 200, 15)],
)
async def test_the_way_there_and_back_is_no_difference_of_clocks(
    server: RedisServer, before: int, there: int, after: int, ahead: int
) -> None:
    async with opened(server.url, wall=lambda: after) as cache:
        cache._compare(before, there)
        assert cache._ahead == ahead


async def test_a_worker_that_has_never_looked_has_the_same_order(server: RedisServer) -> None:
    clock = Ahead(4_000)
    async with opened(server.url, "w1", wall=clock) as one, opened(server.url, "w2") as two:
        await eventually(lambda: one._has_compared, "it knows what time it is there")
        assert await two.delete(None) == 0
        await keep(one, KEY, asked(clock() - 1_000, b"from before it was cleared"))
        assert await text(two) is None


async def test_what_is_new_stays_when_lives_have_become_shorter(server: RedisServer, books: Books) -> None:
    size = SEALER.seal(KEY, ENTRY)
    room = replace(BOUNDS, most_bytes=5 * (len(size) + 3 * len(KEY) + AROUND))
    async with opened(server.url, bounds=room) as cache:
        for number in range(5):
            await keep(cache, key_of(number), ENTRY)
        cache.become(replace(room, life=room.life // 2))
        for number in range(5, 9):
            await asyncio.sleep(0.002)
            await keep(cache, key_of(number), ENTRY)
        assert [bool(await found(cache, key_of(number))) for number in range(5, 9)] == [True] * 4
        books.check()


@pytest.mark.parametrize(
    "garbage",
    [
        ("SET", "=index", "x"), ("SET", "=sizes", "x"), ("SET", "=totals", "x"), ("HSET", "=totals", "bytes", "x"),
        ("HSET", "=totals", "evicted", "x"), ("HSET", "=totals", "bytes", "007"),
        ("HSET", "=deleted", "red", "x"), ("SADD", "=index", "x"),
    ],
)  # fmt: skip
async def test_what_somebody_has_written_in_place_of_the_books_is_mended(
    server: RedisServer, books: Books, garbage: tuple[str, ...]
) -> None:
    room = replace(BOUNDS, most_bytes=100_000)
    command, name, *rest = garbage

    def spoil() -> None:
        if command != "HSET":
            server.command("DEL", PREFIX + name)
        server.command(command, PREFIX + name, *rest)

    async with opened(server.url, bounds=room) as cache:
        await keep(cache, KEY, ENTRY)
        spoil()
        for number in range(2, 40):
            await keep(cache, key_of(number), replace_entry(ENTRY, body=b"x" * 10_000, began=wall()))
        books.check()
        assert 0 < books.total <= room.most_bytes
        assert sum(1 for key in books.keys if key != KEY) <= 10
        assert books.lease(KEY) is None
        spoil()
        assert (await cache.stats("red")).entries <= 10
        assert await cache.delete(None)
        left = await cache.stats(None)
        assert (left.entries, left.bytes, books.keys) == (0, 0, set())


async def test_a_total_that_cannot_be_is_mended_by_who_looks_after_it(server: RedisServer, books: Books) -> None:
    async with opened(server.url) as cache:
        await keep(cache, KEY, ENTRY)
        server.command("HSET", PREFIX + "=totals", "bytes", "-999999999999")
        await cache.stats(None)
        books.check()


async def test_everything_that_is_cleared_is_nothing_whatever_the_books_said(server: RedisServer) -> None:
    async with opened(server.url) as cache:
        await keep(cache, KEY, ENTRY)
        await keep(cache, key_of(2), ENTRY)
        server.command("DEL", PREFIX + KEY)
        assert (await cache.stats(None)).entries == 2
        server.command("HSET", PREFIX + "=totals", "bytes", "12345")
        assert await cache.delete(None) == 1
        assert await cache.stats(None) == Stats(0, 0, 0)


def test_whatever_is_there_instead_is_a_miss(server: RedisServer, driven: Driven) -> None:
    client = server.client

    @given(st.data())
    @settings(max_examples=150)
    def check(data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(SEALED)))
        end = data.draw(st.integers(start, len(SEALED)))
        other = data.draw(st.one_of(st.just(b""), st.binary(max_size=60)))
        changed = SEALED[:start] + other + SEALED[end:]
        if data.draw(st.booleans()):
            flipped = bytearray(SEALED)
            flipped[data.draw(st.integers(0, len(SEALED) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            changed = bytes(flipped)
        client.set(PREFIX + KEY, changed)
        expected = ENTRY if changed == SEALED else None
        assert driven.do(found(driven.cache, KEY)) == expected
        if expected is None:  # what was behind the answer is done before what is asked next
            driven.do(driven.cache._care.reject(KEY, b""))
            driven.do(driven.cache.stats(None))
            assert not client.exists(PREFIX + KEY)

    check()
    client.close()


_EXAMPLES = count()


def test_the_books_are_right_whatever_happens(server: RedisServer) -> None:
    client = server.client
    keys = st.sampled_from([key_of(number, team) for number in range(4) for team in ("a", "ab", "a:k", "*")])

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.prefix = f"{next(_EXAMPLES)}:{{cache}}:"
            self.most = 20_000
            self.driven = Driven(server, replace(BOUNDS, most_bytes=self.most), self.prefix)
            self.books = Books(server, self.prefix)
            self.tampered: set[str] = set()

        @rule(key=keys, size=st.integers(0, 6_000))
        def keep(self, key: str, size: int) -> None:
            entry = entry_of(b"x" * size)
            self.driven.do(keep(self.driven.cache, key, entry))
            self.tampered.discard(key)
            assert self.books.total <= self.most
            assert set(self.books.index) | self.tampered == self.books.keys | self.tampered
            assert self.driven.do(found(self.driven.cache, key)) == entry

        @rule(key=keys)
        def expire(self, key: str) -> None:
            client.delete(self.prefix + key)
            client.zadd(f"{self.prefix}=index", {key: wall() - BOUNDS.life - 1}, xx=True)

        @rule(key=keys)
        def tamper(self, key: str) -> None:
            if client.set(self.prefix + key, "garbage", xx=True):
                self.tampered.add(key)

        @rule(key=keys)
        def look(self, key: str) -> None:
            self.driven.do(found(self.driven.cache, key))

        @rule(team=st.sampled_from([None, "a", "ab", "*", "b"]))
        def delete(self, team: str | None) -> None:
            there = self.driven.do(self.driven.cache.stats(team)).entries
            assert self.driven.do(self.driven.cache.delete(team)) >= there - len(self.tampered)
            assert self.driven.do(self.driven.cache.stats(team)) in (Stats(0, 0), Stats(0, 0, self.evicted))

        @rule()
        def verify(self) -> None:
            self.driven.do(self.driven.cache.verify())
            self.tampered.clear()

        @rule(most=st.integers(5_000, 20_000))
        def become(self, most: int) -> None:
            if most > 8_000:  # so that all fit
                self.most = most
                self.driven.cache.become(replace(BOUNDS, most_bytes=most))

        @property
        def evicted(self) -> int | None:
            return self.driven.do(self.driven.cache.stats(None)).evicted

        @invariant()
        def the_total_is_the_sum(self) -> None:
            self.books.check()
            for key, size in self.books.sizes.items():
                length = client.strlen(self.prefix + key)
                assert key in self.tampered or length in (0, size - 3 * len(key) - AROUND)

        def teardown(self) -> None:
            self.driven.close()

    run_state_machine_as_test(Machine, settings=settings(max_examples=30, stateful_step_count=30, deadline=None))
    client.close()


def test_the_names_of_scripts_are_what_redis_calls_them() -> None:
    from proxy.store.cache import redis_wire

    for script in (redis_wire.LOOK, redis_wire.KEEP):
        assert script.sha == sha1(script.text).hexdigest().encode()
