"""One call for all workers: who follows gets what the leader gets, and learns soon when there is no leader any more."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.cache import CacheGone, Found, Role
from proxy.core.entry import Entry
from proxy.core.errors import (
    KEY_REFUSED,
    BadRequest,
    CircuitOpen,
    Draining,
    Overloaded,
    ProviderBusy,
    ProxyError,
    UpstreamFailed,
    UpstreamRefusal,
    UpstreamTimeout,
)
from proxy.core.flight import Flight, Lost
from proxy.store.cache.redis import PREFIX, RedisCache
from proxy.store.cache.redis_leads import PIECE
from proxy.store.cache.redis_talk import End, Join, Leave, Piece, Talk
from proxy.upstream.client import failure
from proxy.upstream.config import Timeouts
from proxy.upstream.transport import TransportError
from tests.redis_server import RedisServer, eventually
from tests.store.cache_redis_parts import (
    BOUNDS,
    IMPATIENT,
    KEY,
    PATIENT,
    SECRET,
    Books,
    Worker,
    die,
    entry_of,
    flight_of,
    followed,
    keep,
    key_of,
    led,
    opened,
    stream,
    wall,
)

ENTRY = entry_of(b'{"answer": 42}')
NO_CONNECTION = failure(TransportError("pool", "full"), Timeouts(), sent=False)
PIECES = [b"data: %d\n\n" % number for number in range(20)]
WHOLE = b"".join(PIECES)


@pytest.fixture
def books(server: RedisServer) -> Books:
    return Books(server)


async def all_of(flight: Flight) -> bytes:
    with flight.follow():
        await flight.begun()
        if flight.done and flight.entry:
            return flight.entry.body
        return b"".join([piece async for piece in flight.pieces()])


async def land(cache: RedisCache, flight: Flight, entry: Entry, key: str = KEY) -> None:
    flight.finish(entry, 33)
    await keep(cache, key, entry, flight)


# It goes well.


@pytest.mark.parametrize("kind", ["whole", "stream"])
async def test_200_at_once_over_two_workers_are_one_call(server: RedisServer, kind: str) -> None:
    calls = 0

    async def call(flight: Flight) -> Entry:
        nonlocal calls
        calls += 1
        if kind == "stream":
            return await stream(flight, PIECES)
        await asyncio.sleep(0.03)
        return entry_of(WHOLE)

    async def client(worker: Worker) -> bytes:
        await asyncio.sleep(random.random() * 0.08)  # before, during and after
        return await worker.ask(KEY, call)

    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        workers = [Worker(one), Worker(other)]
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(client(workers[number % 2]) for number in range(200)))
        assert set(answers) == {WHOLE}
        assert calls == 1
        assert not one._leads._of
        assert not other._follows._follows


async def test_many_keys_over_many_workers(server: RedisServer) -> None:
    """Streams and whole answers, each asked for at random moments by all."""
    calls: dict[str, int] = {}

    async def client(worker: Worker, number: int) -> None:
        key = key_of(number)

        async def call(flight: Flight) -> Entry:
            calls[key] = calls.get(key, 0) + 1
            if number % 2:
                return await stream(flight, [b"%d/%d;" % (number, piece) for piece in range(number)], 0.001)
            await asyncio.sleep(0.001 * number)
            return entry_of(b"%d" % number)

        await asyncio.sleep(random.random() * 0.1)
        expected = b"".join(b"%d/%d;" % (number, piece) for piece in range(number)) if number % 2 else b"%d" % number
        assert await worker.ask(key, call) == expected

    async with AsyncExitStack() as stack:
        caches = [await stack.enter_async_context(opened(server.url, f"w{n}")) for n in range(4)]
        workers = [Worker(cache) for cache in caches]
        async with asyncio.timeout(30):
            await asyncio.gather(*(client(worker, number) for worker in workers * 3 for number in range(1, 40)))
    assert calls == {key_of(number): 1 for number in range(1, 40)}


async def test_a_follower_gets_each_piece_as_it_comes(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead = await led(one)
        lead.streamed = True
        lead.add(b"one,")
        lead.add(b"two,")
        flight = await followed(other)
        with flight.follow():
            await flight.begun()
            assert b"".join(flight.parts) == b"one,two,"
            lead.add(b"three")
            await eventually(lambda: flight.size == lead.size, "the third has come")
            assert not flight.over
            await land(one, lead, entry_of(b"one,two,three", stream=True))
            await eventually(lambda: flight.over, "it has ended")
        assert (flight.done, flight.saved, flight.streamed) == (True, 33, True)
        assert b"".join(flight.parts) == b"one,two,three"


async def test_who_follows_is_told_the_end_when_the_entry_is_there(server: RedisServer, books: Books) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead = await led(one)
        flight = await followed(other)
        entry = entry_of(b"{}")
        there: list[Any] = []
        loop = asyncio.get_running_loop()
        flight.at_end(lambda: loop.call_soon(lambda: there.append((books.keys, books.lease(KEY)))))
        with flight.follow():
            await eventually(lambda: lead.followers, "it is followed")
            lead.finish(entry, 33)
            await asyncio.sleep(0.05)
            assert not flight.over
            await keep(one, KEY, entry, lead)
            await eventually(lambda: there, "it has ended")
        assert there == [({KEY}, None)]
        assert flight.entry == entry


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, 3 * PIECE + 7])
@pytest.mark.parametrize("streams", [False, True])
async def test_however_large(server: RedisServer, size: int, streams: bool) -> None:
    body = random.randbytes(size)
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        lead.streamed = streams
        got = asyncio.create_task(all_of(flight))
        await eventually(lambda: lead.followers, "it is followed")
        if streams and body:
            lead.add(body)
        await land(one, lead, entry_of(body, stream=streams))
        assert await got == body


@pytest.mark.parametrize("streams", [False, True])
async def test_what_is_not_kept_is_for_those_who_wait_all_the_same(
    server: RedisServer, books: Books, streams: bool
) -> None:
    """One that is too large, and one that the stage does not want kept."""
    async with opened(server.url, "w1", replace(BOUNDS, most_entry=100)) as one, opened(server.url, "w2") as other:
        for kept in (True, False):
            lead, flight = await led(one), await followed(other)
            lead.streamed = streams
            if streams:
                lead.add(b"x" * 500)
            got = asyncio.create_task(all_of(flight))
            await eventually(lambda: lead.followers, "it is followed")  # noqa: B023
            entry = entry_of(b"x" * 500, stream=streams)
            lead.finish(entry, 33)
            if kept:
                await keep(one, KEY, entry, lead)
            else:
                one.drop(KEY, lead)
            assert await got == b"x" * 500
            assert flight.saved == 33
            assert not books.keys
            assert books.lease(KEY) is None


async def test_what_is_stale_comes_to_who_follows(server: RedisServer) -> None:
    entry = entry_of(b"old")
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        await keep(one, KEY, entry, flight_of())
        assert await one.look(KEY, entry.created + 1, flight_of()) == Found(Role.LEAD, entry)
        assert await other.look(KEY, entry.created + 1, flight_of()) == Found(Role.FOLLOW, entry)


# It does not.


OF_ANOTHER = (b"x-upstream-request-id", b"of another")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UpstreamFailed("about a prompt"), (502, "upstream_error")),
        (ProviderBusy(3.0), (429, "rate_limit_exceeded")),
        (UpstreamFailed("about a key", code=KEY_REFUSED), (502, KEY_REFUSED)),
        (NO_CONNECTION, (503, "overloaded")),
        (BadRequest("about a prompt"), None),
        (CircuitOpen("of this worker alone", wait=1), None),
        (UpstreamTimeout("its time", detail={"timeout": "total"}), (504, "upstream_timeout")),
        (UpstreamTimeout("silence", detail={"timeout": "first_byte"}), (504, "upstream_timeout")),
        (
            UpstreamFailed("about a prompt", headers=[OF_ANOTHER]),
            (502, "upstream_error"),
        ),
    ],
)
async def test_what_the_provider_has_done_is_told_to_all(
    server: RedisServer, error: ProxyError, said: tuple[int, str] | None
) -> None:
    """So that not everybody has to find out. What is the request's own fault, or about its text, is not."""
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        with flight.follow():
            await eventually(lambda: lead.followers, "it is followed")
            lead.payer = "who pays"
            lead.fail(error)
            one.drop(KEY, lead)
            await eventually(lambda: flight.lost, "it is lost")
        assert flight.lost
        heard = flight.lost.error
        assert flight.payer == ("who pays" if error.is_the_accounts else None)
        assert (heard and (heard.status, heard.code)) == said
        if heard:
            assert heard.is_the_providers
            assert (heard.is_the_accounts, heard.fault) == (error.is_the_accounts, error.fault)
            assert "prompt" not in heard.message
            assert heard.type == error.type
            assert type(heard) is (Overloaded if error is NO_CONNECTION else UpstreamRefusal)
            assert heard.is_the_times == error.is_the_times
            assert heard.headers == [one for one in error.headers if one != OF_ANOTHER]


async def test_whose_pieces_end_with_the_end_of_another_proxy_is_told_so(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        with flight.follow():
            await eventually(lambda: lead.followers, "it is followed")
            lead.streamed = True
            lead.add(b"an error")
            lead.fail(Draining("The end"), told=True)
            one.drop(KEY, lead)
            await eventually(lambda: flight.lost, "it is lost")
        assert flight.lost
        assert (type(flight.lost.error), flight.lost.told) == (Draining, True)


async def test_whom_another_workers_quota_has_refused_nobody_counts_as_a_call(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        with flight.follow():
            await eventually(lambda: lead.followers, "it is followed")
            lead.fail(None, unasked=True)
            one.drop(KEY, lead)
            await eventually(lambda: flight.lost, "it is lost")
        assert flight.lost
        assert flight.lost.unasked


@pytest.mark.parametrize("told", [False, True])
async def test_a_leader_that_gives_up_lets_the_next_one_lead(server: RedisServer, books: Books, told: bool) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        with flight.follow():
            await eventually(lambda: lead.followers, "it is followed")
            if told:
                lead.streamed = True
                lead.add(b"an error")
                await flight.begun()
            lead.fail(None, told=told)
            one.drop(KEY, lead)
            await eventually(lambda: flight.lost, "it is lost")
        assert flight.lost
        assert (flight.lost.error, flight.lost.told) == (None, told)
        await led(other)
        assert (books.lease(KEY) or "").endswith(":w2")


async def test_calls_that_fail_are_made_one_after_the_other(server: RedisServer) -> None:
    """Never two at a time, until one goes well for all."""
    under_way = most = calls = 0

    async def call(flight: Flight) -> Entry:
        nonlocal under_way, most, calls
        calls += 1
        under_way += 1
        most = max(most, under_way)
        try:
            await asyncio.sleep(0.005)
            if calls < 6:
                raise OSError
            return entry_of(WHOLE)
        finally:
            under_way -= 1

    async def client(worker: Worker) -> bytes | None:
        try:
            return await worker.ask(KEY, call)
        except OSError:
            return None

    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        workers = [Worker(one), Worker(other)]
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(client(workers[number % 2]) for number in range(40)))
    assert (calls, most) == (6, 1)
    assert answers.count(None) == 5
    assert answers.count(WHOLE) == 35


async def test_who_comes_while_a_lease_is_given_back_gets_it(server: RedisServer, books: Books) -> None:
    """Else nobody could follow it."""
    async with opened(server.url, "w1") as cache:
        lead, flight, given = await led(cache), flight_of(), asyncio.Event()
        order = cache._lines.order

        async def slowly(*words: Any) -> Any:
            await given.wait()
            return await order(*words)

        cache._lines.order = slowly  # type: ignore[assignment, method-assign]
        lead.fail(None)
        cache.drop(KEY, lead)
        again = asyncio.create_task(cache.look(KEY, 0, flight))
        await eventually(lambda: len(cache._leads._leads) == 2, "it looks")
        given.set()
        assert (await again).role is Role.LEAD
        assert (books.lease(KEY) or "").startswith(next(iter(cache._leads._leads)))


async def test_who_waits_for_a_worker_that_dies_starts_over(server: RedisServer, books: Books) -> None:
    async with opened(server.url, "w2") as other:
        async with opened(server.url, "w1") as one:
            await led(one)
            flight = await followed(other)
            with flight.follow():
                await eventually(lambda: one._leads._telling, "it is heard")
                await die(one)
                await eventually(lambda: flight.lost, "it is lost")
        await led(other)
        assert (books.lease(KEY) or "").endswith(":w2")


async def test_who_has_begun_to_get_something_of_a_worker_that_dies_ends_within_the_lease(server: RedisServer) -> None:
    async with opened(server.url, "w2") as other:
        async with opened(server.url, "w1", timing=replace(PATIENT, lease=0.3)) as one:
            lead = await led(one)
            flight = await followed(other)
            with flight.follow():
                lead.streamed = True
                lead.add(b"a part")
                await flight.begun()
                await die(one)
                await eventually(lambda: flight.lost, "it is lost")
                assert flight.parts == [b"a part"]


async def test_a_worker_that_stands_still_loses_its_lease(server: RedisServer) -> None:
    """It is there, and connected, and does nothing any more."""
    stopped = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await stopped.wait()

    async with opened(server.url, "w1", timing=replace(PATIENT, lease=0.3), sleep=sleep) as one:
        async with opened(server.url, "w2") as other:
            await led(one)
            one._lines.quiet = True
            flight = await followed(other)
            with flight.follow():
                await eventually(lambda: flight.lost, "it is lost")
            await led(other)


async def test_a_lease_lasts_as_long_as_the_call(server: RedisServer, books: Books) -> None:
    async with opened(server.url, "w1", timing=replace(PATIENT, lease=0.3, beat=0.02)) as one:
        lead = await led(one)
        first = books.lease(KEY)
        await asyncio.sleep(0.5)
        assert books.lease(KEY) == first
        server.command("DEL", f"{PREFIX}=lease/{KEY}")
        await eventually(lambda: books.lease(KEY) == first, "it is taken anew")
        one.drop(KEY, lead)
        await eventually(lambda: books.lease(KEY) is None, "it is given back")
        await asyncio.sleep(0.1)
        assert books.lease(KEY) is None


async def test_a_lease_that_has_just_been_given_back_is_asked_for_again(server: RedisServer, books: Books) -> None:
    """What was found before that may be heard after it. Without a lease nobody could follow."""
    async with opened(server.url, "w1") as one:
        lead = await led(one)
        before = books.lease(KEY)
        one.drop(KEY, lead)
        await eventually(lambda: not one._leads._leads, "it is given back")
        question, late = one._lines.question, [[None, (before or "").encode(), wall()]]

        async def as_it_was(*words: Any) -> Any:
            return late.pop() if late else await question(*words)

        one._lines.question = as_it_was  # type: ignore[assignment]
        await led(one)
        assert (books.lease(KEY) or before) != before


async def test_who_follows_another_worker_has_asked_once(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        await led(one)
        question, asked = other._lines.question, list[Any]()

        async def counted(*words: Any) -> Any:
            asked.extend(word for word in words if word == KEY.encode())
            return await question(*words)

        other._lines.question = counted  # type: ignore[assignment]
        await followed(other)
        assert len(asked) == 1


async def test_a_lease_that_another_one_has_by_now_is_left_alone(server: RedisServer, books: Books) -> None:
    async with opened(server.url, "w1") as one:
        lead = await led(one)
        server.command("SET", f"{PREFIX}=lease/{KEY}", "other:w9")
        await asyncio.sleep(0.1)
        await land(one, lead, entry_of(b"{}"))
        assert books.lease(KEY) == "other:w9"
        assert books.keys == {KEY}


async def test_a_flight_that_its_leader_has_forgotten_is_looked_for_again(server: RedisServer, books: Books) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead = await led(one)
        one._leads.forget(lead=next(iter(one._leads._leads.values())))
        assert not one._leads.of(lead)
        flight = await followed(other)
        await eventually(lambda: flight.lost, "it is lost")
        assert books.lease(KEY) is None
        await led(other)


async def test_a_stream_whose_end_was_not_heard_goes_on_from_what_was_kept(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        got = asyncio.create_task(all_of(flight))
        lead.streamed = True
        lead.add(b"one,")
        await eventually(lambda: flight.size, "it has begun")
        other._lines.quiet = True
        lead.add(b"two")
        await land(one, lead, entry_of(b"one,two", stream=True))
        await eventually(lambda: not one._leads._telling, "it was said")
        other._lines.quiet = False
        assert await got == b"one,two"
        assert flight.saved == 33


@pytest.mark.parametrize("kind", ["stream", "whole", "lost"])
async def test_who_did_not_hear_the_end_is_told_again(server: RedisServer, kind: str) -> None:
    """Though nothing was kept: a Redis that was away took no entry either."""
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        say, lost = one._lines.say, list[Any]()

        async def in_vain(owner: str, message: Any) -> int:
            if isinstance(message, End) and not lost:
                lost.append(message)
                raise CacheGone("Closed")
            return await say(owner, message)

        one._leads._say = in_vain
        with flight.follow():
            await eventually(lambda: lead.followers, "it is followed")
            if kind == "stream":
                lead.streamed = True
                lead.add(WHOLE)
            if kind == "lost":
                lead.fail(UpstreamFailed("x"))
            else:
                lead.finish(ENTRY if kind == "whole" else None, 33)
            one.drop(KEY, lead)
            await eventually(lambda: flight.over, "it has ended")
        assert len(lost) == 1
        if kind == "lost":
            assert flight.lost
            assert isinstance(flight.lost.error, UpstreamRefusal)
            return
        assert (flight.done, flight.saved) == (True, 33)
        assert (flight.entry == ENTRY) if kind == "whole" else (b"".join(flight.parts) == WHOLE)


async def test_the_end_of_an_answer_of_which_nothing_has_come_is_a_gap(server: RedisServer) -> None:
    """It was said to one who had just been cut off, and counts as heard."""
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        say, lost = one._lines.say, list[Any]()

        async def to_nobody(owner: str, message: Any) -> int:
            if isinstance(message, Piece) and not lost:
                lost.append(message)
                return 1
            return await say(owner, message)

        one._leads._say = to_nobody
        got = asyncio.create_task(all_of(flight))
        await eventually(lambda: lead.followers, "it is followed")
        await land(one, lead, ENTRY)
        assert await got == ENTRY.body
        assert (len(lost), flight.streamed, flight.entry) == (1, False, ENTRY)


async def test_who_has_heard_of_nothing_for_long_is_not_lost_at_the_first_trouble(server: RedisServer) -> None:
    """As long as the leader hears it, silence is the provider's: it thinks."""
    timing = replace(PATIENT, patience=0.5)
    async with opened(server.url, "w1", timing=timing) as one, opened(server.url, "w2", timing=timing) as other:
        lead, flight = await led(one), await followed(other)
        say, joins, in_vain = other._lines.say, list[float](), list[Any]()

        async def says(owner: str, message: Any) -> int:
            if isinstance(message, Join):
                joins.append(time.monotonic())
                if joins[-1] > joins[0] + 3 * timing.patience and not in_vain:
                    in_vain.append(message)
                    raise CacheGone("Closed")
            return await say(owner, message)

        other._follows._asking = replace(other._follows._asking, say=says)
        got = asyncio.create_task(all_of(flight))
        lead.streamed = True
        lead.add(b"one,")
        await eventually(lambda: flight.size, "it has begun")
        await eventually(lambda: in_vain, "it was said in vain")
        asked = len(joins)
        await eventually(lambda: flight.over or len(joins) > asked, "it is asked again")
        lead.add(b"two")
        await land(one, lead, entry_of(b"one,two", stream=True))
        assert await got == b"one,two"


async def unheard(other: RedisCache, happens: Callable[[], object]) -> None:
    """What is said of this is lost on its way there."""
    heard, lost = other._lines.ear._heard, list[bytes]()
    other._lines.ear._heard = lambda channel, data: lost.append(data)
    happens()
    await eventually(lambda: lost, "it was said")
    other._lines.ear._heard = heard


async def test_an_error_that_was_not_heard_is_asked_for_again(server: RedisServer) -> None:
    """It is in the pieces. Who hears of the end alone must not take what it has for all of it."""
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        with flight.follow():
            lead.streamed = True
            lead.add(b"one,")
            await eventually(lambda: flight.size, "it has begun")
            await unheard(other, lambda: lead.add(b"an error"))
            lead.fail(UpstreamFailed("cut"), told=True)
            one.drop(KEY, lead)
            await eventually(lambda: flight.over, "it is lost")
        assert flight.lost
        assert (b"".join(flight.parts), flight.lost.told) == (b"one,an error", True)


@pytest.mark.parametrize("told", [False, True])
async def test_who_has_missed_what_is_kept_no_more_is_told_of_no_end(server: RedisServer, told: bool) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead = flight_of(10)
        assert (await one.look(KEY, 0, lead)).role is Role.LEAD
        lead.begins()
        flight = await followed(other)
        with flight.follow():
            lead.streamed = True
            lead.add(b"0123456789")
            await eventually(lambda: flight.size, "it has begun")
            await unheard(other, lambda: list(map(lead.add, [b"0123456789"] * 4)))
            lead.fail(UpstreamFailed("cut"), told=told)
            one.drop(KEY, lead)
            await eventually(lambda: flight.over, "it is lost")
        assert flight.lost
        assert not flight.lost.told


async def test_who_has_all_that_came_may_ask_again_however_little_is_kept(server: RedisServer) -> None:
    """A provider that pauses: nothing is missing, and nobody is to be cut off."""
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = flight_of(10), flight_of()
        assert (await one.look(KEY, 0, lead)).role is Role.LEAD
        lead.begins()
        assert (await other.look(KEY, 0, flight)).role is Role.FOLLOW
        flight.begins()
        got = asyncio.create_task(all_of(flight))
        lead.streamed = True
        for number in range(5):
            lead.add(b"part %d, " % number)
            await eventually(lambda: flight.size == lead.size, "it has all of it")
        joined, asked = one._leads.joined, list[Join]()

        def joins(join: Join) -> None:
            asked.append(join)
            joined(join)

        one._leads.joined = joins  # type: ignore[method-assign]
        await eventually(lambda: len(asked) > 2, "it has asked again")
        lead.add(b"the end")
        lead.finish(None, 0)
        one.drop(KEY, lead)
        assert await got == b"".join(b"part %d, " % number for number in range(5)) + b"the end"


async def test_what_is_remembered_is_what_has_come_and_not_what_was_asked(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        lead.asked = {"messages": "long"}
        got = asyncio.create_task(all_of(flight))
        await eventually(lambda: lead.followers, "it is followed")
        await land(one, lead, ENTRY)
        assert await got == ENTRY.body
        [remembered] = one._leads._leads.values()
        assert (remembered.flight.asked, remembered.flight.entry) == (None, ENTRY)


async def test_what_has_ended_is_known_for_a_while_to_those_alone_who_followed_it(server: RedisServer) -> None:
    timing = replace(PATIENT, patience=0.3)
    async with opened(server.url, "w1", timing=timing) as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        got = asyncio.create_task(all_of(flight))
        await eventually(lambda: lead.followers, "it is followed")
        lease = other._follows._of[flight].lease
        await land(one, lead, ENTRY)
        assert await got == ENTRY.body
        assert one._leads._leads
        late = flight_of()
        other._follows.begin(KEY, lease, late)
        await eventually(lambda: late.lost, "it is unknown to one that comes now")
        await eventually(lambda: not one._leads._leads, "it is forgotten")


async def test_who_follows_no_more_says_so_when_it_is_told_more(server: RedisServer) -> None:
    """Nobody has heard it leave, and its worker goes on to listen: the call would be made for nobody to its end."""
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        await eventually(lambda: lead.followers, "it is followed")
        other._follows._end(other._follows._of[flight])
        assert lead.followers
        lead.streamed = True
        lead.add(b"a piece")
        await eventually(lambda: not lead.followers, "it is left")


async def test_an_error_that_is_on_its_way_is_waited_for(server: RedisServer) -> None:
    """The lease is back before the end is told. Who looks in between must not take that for a leader that is gone."""
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        say, looked = one._lines.say, asyncio.Event()
        holds = other._follows._asking.holds

        async def slowly(owner: str, message: Any) -> int:
            if isinstance(message, End):
                await looked.wait()
            return await say(owner, message)

        async def looks(key: str, lease: str) -> bool:
            found = await holds(key, lease)
            if not found:
                asyncio.get_running_loop().call_later(0.01, looked.set)
            return found

        one._leads._say = slowly
        other._follows._asking = replace(other._follows._asking, holds=looks)
        with flight.follow():
            await eventually(lambda: lead.followers, "it is followed")
            lead.fail(UpstreamFailed("x"))
            one.drop(KEY, lead)
            await eventually(lambda: flight.over, "it has ended")
        assert flight.lost
        assert isinstance(flight.lost.error, UpstreamRefusal)


async def test_a_gap_is_asked_for_again(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        lead.streamed = True
        with flight.follow():
            for number in range(30):
                if number % 3 == 1:
                    other._lines.quiet = True
                lead.add(b"%d," % number)
                await asyncio.sleep(0.003)
                other._lines.quiet = False
            expected = b"".join(b"%d," % number for number in range(30))
            await eventually(lambda: flight.size == len(expected), "all of it is here")
            await land(one, lead, entry_of(expected, stream=True))
            await eventually(lambda: flight.over, "it has ended")
        assert b"".join(flight.parts) == expected
        assert flight.done


async def test_what_is_over_and_not_here_any_more_is_called_again(server: RedisServer) -> None:
    """A first piece that is too large is kept for nobody; its leader may take a while to end the call."""
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead = flight_of(10)
        assert (await one.look(KEY, 0, lead)).role is Role.LEAD
        lead.streamed = lead.called = True
        lead.add(b"more than is kept")
        lead.finish(None, 0)
        flight = await followed(other)
        await eventually(lambda: flight.over, "it is told so")
        assert flight.lost
        await led(other)


async def test_one_that_nobody_can_join_any_more_is_called_again(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead = await led(one)
        lead.blocked = True
        flight = await followed(other)
        await eventually(lambda: flight.lost, "it cannot be followed")
        again = await led(other)
        await land(other, again, entry_of(b"of the other"))
        await land(one, lead, entry_of(b"of the one"))
        found = await other.look(KEY, 0, flight_of())
        assert found.entry
        assert found.entry.body == b"of the one"


# Clients come and go.


async def test_the_call_goes_on_for_another_worker_when_its_client_leaves(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead, flight = await led(one), await followed(other)
        left: list[str] = []
        with flight.follow():
            await eventually(lambda: lead.followers, "it is followed")
            assert lead.stays(lambda: left.append("left"))
            await asyncio.sleep(0.3)  # asked again several times, and never let go
            assert not left
        await eventually(lambda: left, "nobody waits any more")
        assert flight.lost


async def test_who_is_gone_without_a_word_is_told_no_more(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one:
        lead = await led(one)
        async with opened(server.url, "w2") as other:
            await followed(other)
            await eventually(lambda: lead.followers, "it is followed")
            await die(other)
        lead.streamed = True
        lead.add(b"a piece")

        def heard() -> bool:
            lead.add(b".")
            return lead.followers > 0

        await eventually(lambda: not heard(), "nobody hears it")


async def test_who_is_gone_without_a_word_is_missed_though_nothing_is_told(server: RedisServer) -> None:
    """As with a whole answer, of which nothing is said before its end."""
    async with opened(server.url, "w1", timing=IMPATIENT) as one:
        lead, left = await led(one), asyncio.Event()
        async with opened(server.url, "w2", timing=IMPATIENT) as other:
            await followed(other)
            await eventually(lambda: lead.followers, "it is followed")
            assert lead.stays(left.set)
            await die(other)
        async with asyncio.timeout(20):
            await left.wait()
        assert not lead.open


async def test_who_listens_may_be_joined_again_though_it_has_nothing_to_say(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        await led(one)
        flight = await followed(other)
        with flight.follow():
            await eventually(lambda: flight.blocked, "nothing is heard")
            await eventually(lambda: not flight.blocked, "it is known to listen")


async def test_of_whom_nothing_is_heard_is_joined_by_nobody_new(server: RedisServer) -> None:
    """It may be dead: whoever comes asks for itself."""
    patient = replace(PATIENT, moment=0.05, quiet=20.0)
    async with opened(server.url, "w1") as one, opened(server.url, "w2", timing=patient) as other:
        lead, flight = await led(one), await followed(other)
        with flight.follow():
            await eventually(lambda: lead.followers, "it is followed")
            await eventually(lambda: not flight.open, "nothing is heard")
            lead.streamed = True
            lead.add(b"a piece")
            await eventually(lambda: flight.open, "it is heard of again")
            await eventually(lambda: not flight.open, "nothing is heard any more")
            await land(one, lead, entry_of(b"a piece", stream=True))
            await eventually(lambda: flight.done, "it has ended")


async def test_a_cancelled_look_follows_nobody(server: RedisServer) -> None:
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        lead = await led(one)
        for steps in range(12):
            flight = flight_of()
            task = asyncio.create_task(other.look(KEY, 0, flight))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            try:
                assert (await task).role is Role.FOLLOW
                flight.fail(None)
            except asyncio.CancelledError:
                pass
            other.drop(KEY, flight)
            assert not other._follows._follows
        await eventually(lambda: not lead.followers, "nobody follows")
        await eventually(lambda: not other._leads._leads, "nothing is left")


async def test_a_worker_that_closes_gives_back_what_it_has(server: RedisServer, books: Books) -> None:
    async with opened(server.url, "w2") as other:
        async with opened(server.url, "w1") as one:
            await led(one)
            flight = await followed(other)
        assert books.lease(KEY) is None
        await eventually(lambda: flight.lost, "it is lost")
        with pytest.raises(Lost):
            await flight.begun()


# What others say.

TEXT = st.text(max_size=20)
NUMBER = st.integers(0, 2**40)
MESSAGES = st.one_of(
    st.builds(Join, TEXT, TEXT, TEXT, NUMBER, TEXT),
    st.builds(Leave, TEXT),
    st.builds(Piece, TEXT, NUMBER, st.binary(max_size=50), st.booleans()),
    st.builds(End, TEXT, st.sampled_from(["done", "lost", "unknown", "closed"]), NUMBER, NUMBER, st.booleans()),
)
TALK = Talk(PREFIX, SECRET)


@given(MESSAGES, st.data())
def test_only_what_was_said_here_is_believed(message: Any, data: st.DataObject) -> None:
    channel = TALK.channel("w1")
    sealed = TALK.seal(channel, message)
    assert TALK.open(channel, sealed) == message
    assert TALK.open(TALK.channel("w2"), sealed) is None
    assert Talk(PREFIX, b"another").open(channel, sealed) is None
    changed = bytearray(sealed)
    changed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert TALK.open(channel, bytes(changed)) is None
    assert TALK.open(channel, sealed[: data.draw(st.integers(0, len(sealed) - 1))]) is None
    assert TALK.open(channel, data.draw(st.binary(max_size=100))) is None


def test_what_another_version_says_is_not_understood() -> None:
    channel = TALK.channel("w1")
    for words in (["fly", "x"], ["join"], 7, {"a": 1}):
        packed = msgspec.msgpack.encode(words)
        assert TALK.open(channel, TALK._digest(channel, packed) + packed) is None


async def test_garbage_on_the_channels_disturbs_nobody(server: RedisServer) -> None:
    """Made up, and ours but of no sense."""
    stop = False

    async def shout() -> None:
        client = server.client
        while not stop:
            for owner in ("w1", "w2"):
                channel = TALK.channel(owner)
                for message in (
                    Join("f", "no such flight", KEY, 0, "w2"),
                    Join("g", "", "", 10**9, "nobody"),
                    Leave("f"),
                    Piece("f", 10**9, b"x"),
                    End("f", "done"),
                ):
                    client.publish(channel, TALK.seal(channel, message))
                client.publish(channel, b"")
                client.publish(channel, random.randbytes(60))
            await asyncio.sleep(0.001)
        client.close()

    async def call(flight: Flight) -> Entry:
        return await stream(flight, PIECES)

    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        shouting = asyncio.create_task(shout())
        workers = [Worker(one), Worker(other)]
        async with asyncio.timeout(20):
            for number in range(5):
                asked = (workers[n % 2].ask(key_of(number), call) for n in range(20))
                assert set(await asyncio.gather(*asked)) == {WHOLE}
        stop = True
        await shouting


async def test_pieces_of_any_order_make_the_whole(server: RedisServer) -> None:
    """Twice, overlapping, too early: what is told is never out of order."""
    async with opened(server.url, "w1") as one, opened(server.url, "w2") as other:
        await led(one)
        for seed in range(30):
            order = random.Random(seed)
            flight = await followed(other)
            other._follows._tasks.clear()  # nobody asks again
            [name] = other._follows._follows
            for _ in range(200):
                start = order.randrange(len(WHOLE))
                size = order.randrange(1, 40)
                other._follows.heard(Piece(name, start, WHOLE[start : start + size]))
            other._follows.heard(Piece(name, 0, WHOLE))
            assert b"".join(flight.parts) == WHOLE
            other._follows.heard(End(name, "done", len(WHOLE), 33))
            assert flight.done
