"""A Redis that is dead, frozen, slow, forgetful, or no Redis: nobody waits for long, and nothing is counted wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from proxy.core.quota import Claim, StoreGone, Verdict
from proxy.core.secret import Secret
from proxy.store.redis import PREFIX, RedisStore, Timing
from proxy.store.redis_link import CONNECTIONS, LEAVE
from tests.redis_server import PASSWORD, RedisServer, eventually
from tests.store.redis_parts import (
    HOUR,
    MINUTE,
    MONTH,
    QUICK,
    REQUESTS,
    SLOTS,
    STILL,
    Calls,
    Ledger,
    Log,
    Relay,
    grant,
    impatient,
    numbers,
    opened,
)

CLAIMS = [Claim(MINUTE, 100, 10), Claim(MONTH, 1000, 300), Claim(SLOTS, 2, 1)]
EMPTY = [(0, 0), (0, 0), (0, 0)]


async def gone(store: RedisStore, call: str = "w1-gone") -> str:
    """Which kind of trouble."""
    with pytest.raises(StoreGone) as caught:
        await store.reserve(call, CLAIMS)
    return str(caught.value)


async def eventually_gone(store: RedisStore, kind: str) -> None:
    """Gone for this reason, once no other hides it: a machine may be slow."""
    calls = Calls("w1-gone")
    async with asyncio.timeout(20):
        while await gone(store, calls.next()) != kind:
            pass


async def let_in(store: RedisStore, calls: Calls) -> str:
    """The call that is let in as soon as the store is back."""
    async with asyncio.timeout(20):
        while True:
            try:
                await grant(store, call := calls.next(), CLAIMS)
            except StoreGone:
                await asyncio.sleep(0)
            else:
                return call


async def answers(store: RedisStore) -> None:
    async with asyncio.timeout(20):
        while True:
            with suppress(StoreGone):
                return await store.ping()
            await asyncio.sleep(0)


async def counted(store: RedisStore, expected: list[tuple[int, int]]) -> None:
    assert await store.drain(20)
    assert await numbers(store, MINUTE, MONTH, SLOTS) == expected


# it is not there


async def test_i2_killed_and_back_again_empty(server: RedisServer):
    log, ledger = Log(), Ledger({MONTH.name: 0})
    async with opened(server.url, history=ledger, log=log) as store:
        await grant(store, "w1-1", CLAIMS)
        server.kill()
        for n in range(20):
            assert await gone(store, f"w1-gone-{n}") in ("ConnectionError", "IncompleteReadError")
        ledger.rows[MONTH.name] = 300  # the intent of the call that is under way
        server.restart()
        call = await let_in(store, Calls("w1-new"))
        await after_birth(store, server)
        store.settle("w1-1", CLAIMS, [10, 100, 0])
        store.settle(call, CLAIMS, [10, 100, 0])
        # The sliding counter began anew with the second call, the calendar's has both.
        await counted(store, [(10, 0), (200, 0), (0, 0)])
        assert {"redis_gone", "redis_back"} <= set(log.events())


async def test_i3_frozen(server: RedisServer):
    async with opened(server.url) as store:
        await grant(store, "w1-1", CLAIMS)
        server.freeze()
        with impatient(store):
            assert await gone(store) == "TimeoutError"
            kinds = await asyncio.gather(*(gone(store, f"w1-gone-{n}") for n in range(60)))
            assert set(kinds) == {"TimeoutError"}
            with pytest.raises(StoreGone):
                await store.ping()
        store.settle("w1-1", CLAIMS, [4, 250, 0])
        assert not await store.drain(0.01)
        server.cont()
        # What was asked of the frozen one may have been done when it woke up. Nothing of it stays.
        await counted(store, [(4, 0), (250, 0), (0, 0)])
        await store.ping()


async def test_slow(server: RedisServer):
    async with Relay(server.port) as relay, opened(relay.url) as store:
        await grant(store, "w1-1", CLAIMS)
        relay.delay = 3600.0
        with impatient(store):
            assert await gone(store) == "TimeoutError"
        relay.refuse()


async def test_no_request_waits_longer_than_half_a_second(server: RedisServer):
    """With the timing that is shipped; of several attempts one is not slow because the machine is."""
    async with opened(server.url, timing=Timing()) as store:
        server.freeze()
        waited = []
        for n in range(5):
            begun = asyncio.get_running_loop().time()
            await gone(store, f"w1-{n}")
            waited.append(asyncio.get_running_loop().time() - begun)
        assert min(waited) < 0.5
        server.cont()


async def test_a_crowd_before_a_slow_redis_does_not_wait_in_line(server: RedisServer):
    """Half a thousand at once: one after the other they would wait for seconds."""
    loop, waited = asyncio.get_running_loop(), []

    async def ask(store: RedisStore, call: str) -> None:
        begun = loop.time()
        with suppress(StoreGone):
            await store.reserve(call, CLAIMS)
        waited.append(loop.time() - begun)

    async with Relay(server.port) as relay, opened(relay.url, timing=Timing()) as store:
        await asyncio.gather(*(ask(store, f"w1-first-{n}") for n in range(CONNECTIONS)))
        waited.clear()
        relay.delay = 0.3
        await asyncio.gather(*(ask(store, f"w1-{n}") for n in range(500)))
        assert max(waited) < 2.0  # half a second, on a machine that has nothing else to do
        relay.delay = 0.0


async def test_a_crowd_before_a_redis_that_answers_is_served(server: RedisServer):
    """With the timing that is shipped; of several attempts one does not fail because the machine is busy."""
    claims, granted = [Claim(REQUESTS, 10_000, 1)], []
    async with opened(server.url, timing=Timing()) as store:
        for attempt in range(3):
            asked = (store.reserve(f"w1-{attempt}-{n}", claims) for n in range(500))
            verdicts = await asyncio.gather(*asked, return_exceptions=True)
            granted.append(sum(isinstance(verdict, Verdict) for verdict in verdicts))
    assert max(granted) == 500


async def test_who_stands_in_line_for_too_long_is_told_so(server: RedisServer):
    async with opened(server.url) as store:
        with all_places_taken(store):
            await asyncio.sleep(0)
            with impatient(store):
                with pytest.raises(StoreGone, match="Crowd"):
                    await store._link.run_script(LEAVE, ("nobody",))
        await eventually(lambda: not store._link._places.locked(), "there is a place")
        await grant(store, "w1-1", CLAIMS)


async def test_a_lease_and_a_settlement_do_not_stand_in_line(server: RedisServer):
    async with opened(server.url) as store:
        await grant(store, "w1-1", CLAIMS)
        with all_places_taken(store):
            await asyncio.sleep(0)
            store.settle("w1-1", CLAIMS, [4, 250, 0])
            assert await store.drain(20)
            await store.ping()
            server.command("PEXPIRE", f"{PREFIX}lease:w1", 5000)
            await eventually(lambda: server.command("PTTL", f"{PREFIX}lease:w1") > 5000, "the lease is renewed")


async def test_i4_a_little_slow_is_only_slow(server: RedisServer):
    async with Relay(server.port) as relay, opened(relay.url) as store:
        relay.delay = 0.02
        await grant(store, "w1-1", CLAIMS)
        store.settle("w1-1", CLAIMS, [1, 2, 0])
        await counted(store, [(1, 0), (2, 0), (0, 0)])


async def test_i1_not_there_at_start(server: RedisServer):
    server.kill()
    async with opened(server.url) as store:
        assert await gone(store) == "ConnectionError"
        assert store.peers() == 1
        server.restart()
        await let_in(store, Calls("w1"))


async def test_a_settlement_waits_until_the_store_is_back(server: RedisServer):
    async with Relay(server.port) as relay, opened(relay.url) as store:
        await grant(store, "w1-1", CLAIMS)
        with impatient(store):
            relay.drop = True
            store.settle("w1-1", CLAIMS, [4, 250, 0])
            await eventually(lambda: server.command("STRLEN", f"{PREFIX}call:w1-1") == 1, "it was applied")
            seen = relay.answers
            await eventually(lambda: relay.answers > seen + 3, "it was sent again")
            relay.drop = False
        await counted(store, [(4, 0), (250, 0), (0, 0)])


# the answer is lost


async def test_i5_a_reservation_whose_answer_was_lost_is_taken_back(server: RedisServer):
    async with Relay(server.port) as relay, opened(relay.url, timing=STILL) as store:
        await store.look(CLAIMS)
        with impatient(store):
            relay.drop = True
            assert await gone(store) == "TimeoutError"
            relay.drop = False
        await counted(store, EMPTY)


@pytest.mark.parametrize("steps", range(0, 30, 2))
async def test_a_cancelled_reservation_leaves_nothing(server: RedisServer, steps: int):
    async with opened(server.url) as store:
        await grant(store, "w1-first", CLAIMS)
        store.settle("w1-first", CLAIMS, [0, 0, 0])
        assert await store.drain(20)
        for n in range(5):
            task = asyncio.create_task(store.reserve(call := f"w1-{n}", CLAIMS))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            try:
                assert (await task).granted
                store.settle(call, CLAIMS, [0, 0, 0])
            except asyncio.CancelledError:
                pass
            await counted(store, EMPTY)
        verdicts = await asyncio.gather(*(store.reserve(f"w1-after-{n}", CLAIMS) for n in range(5)))
        assert sum(verdict.granted for verdict in verdicts) == 2


async def test_one_that_is_taken_back_before_it_arrives_is_never_granted(server: RedisServer):
    """Two connections may overtake each other."""
    async with opened(server.url, "w1") as store:
        await store.look(CLAIMS)
        store._undo("w1-late", CLAIMS)
        assert await store.drain(20)
        assert await gone(store, "w1-late") == "NoVerdict"
        await counted(store, EMPTY)


# it forgets


async def test_i8_flushed_counters_are_born_again_before_anybody_is_let_in(server: RedisServer):
    ledger = Ledger()
    async with opened(server.url, history=ledger) as store:
        await grant(store, "w1-1", CLAIMS)
        ledger.rows[MONTH.name] = 900
        server.command("FLUSHALL")
        verdict = await store.reserve("w1-2", CLAIMS)
        assert not verdict.granted
        assert verdict.standings[1].used == 900
        assert verdict.standings[2].reserved == 1  # the slot that is still held


async def test_a_call_that_ends_after_the_birth_gives_back_what_the_ledger_had_counted(server: RedisServer):
    ledger = Ledger()
    async with opened(server.url, history=ledger) as store:
        await grant(store, "w1-1", CLAIMS)
        server.command("FLUSHALL")
        ledger.rows[MONTH.name] = 300
        assert (await numbers(store, MONTH)) == [(300, 0)]
        await after_birth(store, server)
        store.settle("w1-1", CLAIMS, [1, 120, 0])
        assert await store.drain(20)
        assert (await numbers(store, MONTH)) == [(120, 0)]


async def test_a_call_that_ended_before_the_birth_is_in_the_ledger_as_it_ended(server: RedisServer):
    """Its settlement comes late, through an outage; giving back once more would let others overspend."""
    ledger = Ledger()
    async with Relay(server.port) as relay, opened(relay.url) as late, opened(server.url, "w2", ledger) as other:
        await grant(late, "w1-1", CLAIMS)
        relay.refuse()
        late.settle("w1-1", CLAIMS, [1, 120, 0])
        server.command("FLUSHALL")
        ledger.rows[MONTH.name] = 120
        assert (await numbers(other, MONTH)) == [(120, 0)]
        relay.refuse(False)
        assert await late.drain(20)
        assert (await numbers(other, MONTH)) == [(120, 0)]


async def test_i7_a_server_that_comes_back_with_old_numbers_is_not_believed(tmp_path: Any):
    """A restart from a snapshot, or a replica that was behind: another run of it."""
    server = RedisServer()
    try:
        ledger = Ledger()
        async with opened(server.url, history=ledger) as store:
            await grant(store, "w1-1", CLAIMS)
            server.command("SAVE")
            store.settle("w1-1", CLAIMS, [10, 300, 0])
            assert await store.drain(20)
            await grant(store, "w1-2", CLAIMS)
            ledger.rows[MONTH.name] = 600
            server.kill()
            server.restart()
            assert server.command("KEYS", f"{PREFIX}sum:*")  # it has the old ones
            call = await let_in(store, Calls("w1-new"))
            assert (await numbers(store, MONTH, SLOTS)) == [(600, 300), (0, 2)]
            store.settle(call, CLAIMS, [0, 0, 0])
            store.settle("w1-2", CLAIMS, [10, 300, 0])
            assert await store.drain(20)
            assert (await numbers(store, MONTH, SLOTS)) == [(600, 0), (0, 0)]
    finally:
        server.stop()


async def test_a_ledger_that_is_gone_lets_nobody_in(server: RedisServer):
    ledger = Ledger(gone=True)
    async with opened(server.url, history=ledger) as store:
        assert await gone(store) == "LedgerGone"
        ledger.gone = False
        await grant(store, "w1-2", CLAIMS)


async def test_a_ledger_that_is_slow_keeps_nobody_waiting(server: RedisServer):
    answered = asyncio.Event()

    class Slow(Ledger):
        async def used(self, *asked: Any) -> int:
            used = await super().used(*asked)
            await answered.wait()
            return used

    ledger = Slow({MONTH.name: 5})
    async with opened(server.url, history=ledger, timing=replace(QUICK, birth=0.2)) as store:
        await eventually_gone(store, "SlowLedger")
        await eventually_gone(store, "SlowLedger")
        assert len(ledger.asked) == 1
        answered.set()
        assert await let_in(store, Calls("w1"))
        async with opened(server.url, "w2") as other:
            assert await numbers(other, MONTH) == [(5, 300)]


async def test_i6_a_redis_that_begins_to_evict_is_complained_of_once(server: RedisServer):
    log = Log()
    async with Relay(server.port) as relay, opened(relay.url, log=log) as store:
        await store.ping()
        server.command("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
        try:
            for _ in range(3):
                relay.refuse()
                with pytest.raises(StoreGone):
                    await store.ping()
                relay.refuse(False)
                await answers(store)
        finally:
            server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    complaints = [line for line in log.lines if line[1] == "redis_evicts"]
    assert complaints == [("error", "redis_evicts", {"policy": "volatile-lru"})]


# it refuses


@asynccontextmanager
async def guarded() -> AsyncIterator[RedisServer]:
    server = RedisServer(requirepass=PASSWORD)
    try:
        yield server
    finally:
        server.stop()


async def test_i9_wrong_password():
    log = Log()
    async with guarded() as server:
        async with opened(server.url) as store:
            await grant(store, "w1-1", CLAIMS)
        for url in (server.url_for("wrong-" + PASSWORD), server.url_for()):
            async with opened(url, log=log) as store:
                assert await gone(store) in ("AuthenticationError", "ConnectionError")
    assert PASSWORD not in json.dumps(log.lines)
    assert str(server.port) not in json.dumps(log.lines)


async def test_i9_a_user_that_may_not_run_scripts():
    async with guarded() as server:
        server.command("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "+@all", "-evalsha")
        async with opened(server.url_for("pw", "narrow")) as store:
            assert await gone(store) == "NoPermissionError"
        server.command("ACL", "SETUSER", "other", "on", ">pw", "~elsewhere:*", "+@all")
        async with opened(server.url_for("pw", "other")) as store:
            assert await gone(store) in ("NoPermissionError", "ResponseError")


async def test_a_user_that_may_not_ask_for_info_is_good_enough():
    async with guarded() as server:
        server.command("ACL", "SETUSER", "quiet", "on", ">pw", "~*", "+@all", "-info", "-config")
        async with opened(server.url_for("pw", "quiet")) as store:
            await grant(store, "w1-1", CLAIMS)


async def test_i9_scripts_that_were_forgotten_are_taught_again(server: RedisServer):
    async with opened(server.url) as store:
        await grant(store, "w1-1", CLAIMS)
        server.command("SCRIPT", "FLUSH")
        await grant(store, "w1-2", CLAIMS)
        server.command("SCRIPT", "FLUSH")
        store.settle("w1-1", CLAIMS, [1, 2, 0])
        store.settle("w1-2", CLAIMS, [1, 2, 0])
        await counted(store, [(2, 0), (4, 0), (0, 0)])


async def test_i9_a_replica_and_back(server: RedisServer):
    async with opened(server.url) as store:
        await grant(store, "w1-1", CLAIMS)
        server.command("REPLICAOF", "127.0.0.1", "1")
        try:
            assert await gone(store) in ("ResponseError", "ReadOnlyError", "MasterDownError")
        finally:
            server.command("REPLICAOF", "NO", "ONE")
        store.settle("w1-1", CLAIMS, [1, 2, 0])
        await counted(store, [(1, 0), (2, 0), (0, 0)])


async def test_i6_full(server: RedisServer):
    async with opened(server.url) as store:
        await grant(store, "w1-1", CLAIMS)
        server.command("CONFIG", "SET", "maxmemory", "1")
        try:
            assert await gone(store) in ("ResponseError", "OutOfMemoryError")
        finally:
            server.command("CONFIG", "SET", "maxmemory", "0")
        await grant(store, "w1-2", CLAIMS)
        await counted(store, [(0, 20), (0, 600), (0, 2)])


ANSWERS = {
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "moved": b"-MOVED 3999 127.0.0.1:6381\r\n",
    "noscript for ever": b"-NOSCRIPT No matching script. Please use EVAL.\r\n",
    "busy": b"-BUSY Redis is busy running a script.\r\n",
    "another type": b":7\r\n",
    "nothing": b"$-1\r\n",
    "no msgpack": b"$3\r\n\xc1\xc1\xc1\r\n",
    "no numbers": b"$2\r\n\x91\xc0\r\n",
    "empty": b"$1\r\n\x90\r\n",
    "a time out of this world": b"$12\r\n\x94\x00\xcf\xff\xff\xff\xff\xff\xff\xff\xff\x01\r\n",
    "no length": b"$x\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "deep": b"*1\r\n" * 5000,
    "closed": b"",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_no_redis_of_ours(answer: bytes):
    """Each command is answered so. A store that starts does not fail, one that is asked is gone."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while answer and await reader.read(65536):
                writer.write(answer * 4)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        url = Secret(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0")
        async with opened(url, timing=Timing(beat=HOUR, retry=HOUR)) as store:
            assert await gone(store)


# the queue


async def test_a_queue_that_is_full_keeps_what_would_not_come_back_by_itself(server: RedisServer):
    log, short = Log(), [Claim(MINUTE, 100, 1)]
    async with Relay(server.port) as relay, opened(relay.url, log=log) as store:
        store._settlements._most = 3
        await grant(store, "w1-1", CLAIMS)
        for n in range(5):
            await grant(store, f"w1-minute-{n}", short)
        relay.refuse()
        for n in range(3):
            store.settle(f"w1-minute-{n}", short, [0])
        store.settle("w1-1", CLAIMS, [0, 0, 0])
        for n in range(3, 5):
            store.settle(f"w1-minute-{n}", short, [0])
        relay.refuse(False)
        await counted(store, [(0, 3), (0, 0), (0, 0)])
    assert ("error", "settlement_lost", {"kind": "QueueFull", "count": 3}) in log.lines


async def test_a_settlement_that_cannot_be_applied_does_not_stop_the_others(server: RedisServer):
    log = Log()
    async with opened(server.url, log=log) as store:
        await grant(store, "w1-1", CLAIMS)
        await grant(store, "w1-2", CLAIMS)
        server.command("DEL", f"{PREFIX}call:w1-1")
        server.command("LPUSH", f"{PREFIX}call:w1-1", "junk")
        store.settle("w1-1", CLAIMS, [0, 0, 0])
        store.settle("w1-2", CLAIMS, [0, 0, 0])
        await counted(store, [(0, 10), (0, 300), (0, 0)])
        assert "settlement_lost" in log.events()


async def test_the_end_does_not_wait_for_a_dead_store(server: RedisServer):
    log = Log()
    async with opened(server.url, log=log) as store:
        await grant(store, "w1-1", CLAIMS)
        server.kill()
        store.settle("w1-1", CLAIMS, [0, 0, 0])
    assert ("error", "settlement_lost", {"kind": "StoreGone", "count": 1}) in log.lines


@contextmanager
def all_places_taken(store: RedisStore) -> Iterator[None]:
    """By requests that are never answered."""

    async def wait(_: object) -> None:
        await asyncio.Event().wait()

    tasks = [asyncio.create_task(store._link.use(wait)) for _ in range(CONNECTIONS)]
    yield
    for task in tasks:
        task.cancel()


async def after_birth(store: RedisStore, server: RedisServer) -> None:
    """In the millisecond of a birth nobody knows what was first."""
    born = max(int(server.command("HGET", name, "b")) for name in server.command("KEYS", f"{PREFIX}sum:*"))
    await eventually(lambda: store._clock.now() > born, "a millisecond has passed")
