"""The Redis store on a real server: exact for all who share it, each settlement once, slots that come back."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import redis

from proxy.core.quota import WINDOWS, Claim, Counter, HistoryGone, Standing, Unit
from proxy.store.redis import PREFIX, RedisStore, StoreUnfit
from tests.redis_server import RedisServer, eventually
from tests.store.redis_parts import (
    MINUTE,
    MONTH,
    QUICK,
    SLOTS,
    STILL,
    Calls,
    Ledger,
    Relay,
    grant,
    numbers,
    opened,
)

ONE_OF_EACH = [Claim(MINUTE, 100, 10), Claim(MONTH, 1000, 300), Claim(SLOTS, 2, 1)]


async def test_reserve_and_settle(server: RedisServer):
    async with opened(server.url) as store:
        verdict = await store.reserve("w1-1", ONE_OF_EACH)
        assert verdict.granted
        assert [(one.used, one.reserved, one.wait) for one in verdict.standings] == [(0, 10, 0), (0, 300, 0), (0, 1, 0)]
        store.settle("w1-1", ONE_OF_EACH, [4, 250, 0])
        assert await store.drain(5)
        assert await numbers(store, MINUTE, MONTH, SLOTS) == [(4, 0), (250, 0), (0, 0)]


async def test_a_refused_request_consumes_nothing(server: RedisServer):
    async with opened(server.url) as store:
        await grant(store, "w1-1", ONE_OF_EACH)
        await grant(store, "w1-2", ONE_OF_EACH)
        verdict = await store.reserve("w1-3", ONE_OF_EACH)
        assert not verdict.granted
        assert [one.wait for one in verdict.standings] == [0, 0, 1000]
        assert await numbers(store, MINUTE, MONTH, SLOTS) == [(0, 20), (0, 600), (0, 2)]


async def test_a_look_says_what_a_request_would_be_told_and_writes_nothing(server: RedisServer):
    def timeless(standing: Standing) -> tuple[int, int, int | None]:
        return standing.used, standing.reserved, standing.wait

    def everything() -> dict[bytes, bytes]:
        with redis.Redis.from_url(server.url.reveal()) as client:
            return {key: client.dump(key) for key in client.keys("*") if b":peers" not in key}  # whoever is alive

    async with opened(server.url, timing=STILL) as store:
        await grant(store, "w1-1", ONE_OF_EACH)
        before = everything()
        seen = [await store.look(ONE_OF_EACH) for _ in range(50)]
        assert everything() == before
        granted = await store.reserve("w1-2", ONE_OF_EACH)
        for verdict in seen:
            assert verdict.granted
            assert [timeless(one) for one in verdict.standings] == [timeless(one) for one in granted.standings]
        too_much = await store.look([*ONE_OF_EACH[:2], Claim(SLOTS, 2, 1)])
        assert (too_much.granted, [one.wait for one in too_much.standings]) == (False, [0, 0, 1000])
        assert await numbers(store, MINUTE, MONTH, SLOTS) == [(0, 20), (0, 600), (0, 2)]


async def test_what_was_used_beyond_the_reservation_is_charged_in_full(server: RedisServer):
    async with opened(server.url) as store:
        await grant(store, "w1-1", ONE_OF_EACH)
        store.settle("w1-1", ONE_OF_EACH, [40, 1250, 0])
        assert await store.drain(5)
        assert await numbers(store, MINUTE, MONTH) == [(40, 0), (1250, 0)]
        assert not (await store.reserve("w1-2", ONE_OF_EACH)).granted


async def test_numbers_stay_exact_to_the_last_one(server: RedisServer):
    """2^53 - 1 has 16 digits, and Lua's own idea of text has 14."""
    most = 2**53 - 1
    large = [Claim(MONTH, most, most - 1), Claim(MINUTE, most, most - 1)]
    async with opened(server.url, history=Ledger({MONTH.name: 1})) as store:
        verdict = await store.reserve("w1-1", large)
        assert [(one.used, one.reserved) for one in verdict.standings] == [(1, most - 1), (0, most - 1)]
        store.settle("w1-1", large, [most - 3, most - 4])
        assert await store.drain(5)
        assert await numbers(store, MONTH, MINUTE) == [(most - 2, 0), (most - 4, 0)]


async def test_settled_twice_counts_once(server: RedisServer):
    async with opened(server.url) as store:
        await grant(store, "w1-1", ONE_OF_EACH)
        for used in ([4, 250, 0], [0, 0, 0]):
            store.settle("w1-1", ONE_OF_EACH, used)
        store.settle("w1-never", ONE_OF_EACH, [0, 0, 0])
        assert await store.drain(5)
        assert await numbers(store, MINUTE, MONTH) == [(4, 0), (250, 0)]


async def test_a_request_costs_two_commands(server: RedisServer):
    async with opened(server.url, timing=STILL) as store:
        await grant(store, "w1-1", ONE_OF_EACH)
        store.settle("w1-1", ONE_OF_EACH, [0, 0, 0])
        assert await store.drain(5)
        before = server.command("INFO", "commandstats")["cmdstat_evalsha"]["calls"]
        await grant(store, "w1-2", ONE_OF_EACH)
        store.settle("w1-2", ONE_OF_EACH, [0, 0, 0])
        assert await store.drain(5)
        assert server.command("INFO", "commandstats")["cmdstat_evalsha"]["calls"] == before + 2


@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_g1_exactly_so_many_are_let_in_over_eight_workers(server: RedisServer, limit: int):
    trials = {1: 150, 7: 60, 100: 10}[limit]
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(server.url, f"w{n}")) for n in range(8)]
        calls = Calls("w")
        for trial in range(trials):
            team = f"team-{trial}"
            counters = [
                Counter(team, Unit.REQUESTS, WINDOWS["hour"]),
                Counter(team, Unit.SPEND, WINDOWS["month"]),
                Counter(team, Unit.CONCURRENCY, None),
            ]
            claims = [Claim(counters[0], limit, 1), Claim(counters[1], limit * 30, 30), Claim(counters[2], limit, 1)]
            asked = [store.reserve(calls.next(), claims) for store in stores for _ in range(limit // 2 + 3)]
            verdicts = await asyncio.gather(*asked)
            assert sum(verdict.granted for verdict in verdicts) == limit
            for verdict in verdicts:
                for claim, standing in zip(claims, verdict.standings, strict=True):
                    assert standing.used + standing.reserved <= claim.limit
            assert await numbers(stores[0], *counters) == [(0, limit), (0, limit * 30), (0, limit)]


async def test_a_limit_holds_while_requests_come_and_go(server: RedisServer):
    """Slots and budget are taken, given back in part, and taken again by all; nothing ever stands above its limit."""
    claims = [Claim(MONTH, 1000, 30), Claim(SLOTS, 3, 1)]
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(server.url, f"w{n}")) for n in range(4)]
        spent = 0

        async def client(store: RedisStore, calls: Calls) -> None:
            nonlocal spent
            while spent <= 1000 - 30:
                verdict = await store.reserve(call := calls.next(), claims)
                for claim, standing in zip(claims, verdict.standings, strict=True):
                    assert standing.used + standing.reserved <= claim.limit
                if verdict.granted:
                    spent += 20
                    store.settle(call, claims, [20, 0])
                elif verdict.standings[0].wait and not verdict.standings[0].reserved:
                    return

        async with asyncio.timeout(60):
            await asyncio.gather(*(client(store, Calls(f"w{n}x{m}")) for n, store in enumerate(stores) for m in (0, 1)))
        for store in stores:
            assert await store.drain(5)
        assert await numbers(stores[0], MONTH, SLOTS) == [(spent, 0), (0, 0)]
        assert 970 < spent <= 1000


_PROCESS = """
import asyncio, json, sys
from proxy.core.quota import Claim
from proxy.core.secret import Secret
from tests.store.redis_parts import MONTH, REQUESTS, SLOTS, opened

async def main(url, owner, limit):
    claims = [Claim(REQUESTS, limit, 1), Claim(MONTH, limit * 30, 30), Claim(SLOTS, limit, 1)]
    async with opened(Secret(url), owner) as store:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        verdicts = await asyncio.gather(*(store.reserve(f"{owner}-{n}", claims) for n in range(60)))
        print(json.dumps(sum(verdict.granted for verdict in verdicts)), flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.mark.parametrize("limit", [7, 100])
async def test_g1_over_several_processes(server: RedisServer, limit: int):
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-c", _PROCESS, server.url.reveal())
    workers = [
        await asyncio.create_subprocess_exec(*command, f"p{n}", str(limit), stdin=pipe, stdout=pipe) for n in range(3)
    ]

    async def line(worker: asyncio.subprocess.Process) -> bytes:
        assert worker.stdout
        return await asyncio.wait_for(worker.stdout.readline(), 30)

    def go(worker: asyncio.subprocess.Process) -> None:
        assert worker.stdin
        worker.stdin.write(b"\n")

    assert [await line(worker) for worker in workers] == [b"ready\n"] * 3
    for worker in workers:
        go(worker)
    granted = [json.loads(await line(worker)) for worker in workers]
    for worker in workers:
        go(worker)
    assert [await worker.wait() for worker in workers] == [0, 0, 0]
    assert sum(granted) == limit


# whose clock


@pytest.mark.parametrize("skew", [-40 * 86_400, -7 * 3_600, 11 * 3_600, 400 * 86_400])
async def test_a_replica_whose_clock_is_wrong_counts_with_the_others(server: RedisServer, skew: int):
    claims = [Claim(MONTH, 3, 1), Claim(MINUTE, 100, 1)]
    ledger = Ledger({MONTH.name: 1})
    async with (
        opened(server.url, "w1", ledger) as right,
        opened(server.url, "w2", ledger, wall=lambda: int((time.time() + skew) * 1000)) as wrong,
    ):
        await grant(wrong, "w2-1", claims)
        await grant(right, "w1-1", claims)
        assert not (await wrong.reserve("w2-2", claims)).granted
        assert await numbers(wrong, MONTH, MINUTE) == await numbers(right, MONTH, MINUTE) == [(1, 2), (0, 2)]
        assert len({asked[1:] for asked in ledger.asked}) == 1


async def test_a_clock_that_jumps_between_two_requests(server: RedisServer):
    """Not the wall clock's, which is not looked at again; but suppose the machine was asleep."""
    jump = 0.0

    def monotonic() -> float:
        return time.monotonic() + jump

    async with opened(server.url, monotonic=monotonic) as store:
        claims = [Claim(MONTH, 2, 1)]
        await grant(store, "w1-1", claims)
        jump = 90 * 86_400.0
        await grant(store, "w1-2", claims)
        jump = 0.0
        assert not (await store.reserve("w1-3", claims)).granted


# born from the ledger


async def test_a_calendar_counter_is_born_from_the_ledger(server: RedisServer):
    ledger = Ledger({MONTH.name: 990})
    async with opened(server.url, history=ledger) as store:
        verdict = await store.reserve("w1-1", [Claim(MONTH, 1000, 20)])
        assert (verdict.granted, verdict.standings[0].used) == (False, 990)
        await grant(store, "w1-2", [Claim(MONTH, 1000, 10)])
    assert len(ledger.asked) == 1


async def test_many_wait_for_one_birth(server: RedisServer):
    ledger = Ledger({MONTH.name: 3})
    async with opened(server.url, history=ledger) as store:
        verdicts = await asyncio.gather(*(store.reserve(f"w1-{n}", [Claim(MONTH, 5, 1)]) for n in range(30)))
    assert sum(verdict.granted for verdict in verdicts) == 2
    assert len(ledger.asked) <= 3  # who hears that it is absent just after it was born asks once more


async def test_a_birth_waits_until_the_rows_of_others_are_in_the_ledger(server: RedisServer):
    ledger, slept = Ledger({MONTH.name: 3}), []

    async def sleep(seconds: float) -> None:
        slept.append((seconds, list(ledger.asked)))
        if seconds != 0.3:
            await asyncio.Event().wait()

    async with opened(server.url, history=ledger, timing=replace(QUICK, settle_in=0.3), sleep=sleep) as store:
        await grant(store, "w1-1", [Claim(MONTH, 5, 1)])
    assert (0.3, []) in slept


async def test_the_counters_of_two_births_at_once_are_one(server: RedisServer):
    async with opened(server.url, "w1", Ledger({MONTH.name: 3})) as one:
        async with opened(server.url, "w2", Ledger({MONTH.name: 3})) as other:
            asked = [store.reserve(f"{n}", [Claim(MONTH, 8, 1)]) for n in range(10) for store in [[one, other][n % 2]]]
            assert sum(verdict.granted for verdict in await asyncio.gather(*asked)) == 5


# leases


async def test_the_slots_of_a_dead_worker_come_back(server: RedisServer):
    claims = [Claim(SLOTS, 2, 1), Claim(MONTH, 1000, 300), Claim(MINUTE, 100, 10)]
    async with opened(server.url, "w1") as living, opened(server.url, "w2", timing=STILL) as dead:
        await grant(dead, "w2-1", claims)
        await grant(dead, "w2-2", claims)
        assert not (await living.reserve("w1-1", claims)).granted
        server.command("DEL", f"{PREFIX}lease:w2")
        await grant(living, "w1-2", claims)
        # What it had reserved stays charged: nobody knows what it has used.
        assert await numbers(living, SLOTS, MONTH, MINUTE) == [(0, 1), (600, 300), (20, 10)]


async def test_a_lease_ends_by_itself(server: RedisServer):
    short = replace(STILL, lease=0.05)
    async with opened(server.url, "w1", timing=short) as dead, opened(server.url, "w2") as living:
        await grant(dead, "w1-1", [Claim(SLOTS, 1, 1)])
        async with asyncio.timeout(20):
            while not (await living.reserve("w2-1", [Claim(SLOTS, 1, 1)])).granted:
                pass


async def test_a_heartbeat_renews_the_lease(server: RedisServer):
    async with opened(server.url, "w1", timing=replace(QUICK, lease=10.0)):
        server.command("PEXPIRE", f"{PREFIX}lease:w1", 5000)
        await eventually(lambda: server.command("PTTL", f"{PREFIX}lease:w1") > 5000, "the lease is renewed")


async def test_a_worker_that_was_frozen_takes_its_slots_again(server: RedisServer):
    claims = [Claim(SLOTS, 2, 1)]
    async with (
        opened(server.url, "w1", timing=STILL) as frozen,
        opened(server.url, "w2") as other,
    ):
        await grant(frozen, "w1-1", claims)
        await grant(frozen, "w1-2", claims)
        frozen.settle("w1-2", claims, [0])
        assert await frozen.drain(5)
        server.command("DEL", f"{PREFIX}lease:w1")
        assert await numbers(other, SLOTS) == [(0, 0)]
        assert await numbers(frozen, SLOTS) == [(0, 1)]  # whatever it asks, it says first what it holds
        assert await numbers(other, SLOTS) == [(0, 1)]
        frozen.settle("w1-1", claims, [0])
        assert await frozen.drain(5)
        assert await numbers(other, SLOTS) == [(0, 0)]


async def test_the_heartbeat_takes_slots_again_without_any_request(server: RedisServer):
    async with opened(server.url, "w1") as frozen, opened(server.url, "w2") as other:
        await grant(frozen, "w1-1", [Claim(SLOTS, 2, 1)])
        server.command("FLUSHALL")
        async with asyncio.timeout(20):
            while await numbers(other, SLOTS) != [(0, 1)]:
                pass


async def test_who_leaves_gives_back_its_slots(server: RedisServer):
    async with opened(server.url, "w1") as stays:
        async with opened(server.url, "w2") as leaves:
            await grant(leaves, "w2-1", [Claim(SLOTS, 1, 1)])
        await grant(stays, "w1-1", [Claim(SLOTS, 1, 1)])


async def test_peers_are_counted(server: RedisServer):
    async with opened(server.url, "w1") as one:
        assert one.peers() == 1
        async with opened(server.url, "w2"), opened(server.url, "w3"):
            await eventually(lambda: one.peers() == 3, "three workers")
        await eventually(lambda: one.peers() == 1, "one worker")


async def test_workers_that_were_not_heard_of_yet_are_believed_to_be_there(server: RedisServer):
    async with opened(server.url, "w1", workers=2) as one:
        assert one.peers() == 2
        async with opened(server.url, "w2"), opened(server.url, "w3"):
            await eventually(lambda: one.peers() == 3, "three workers")
        await eventually(lambda: one.peers() == 2, "one worker, and one that is expected")


async def test_slots_of_calls_that_were_let_in_without_it(server: RedisServer):
    slots, local = [Claim(SLOTS, 3, 1)], {"w1-a": [Claim(SLOTS, 3, 1)], "w1-b": [Claim(SLOTS, 3, 2)]}
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        await one.hold(local)
        await one.hold(local)
        assert await numbers(other, SLOTS) == [(0, 3)]
        assert not (await other.reserve("w2-1", slots)).granted
        for call, claims in local.items():
            one.settle(call, claims, [0])
        assert await one.drain(5)
        assert await numbers(other, SLOTS) == [(0, 0)]


async def test_a_slot_that_is_given_back_while_it_is_taken_stays_free(server: RedisServer):
    slots = [Claim(SLOTS, 3, 1)]
    async with opened(server.url, "w1") as one:
        await one.look(slots)
        for n in range(20):
            taking = asyncio.create_task(one.hold({f"w1-{n}": slots}))
            for _ in range(n):
                await asyncio.sleep(0)
            one.settle(f"w1-{n}", slots, [0])
            await taking
            one.settle(f"w1-{n}", slots, [0])
        assert await one.drain(5)
        assert await numbers(one, SLOTS) == [(0, 0)]


# what is not let in


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl"])
async def test_i6_a_redis_that_evicts_counters_is_refused(server: RedisServer, policy: str):
    server.command("CONFIG", "SET", "maxmemory-policy", policy)
    try:
        with pytest.raises(StoreUnfit, match=policy):
            async with opened(server.url):
                pass
    finally:
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")


async def test_nothing_in_redis_is_secret_or_lives_for_ever(server: RedisServer):
    keyed = Counter("red", Unit.REQUESTS, WINDOWS["minute"], key="abc123")
    async with opened(server.url) as store:
        await grant(store, "w1-1", [*ONE_OF_EACH, Claim(keyed, 5, 1)])
        names = server.command("KEYS", "*")
        assert len(names) > 5
        assert all(name.startswith("mistral-proxy:{quota}:") for name in names)
        assert [name for name in names if server.command("PTTL", name) < 0] == [f"{PREFIX}root"]


async def test_two_deployments_share_a_server(server: RedisServer):
    async with opened(server.url, "w1") as ours, opened(server.url, "w1", prefix="other:{quota}:") as theirs:
        await grant(ours, "w1-1", [Claim(SLOTS, 1, 1)])
        await grant(theirs, "w1-1", [Claim(SLOTS, 1, 1)])


async def test_nothing_is_left_running(server: RedisServer):
    before = asyncio.all_tasks()
    async with opened(server.url, history=Ledger()) as store:
        await grant(store, "w1-1", ONE_OF_EACH)
        assert asyncio.all_tasks() != before
    assert asyncio.all_tasks() == before


async def test_what_waits_is_settled_before_it_closes(server: RedisServer):
    async with opened(server.url) as store:
        await grant(store, "w1-1", ONE_OF_EACH)
        store.settle("w1-1", ONE_OF_EACH, [1, 2, 0])
    async with opened(server.url, "w2") as other:
        assert await numbers(other, MINUTE, MONTH) == [(1, 0), (2, 0)]


async def test_a_counter_that_has_missed_something_counts_what_the_ledger_knows(server: RedisServer):
    ledger, claim = Ledger(), Claim(Counter("red", Unit.TOKENS, WINDOWS["day"]), 1000, 30)
    async with opened(server.url, history=ledger) as store:
        assert (await store.reserve("w1-1", [claim])).granted
        for total, counted in ((10, 30), (30, 30), (130, 130), (50, 130)):  # never less than it has counted itself
            ledger.rows[claim.counter.name] = total
            assert await store.recount(claim.counter, missed=True)
            [(used, reserved)] = await numbers(store, claim.counter)
            assert (used + reserved, reserved) == (counted, 30)
        ledger.rows["blue|tokens|day"] = 9
        blue = Claim(Counter("blue", Unit.TOKENS, WINDOWS["day"]), 1000, 1)
        assert await store.recount(blue.counter, missed=True)  # which is not there yet
        assert await numbers(store, blue.counter) == [(9, 0)]
    async with opened(server.url, owner="w2") as store:
        assert not await store.recount(claim.counter, missed=True)


# the ledger is asked again while settlements are on their way


@pytest.mark.parametrize(
    ("meanwhile", "before", "after"),
    [
        (500, 720, 720),  # 100 of others, 120 that the call has used, and what was let in without the store
        (180, 400, 400),
        (50, 400, 270),
        (0, 400, 220),
    ],
)
async def test_a_call_that_ended_before_the_ledger_was_asked_takes_nothing_back_of_what_that_knew(
    server: RedisServer, meanwhile: int, before: int, after: int
):
    ledger, claims = Ledger(), [Claim(MONTH, 10_000, 300), Claim(SLOTS, 2, 1)]
    async with (
        Relay(server.port) as relay,
        opened(relay.url, "w1", timing=STILL) as late,
        opened(server.url, "w2", ledger) as other,
    ):
        await grant(other, "w2-1", claims)
        other.settle("w2-1", claims, [100, 0])
        assert await other.drain(5)
        await grant(late, "w1-1", claims)
        relay.refuse()
        late.settle("w1-1", claims, [120, 0])
        ledger.rows[MONTH.name] = 100 + 120 + meanwhile
        ended = late._clock.now()
        await eventually(lambda: late._clock.now() > ended + 5, "the clocks agree on what was first")
        assert await other.recount(MONTH, missed=True)
        assert await numbers(other, MONTH) == [(before - 300, 300)]
        relay.refuse(False)
        assert await late.drain(20)
        assert await numbers(other, MONTH, SLOTS) == [(after, 0), (0, 0)]
        await grant(late, "w1-2", claims)
        late.settle("w1-2", claims, [10, 0])  # which the ledger was not asked for
        assert await late.drain(20)
        assert await numbers(other, MONTH) == [(after + 10, 0)]


async def test_a_call_that_was_under_way_when_the_ledger_was_asked_gives_back_the_rest(server: RedisServer):
    ledger, claims = Ledger(), [Claim(MONTH, 10_000, 300)]
    async with opened(server.url, "w1", ledger) as store:
        await grant(store, "w1-1", claims)
        ledger.rows[MONTH.name] = 300 + 500
        assert await store.recount(MONTH, missed=True)
        assert await numbers(store, MONTH) == [(500, 300)]
        born = int(server.command("HGET", server.command("KEYS", f"{PREFIX}sum:*")[0], "b"))
        await eventually(lambda: store._clock.now() > born, "a millisecond has passed")
        store.settle("w1-1", claims, [120])
        assert await store.drain(5)
        assert await numbers(store, MONTH) == [(620, 0)]


async def test_what_nobody_has_heard_of_takes_nothing_back_of_what_the_ledger_knew(server: RedisServer):
    ledger, claims = Ledger(), [Claim(MONTH, 10_000, 300)]
    async with opened(server.url, "w1", ledger) as store:
        await grant(store, "w1-1", claims)
        ledger.rows[MONTH.name] = 500
        assert await store.recount(MONTH, missed=True)
        store._undo("w1-1", claims)
        assert await store.drain(5)
        assert await numbers(store, MONTH) == [(500, 0)]


async def test_what_waits_is_settled_before_the_ledger_is_asked_again(server: RedisServer):
    waiting = []

    class Watching(Ledger):
        async def used(self, counter: Counter, start: int, end: int) -> int:
            waiting.append(len(store._settlements))
            return await super().used(counter, start, end)

    async with opened(server.url, history=Watching()) as store:
        await grant(store, "w1-1", ONE_OF_EACH)
        store.settle("w1-1", ONE_OF_EACH, [1, 2, 0])
        assert await store.recount(MONTH, missed=True)
    assert waiting == [0, 0, 0]  # at its birth, before others are kept out, and then


async def test_a_recount_does_not_wait_for_settlements_for_ever(server: RedisServer):
    async with Relay(server.port) as relay, opened(relay.url, timing=replace(QUICK, before_recount=0.01)) as store:
        await grant(store, "w1-1", ONE_OF_EACH)
        relay.refuse()
        store.settle("w1-1", ONE_OF_EACH, [1, 2, 0])
        await store._settlements.passed(0.01)
        assert len(store._settlements) == 1


class Gated(Ledger):
    """Answers the last question when it is let to, with what it was told before."""

    def __init__(self, *before: int, last: int) -> None:
        super().__init__()
        self.before, self.last = list(before), last
        self.asking, self.answer = asyncio.Event(), asyncio.Event()

    async def used(self, counter: Counter, start: int, end: int) -> int:
        if self.before:
            return self.before.pop(0)
        found = self.last
        self.asking.set()
        await self.answer.wait()
        return found


async def test_nobody_is_let_in_while_the_ledger_says_what_a_counter_has_missed(server: RedisServer):
    """Who came in between would be lost: two have come without the store, the third while the ledger is asked."""
    ledger, daily = Gated(7, 7 + 1 + 2, last=7 + 1 + 2), Claim(Counter("red", Unit.REQUESTS, WINDOWS["day"]), 100, 1)
    async with opened(server.url, "w1", ledger) as one, opened(server.url, "w2", Ledger()) as other:
        await grant(one, "w1-1", [daily])
        recount = asyncio.create_task(one.recount(daily.counter, missed=True))
        await ledger.asking.wait()
        waiting = [asyncio.create_task(store.reserve(f"{n}", [daily])) for n, store in enumerate((one, other))]
        minute = Claim(MINUTE, 100, 1)
        await grant(other, "w2-1", [minute])  # of another counter
        assert not any(task.done() for task in waiting)
        ledger.answer.set()
        assert await recount
        assert all(verdict.granted for verdict in await asyncio.gather(*waiting))
        assert sum((await numbers(other, daily.counter))[0]) == 7 + 1 + 2 + 2


async def test_two_recounts_at_once_both_keep_others_out(server: RedisServer):
    """The one that ends first has not heard of what the other one's ledger knows."""
    first, second = Gated(0, 10, last=10), Gated(10, last=20)
    async with opened(server.url, "w1", first) as one, opened(server.url, "w2", second) as other:
        await grant(one, "w1-1", [Claim(MONTH, 1000, 1)])
        recounts = [asyncio.create_task(store.recount(MONTH, missed=True)) for store in (one, other)]
        await first.asking.wait()
        await second.asking.wait()
        first.answer.set()
        assert await recounts[0]
        late = asyncio.create_task(one.reserve("w1-2", [Claim(MONTH, 1000, 1)]))
        assert not (await asyncio.wait([late], timeout=0.1))[0]
        second.answer.set()
        assert await recounts[1]
        assert (await late).granted
        assert sum((await numbers(one, MONTH))[0]) == 21


async def test_a_counter_that_has_missed_nothing_keeps_nobody_waiting(server: RedisServer):
    ledger = Gated(5, last=6)
    async with opened(server.url, "w1", ledger) as one, opened(server.url, "w2", Ledger()) as other:
        await grant(one, "w1-1", [Claim(MONTH, 1000, 1)])
        recount = asyncio.create_task(one.recount(MONTH, missed=False))
        await ledger.asking.wait()
        await grant(other, "w2-1", [Claim(MONTH, 1000, 1)])
        ledger.answer.set()
        assert await recount
        assert sum((await numbers(other, MONTH))[0]) == 7


async def test_a_counter_that_is_found_to_have_missed_something_is_counted_once_more(server: RedisServer):
    ledger = Gated(5, 9, 9, last=10)
    async with opened(server.url, "w1", ledger) as one:
        await grant(one, "w1-1", [Claim(MONTH, 1000, 1)])
        recount = asyncio.create_task(one.recount(MONTH, missed=False))
        await ledger.asking.wait()
        late = asyncio.create_task(one.reserve("w1-2", [Claim(MONTH, 1000, 1)]))
        assert not (await asyncio.wait([late], timeout=0.1))[0]
        ledger.answer.set()
        assert await recount
        assert (await late).granted
        assert sum((await numbers(one, MONTH))[0]) == 11


@pytest.mark.parametrize("end", ["cancelled", "gone"])
async def test_a_recount_that_fails_lets_everybody_in_again(server: RedisServer, end: str):
    class Ending(Gated):
        async def used(self, counter: Counter, start: int, end_of_period: int) -> int:
            used = await super().used(counter, start, end_of_period)
            if self.answer.is_set():
                raise HistoryGone("LedgerGone")
            return used

    ledger = Ending(5, 9, last=9)
    async with opened(server.url, "w1", ledger) as one:
        await grant(one, "w1-1", [Claim(MONTH, 1000, 1)])
        recount = asyncio.create_task(one.recount(MONTH, missed=True))
        await ledger.asking.wait()
        if end == "cancelled":
            recount.cancel()
        ledger.answer.set()
        with pytest.raises(asyncio.CancelledError if end == "cancelled" else HistoryGone):
            await recount
        await grant(one, "w1-2", [Claim(MONTH, 1000, 1)])
        assert sum((await numbers(one, MONTH))[0]) == 7


async def test_a_hold_of_a_dead_worker_ends_by_itself_and_what_it_asked_for_counts_no_more(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("proxy.store.redis_births.HOLD_FOR", 30)
    ledger = Gated(5, 9, last=9)
    async with opened(server.url, "w1", ledger) as one, opened(server.url, "w2", Ledger()) as other:
        await grant(one, "w1-1", [Claim(MONTH, 1000, 1)])
        recount = asyncio.create_task(one.recount(MONTH, missed=True))
        await ledger.asking.wait()
        await grant(other, "w2-1", [Claim(MONTH, 1000, 1)])
        ledger.answer.set()
        with pytest.raises(HistoryGone):
            await recount
        assert sum((await numbers(other, MONTH))[0]) == 7


async def test_a_ledger_that_does_not_answer_keeps_nobody_out(server: RedisServer):
    ledger = Gated(5, last=9)
    async with opened(server.url, "w1", ledger) as one, opened(server.url, "w2", Ledger()) as other:
        await grant(one, "w1-1", [Claim(MONTH, 1000, 1)])
        recount = asyncio.create_task(one.recount(MONTH, missed=True))
        await ledger.asking.wait()
        await grant(other, "w2-1", [Claim(MONTH, 1000, 1)])
        recount.cancel()
        await asyncio.gather(recount, return_exceptions=True)


async def test_a_hold_on_a_counter_that_is_not_there_goes_with_its_period(server: RedisServer):
    ledger = Gated(9, last=9)
    async with opened(server.url, "w1", ledger) as one:
        recount = asyncio.create_task(one.recount(MONTH, missed=True))
        await ledger.asking.wait()
        [key] = server.command("KEYS", f"{PREFIX}sum:*")
        assert server.command("PTTL", key) > 0
        ledger.answer.set()
        assert await recount
        assert await numbers(one, MONTH) == [(9, 0)]


async def test_who_has_had_an_answer_does_not_find_the_slot_taken(server: RedisServer):
    """The slot comes back behind the answer, from another worker, too."""
    claim = Claim(Counter("red", Unit.CONCURRENCY, None), 1, 1)
    async with opened(server.url, owner="w1") as one, opened(server.url, owner="w2") as other:
        for n in range(50):
            asked, next_one = (one, other) if n % 2 else (other, one)
            assert (await asked.reserve(f"{n}", [claim])).granted
            asked.settle(f"{n}", [claim], [0])
            assert (await next_one.reserve(f"{n}-next", [claim])).granted
            next_one.settle(f"{n}-next", [claim], [0])


async def test_a_slot_that_is_in_use_is_refused(server: RedisServer):
    claim = Claim(Counter("red", Unit.CONCURRENCY, None), 1, 1)
    async with opened(server.url) as store:
        assert (await store.reserve("w1-1", [claim])).granted
        assert not (await store.reserve("w1-2", [claim])).granted
        assert not (await store.reserve("w1-3", [Claim(claim.counter, 0, 1)])).granted
