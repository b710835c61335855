"""Over a real Redis: so many probes of all workers, and none that is lost with its worker."""

from __future__ import annotations

import asyncio

from proxy.store.redis import PREFIX
from tests.redis_server import RedisServer, eventually
from tests.store.redis_parts import Relay, impatient, opened

NAME = "mistral/m"
LONG = 60.0


async def test_f8_one_of_all_workers(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        asked = [store.probes.take(NAME, 1, LONG) for _ in range(50) for store in (one, other)]
        [place] = [found for found in await asyncio.gather(*asked) if found]
        assert await other.probes.take("mistral/another", 1, LONG)
        one.probes.give(NAME, place)
        await one.probes.close()
        assert await other.probes.take(NAME, 1, LONG)
        assert not await one.probes.take(NAME, 1, LONG)


async def test_f8_as_many_as_are_allowed(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        found = [await store.probes.take(NAME, 3, LONG) for _ in range(3) for store in (one, other)]
    assert [bool(place) for place in found] == [True] * 3 + [False] * 3


async def test_f8_a_place_that_is_not_given_back_is_free_after_its_time(server: RedisServer) -> None:
    async with opened(server.url) as store:
        assert await store.probes.take(NAME, 1, 0.05)
        await eventually(lambda: not server.command("EXISTS", f"{PREFIX}probes:{NAME}"), "it has ended")
        assert await store.probes.take(NAME, 1, LONG)


async def test_f8_a_place_that_failed_is_kept_from_then_on(server: RedisServer) -> None:
    async with opened(server.url) as store:
        place = await store.probes.take(NAME, 1, 0.2)
        assert place
        store.probes.keep(NAME, place, LONG)
        await store.probes.close()
        assert server.command("PTTL", f"{PREFIX}probes:{NAME}") > 50_000
        assert not await store.probes.take(NAME, 1, LONG)


async def test_f8_to_give_back_what_is_over_does_no_harm(server: RedisServer) -> None:
    async with opened(server.url) as store:
        mine = await store.probes.take(NAME, 1, LONG)
        assert mine
        server.command("DEL", f"{PREFIX}probes:{NAME}")
        assert await store.probes.take(NAME, 1, LONG)
        store.probes.give(NAME, mine)
        await store.probes.close()
        assert not await store.probes.take(NAME, 1, LONG)


async def test_f15_without_a_redis_each_worker_finds_out_by_itself(server: RedisServer) -> None:
    async with Relay(server.port) as relay, opened(relay.url) as store:
        relay.refuse()
        with impatient(store):
            place = await store.probes.take(NAME, 1, LONG)
        assert place
        store.probes.give(NAME, place)
        await store.probes.close()


async def test_a_look_for_a_place_takes_none(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        assert [await store.probes.free(NAME, 1) for _ in range(3) for store in (one, other)] == [True] * 6
        place = await one.probes.take(NAME, 1, LONG)
        assert place
        assert [await store.probes.free(NAME, 1) for store in (one, other)] == [False, False]
        assert await other.probes.free(NAME, 2)
        one.probes.give(NAME, place)
        await one.probes.close()
        assert await other.probes.free(NAME, 1)
    async with Relay(server.port) as relay, opened(relay.url) as store:
        relay.refuse()
        with impatient(store):
            assert await store.probes.free(NAME, 1)
