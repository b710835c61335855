"""Places and connections: what a call holds, it gives back, however it ends; nobody gets bytes of somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.pool import KEEP_IDLE, Places, Pool
from proxy.upstream.transport import Connections, TransportError
from tests.upstream.conftest import Authority, Open
from tests.upstream.scripted import CHUNKED, Peer, Upstream, answer, chunk, every_request, soon, upstream, whole


@dataclass
class Staller:
    """An upstream that stalls in one phase of its first connections and answers properly when told to."""

    phase: str
    healthy: bool = False
    stalled: asyncio.Queue[Peer] = field(default_factory=asyncio.Queue)
    gone: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)

    async def __call__(self, peer: Peer) -> None:
        if self.healthy:
            await every_request(answer(b"ok"))(peer)
        if self.phase == "headers":
            await peer.request()
        elif self.phase == "body":
            await peer.request()
            await peer.send(CHUNKED + chunk(b"data: 1\n\n"))
        self.stalled.put_nowait(peer)
        self.gone.put_nowait(await peer.gone())


PHASES = {"handshake": b"{}", "upload": b"x" * 8_000_000, "headers": b"{}", "body": b"{}"}


@asynccontextmanager
async def stalling(phase: str, authority: Authority) -> AsyncIterator[tuple[Staller, Upstream]]:
    staller = Staller(phase)
    async with upstream(staller) as server:
        if phase == "handshake":
            server.scheme = "https"  # nobody answers the client's hello
        yield staller, server


async def cancelled(call: Coroutine[Any, Any, bytes], reached: Coroutine[Any, Any, object], times: int = 1) -> None:
    """Start a call, cancel it when it has got so far, and see that it was nothing but cancelled."""
    task = asyncio.create_task(call)
    await soon(reached)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await soon(task)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("phase", PHASES)
async def test_a_cancelled_call_closes_its_connection_at_once(
    open_to: Open, authority: Authority, phase: str, times: int
):
    async with stalling(phase, authority) as (staller, server):
        transport = open_to(server.url, max_connections=1)
        await cancelled(whole(transport, body=PHASES[phase]), staller.stalled.get(), times)
        sent = await soon(staller.gone.get())
    assert len(sent) < len(PHASES[phase]) or phase != "upload"  # the rest was dropped, not flushed


@pytest.mark.parametrize("phase", ["handshake", "headers", "body"])
async def test_d2_whether_a_call_may_have_been_heard(open_to: Open, authority: Authority, phase: str):
    """What was not is not paid for."""
    async with stalling(phase, authority) as (staller, server):
        transport = open_to(server.url, max_connections=1)
        call = transport.call("POST", "/x", [], PHASES[phase])

        async def ask() -> bytes:
            async with call as answer:
                return b"".join([piece async for piece in answer.chunks()])

        await cancelled(ask(), staller.stalled.get())
        in_line = transport.call("POST", "/x", [], b"{}")
    assert call.sent == (phase != "handshake")
    assert not in_line.sent


@pytest.mark.parametrize("phase", ["headers", "body"])
async def test_a_cancelled_call_closes_its_connection_under_tls_too(open_to: Open, authority: Authority, phase: str):
    staller = Staller(phase)
    async with upstream(staller, authority.server()) as server:
        await cancelled(whole(open_to(server.url)), staller.stalled.get())
        await soon(staller.gone.get())


@pytest.mark.parametrize("phase", PHASES)
async def test_the_pool_is_whole_after_many_cancelled_calls(open_to: Open, authority: Authority, phase: str):
    async with stalling(phase, authority) as (staller, server):
        transport = open_to(server.url, max_connections=2)
        for _ in range(25):
            calls = [asyncio.create_task(whole(transport, body=PHASES[phase][:100_000])) for _ in range(4)]
            await soon(staller.stalled.get())
            await soon(staller.stalled.get())
            for call in calls:  # two hold a connection, two wait for a place
                call.cancel()
            assert all(isinstance(end, asyncio.CancelledError) for end in await ends(calls))
        if phase != "handshake":
            staller.healthy = True
            assert await soon(asyncio.gather(*[whole(transport) for _ in range(10)])) == [b"ok"] * 10


async def ends(calls: list[asyncio.Task[bytes]]) -> list[bytes | BaseException]:
    return await soon(asyncio.gather(*calls, return_exceptions=True))


async def test_the_pool_is_whole_after_calls_that_failed(open_to: Open):
    broken = True

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            if broken:
                return
            await peer.send(answer(b"ok"))

    async with upstream(script) as server:
        transport = open_to(server.url, max_connections=1)
        for _ in range(5):
            with pytest.raises(TransportError):
                await whole(transport)
        broken = False
        assert await whole(transport) == b"ok"


async def test_a_call_that_finds_no_place_in_time(open_to: Open):
    staller = Staller("headers")
    async with upstream(staller) as server:
        transport = open_to(server.url, max_connections=1, connect=0.2)

        async def at_last() -> bytes:
            """Its answer, however long a busy machine takes to connect."""
            while True:
                with suppress(TransportError):
                    return await whole(transport)

        holder = asyncio.create_task(at_last())
        await soon(staller.stalled.get())
        with pytest.raises(TransportError) as caught:
            await whole(transport)
        assert caught.value.kind == "pool"
        staller.healthy = True
        holder.cancel()
        await ends([holder])
        assert await soon(at_last()) == b"ok"


async def test_never_more_calls_than_places(open_to: Open):
    here = most = 0
    three = asyncio.Barrier(3)

    async def script(peer: Peer) -> None:
        nonlocal here, most
        while True:
            await peer.request()
            here += 1
            most = max(most, here)
            await soon(three.wait())
            here -= 1
            await peer.send(answer(b"ok"))

    async with upstream(script) as server:
        transport = open_to(server.url, max_connections=3)
        assert await soon(asyncio.gather(*[whole(transport) for _ in range(30)])) == [b"ok"] * 30
    assert most == 3


async def test_leaving_before_the_end_closes_the_connection(open_to: Open):
    staller = Staller("body")
    async with upstream(staller) as server:
        transport = open_to(server.url, max_connections=1)
        async with asyncio.timeout(5), transport.call("POST", "/", [], b"{}") as reply:
            async for _ in reply.chunks():
                break
        await soon(staller.gone.get())
        staller.healthy = True
        assert await whole(transport) == b"ok"
    assert server.connections == 2


async def test_leaving_without_reading_closes_the_connection(open_to: Open):
    staller = Staller("body")
    async with upstream(staller) as server:
        transport = open_to(server.url, max_connections=1)
        async with asyncio.timeout(5), transport.call("POST", "/", [], b"{}"):
            pass
        await soon(staller.gone.get())
        staller.healthy = True
        assert await whole(transport) == b"ok"


async def test_nothing_is_sent_before_the_call_is_entered(open_to: Open):
    async with upstream(every_request(answer(b"ok"))) as server:
        transport = open_to(server.url, max_connections=1)
        for _ in range(3):
            transport.call("POST", "/", [], b"{}")
        assert await whole(transport) == b"ok"
    assert server.connections == 1


async def test_closing_ends_the_calls_under_way(open_to: Open):
    for phase in ("headers", "body"):
        staller = Staller(phase)
        async with upstream(staller) as server:
            transport = open_to(server.url)
            call = asyncio.create_task(whole(transport))
            await soon(staller.stalled.get())
            await soon(transport.close())
            (end,) = await ends([call])
            assert isinstance(end, TransportError)
            assert end.kind == "closed"
            await soon(staller.gone.get())


@pytest.mark.parametrize("late", [False, True], ids=["with the answer", "after the answer"])
async def test_surplus_bytes_never_reach_the_next_request(open_to: Open, late: bool):
    """An upstream out of step with its own answers must not give one team the answer of another."""
    read = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            honest, evil = answer(request.body), answer(b"EVIL")
            if late:
                await peer.send(honest)
                await soon(read.wait())
                read.clear()
                await peer.send(evil)
            else:
                await peer.send(honest + evil)

    async with upstream(script) as server:
        transport = open_to(server.url, max_connections=1)
        for i in range(100):
            assert await whole(transport, body=b"%d" % i) == b"%d" % i
            read.set()
            await asyncio.sleep(0)  # the server's turn: its bytes are in the socket when the next call looks


# the idle ones, without a socket


class Plain:
    """A connection that answers nothing and can always be used again, unless told otherwise."""

    def __init__(self) -> None:
        self.done = self.usable = True
        self.closed = 0

    sent = True

    async def ask(self, request: str) -> Any:
        return request

    def is_done(self) -> bool:
        return self.done

    def is_usable(self) -> bool:
        return self.usable

    def close(self) -> asyncio.Future[None]:
        self.closed += 1
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        gone.set_result(None)
        return gone


@dataclass
class Timer:
    when: float
    callback: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """A clock that tests move. While `late`, as in a loop that is busy, it calls nobody back."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.late = False
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object], /) -> Any:
        self.timers.append(Timer(when, callback))
        return self.timers[-1]

    def passes(self, seconds: float) -> None:
        self.now += seconds
        due = [] if self.late else [timer for timer in self.waiting if timer.when <= self.now]
        self.timers = [timer for timer in self.waiting if timer not in due]
        for timer in due:
            timer.callback()

    @property
    def waiting(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]


def plain_pool(made: list[Plain], clock: Clock | None = None) -> Pool[str]:
    async def connect() -> Plain:
        made.append(Plain())
        return made[-1]

    return Pool(2, 1.0, connect, clock or Clock())


async def exchange(pool: Pool[str], together: int = 1) -> None:
    """So many calls, entered one after the other and all left after the last has begun."""
    if together:
        async with pool.call("ask"):
            await exchange(pool, together - 1)


async def test_connections_are_counted_by_whether_a_call_has_them():
    made: list[Plain] = []
    pool = plain_pool(made)
    async with pool.call("ask"):
        assert pool.connections == Connections(in_use=1, idle=0)
        await exchange(pool)
        assert pool.connections == Connections(in_use=1, idle=1)
    assert pool.connections == Connections(in_use=0, idle=2)
    made[0].usable = False  # its server has closed it
    assert pool.connections == Connections(in_use=0, idle=1)
    await pool.close()
    assert pool.connections == Connections(in_use=0, idle=0)


@pytest.mark.parametrize("phase", ["headers", "body"])
async def test_a_transport_tells_its_connections(open_to: Open, authority: Authority, phase: str):
    async with stalling(phase, authority) as (staller, server):
        transport = open_to(server.url)
        call = asyncio.create_task(whole(transport))
        await soon(staller.stalled.get())
        assert transport.connections == Connections(in_use=1, idle=0)
        call.cancel()
        await asyncio.wait([call])
        assert transport.connections == Connections(in_use=0, idle=0)


async def test_the_connection_used_last_is_used_next():
    made: list[Plain] = []
    pool = plain_pool(made)
    await exchange(pool, together=2)
    first_left = made[1]
    made[0].usable = False  # the one that was left last
    await exchange(pool)
    assert (len(made), made[0].closed, first_left.closed) == (2, 1, 0)


async def test_a_fresh_connection_replaces_the_one_that_was_idle_for_longest():
    made: list[Plain] = []
    pool = plain_pool(made)
    await exchange(pool, together=2)
    async with pool.call("ask", fresh=True):
        assert [one.closed for one in made] == [0, 1, 0]
    await exchange(pool, together=2)
    assert [one.closed for one in made] == [0, 1, 0]


async def test_a_fresh_connection_is_just_another_one_where_none_is_idle():
    made: list[Plain] = []
    async with plain_pool(made).call("ask", fresh=True):
        assert len(made) == 1


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("kind", ["closed", "protocol"])
async def test_d6_what_makes_a_connection_stale(kind: str, answered: bool):
    class Second(Plain):
        async def ask(self, request: str) -> Any:
            self.asked = getattr(self, "asked", 0) + 1
            if self.asked == fails_at:
                raise TransportError(kind, "broken", answered=answered)

    async def connect() -> Plain:
        return Second()

    for fails_at in (1, 2):
        pool: Pool[str] = Pool(1, 1.0, connect, Clock())
        with pytest.raises(TransportError) as caught:
            for _ in range(2):
                await exchange(pool)
        assert caught.value.reused == (fails_at == 2)
        assert caught.value.stale == (fails_at == 2 and kind == "closed" and not answered)


async def test_a_connection_that_is_not_usable_is_closed_and_replaced():
    made: list[Plain] = []
    pool = plain_pool(made)
    await exchange(pool)
    made[0].usable = False
    await exchange(pool)
    assert [one.closed for one in made] == [1, 0]


async def test_a_connection_is_not_used_after_it_was_idle_for_long():
    made: list[Plain] = []
    clock = Clock()
    clock.late = True
    pool = plain_pool(made, clock)
    await exchange(pool)
    clock.passes(KEEP_IDLE - 0.1)
    await exchange(pool)
    assert len(made) == 1
    clock.passes(KEEP_IDLE)
    await exchange(pool)
    assert [one.closed for one in made] == [1, 0]


async def test_idle_connections_are_closed_while_others_work():
    made: list[Plain] = []
    clock = Clock()
    pool = plain_pool(made, clock)
    await exchange(pool, together=2)
    clock.passes(20)
    await exchange(pool)
    clock.passes(20)
    assert [one.closed for one in made] == [0, 1]


async def test_idle_connections_are_closed_when_nothing_else_happens():
    """With one timer, and only while one is idle."""
    made: list[Plain] = []
    clock = Clock()
    pool = plain_pool(made, clock)
    async with pool.call("ask"):
        assert not clock.waiting
        await exchange(pool)
        clock.passes(20)
    assert [timer.when for timer in clock.waiting] == [1000 + KEEP_IDLE]
    clock.passes(KEEP_IDLE - 20)
    assert [one.closed for one in made] == [0, 1]
    assert [timer.when for timer in clock.waiting] == [1020 + KEEP_IDLE]
    clock.passes(20)
    assert [one.closed for one in made] == [1, 1]
    assert not clock.waiting


async def test_one_that_is_used_again_is_idle_anew():
    made: list[Plain] = []
    clock = Clock()
    pool = plain_pool(made, clock)
    for _ in range(4):
        await exchange(pool)
        clock.passes(20)
    assert (len(made), made[0].closed, len(clock.waiting)) == (1, 0, 1)


async def test_a_closed_pool_waits_for_nothing():
    made: list[Plain] = []
    clock = Clock()
    pool = plain_pool(made, clock)
    await exchange(pool)
    assert clock.waiting
    await pool.close()
    assert not clock.waiting


async def test_a_closed_pool_keeps_nothing():
    made: list[Plain] = []
    pool = plain_pool(made)
    await exchange(pool)
    async with pool.call("ask"):
        await pool.close()
    assert made[0].closed == 2
    await exchange(pool)
    assert [one.closed for one in made] == [2, 1]


@given(
    st.integers(1, 3), st.lists(st.sampled_from(["come", "give", "cancel first", "cancel last", "turn"]), max_size=40)
)
def test_places_are_neither_lost_nor_doubled(count: int, steps: list[str]):
    async def scenario() -> None:
        places, held, waiting = Places(count), 0, list[asyncio.Task[None]]()

        def settle() -> None:
            nonlocal held, waiting
            held += sum(not task.cancelled() for task in waiting if task.done())
            waiting = [task for task in waiting if not task.done()]

        for step in [*steps, "turn", "turn"]:
            if step == "come" and places.take():
                held += 1
            elif step == "come":
                waiting.append(asyncio.create_task(places.wait()))
            elif step == "give" and held:
                held -= 1
                places.give()
            elif step.startswith("cancel") and waiting:
                waiting[0 if step == "cancel first" else -1].cancel()
            elif step == "turn":
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                settle()
                assert places.free + held == count or waiting
                assert not (places.free and waiting)
                assert held <= count
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        settle()
        for _ in range(held):
            places.give()
        assert places.free == count

    asyncio.run(scenario())
