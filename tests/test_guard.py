"""The guard: every way that work can lose its reason, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import pytest

from proxy.core.departure import Departure
from proxy.core.errors import ClientGone, Draining, Elsewhere, UpstreamTimeout
from proxy.core.services import Drainable, Drainables
from proxy.guard import SILENCE, Deadlines, Guard


def deadlines(first_byte: float = 10.0, idle: float = 10.0, total: float = 100.0) -> Deadlines:
    return Deadlines(first_byte, idle, total)


class Clock:
    """The loop's own timers, on a clock that tests move: nothing here ever sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Any, Any]] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: self.now)
        monkeypatch.setattr(loop, "call_at", self._call_at)

    def _call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = asyncio.Handle(callback, args, asyncio.get_running_loop(), context)
        self.timers.append((when, handle, callback))
        return handle

    async def advance(self, seconds: float) -> None:
        self.now += seconds
        due, self.timers = (
            [timer for timer in self.timers if timer[0] <= self.now],
            [timer for timer in self.timers if timer[0] > self.now],
        )
        for _, handle, callback in due:
            if not handle.cancelled():
                callback()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def stays() -> dict[str, str]:
    await asyncio.Event().wait()
    raise AssertionError


class Client:
    """A `receive()` whose client leaves when told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.waiting = 0

    async def receive(self) -> dict[str, Any]:
        self.waiting += 1
        try:
            await self.gone.wait()
            return {"type": "http.disconnect"}
        finally:
            self.waiting -= 1


async def forever(guard: Guard) -> None:
    with guard:
        await asyncio.Event().wait()


async def test_the_client_leaving_ends_the_block() -> None:
    client, group = Client(), set[Drainable]()
    task = asyncio.create_task(forever(Guard(client.receive, deadlines(), group)))
    await settle()
    assert client.waiting == 1
    assert len(group) == 1
    client.gone.set()
    with pytest.raises(ClientGone):
        await task
    assert client.waiting == 0
    assert not group


class Server:
    """One that tells by itself. Nobody may stand in `receive()`."""

    def __init__(self) -> None:
        self.listens = 0
        self.departure = Departure(self._listen, lambda: None)

    def _listen(self) -> None:
        self.listens += 1

    def guard(self, **more: Any) -> Guard:
        return Guard(self._receive, deadlines(), set(), departure=self.departure, **more)

    async def _receive(self) -> dict[str, Any]:
        raise AssertionError


async def test_where_the_server_tells_nobody_has_to_stand_and_wait() -> None:
    server, before = Server(), asyncio.all_tasks()
    task = asyncio.create_task(forever(server.guard()))
    await settle()
    assert server.listens == 1
    assert asyncio.all_tasks() == before | {task}
    server.departure.happen()
    with pytest.raises(ClientGone):
        await task
    assert server.departure.tell is None


async def test_for_a_client_that_has_left_before_the_block_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, server, begun = Clock(monkeypatch), Server(), False
    server.departure.happen()
    guard = server.guard()
    with pytest.raises(ClientGone):
        with guard:
            begun = True
    assert not begun
    assert not server.listens
    assert server.departure.tell is None
    assert all(handle.cancelled() for _, handle, _ in clock.timers)
    await settle()  # nobody has cancelled this task


async def test_a_client_that_has_left_before_does_not_matter_to_whoever_waits_too() -> None:
    server, leave = Server(), list[Any]()
    server.departure.happen()

    def stays(then: Any) -> bool:
        leave.append(then)
        return True

    with pytest.raises(ClientGone):
        with server.guard(stays=stays):
            await settle()
            [go] = leave
            go()
            await settle()


async def test_what_begins_after_the_drain_does_not_begin() -> None:
    group, begun = Drainables(), False
    group.drain()
    with pytest.raises(Draining):
        with Guard(Client().receive, deadlines(), group):
            begun = True
    assert not begun
    assert not group
    await settle()


async def test_a_departure_counts_no_more_once_the_block_has_ended_or_the_client_has_all() -> None:
    server = Server()
    with server.guard():
        pass
    with server.guard() as guard:
        guard.finishing(1)
        server.departure.happen()
        await settle()


async def test_whoever_waits_too_lets_it_go_on_until_they_leave() -> None:
    server, leave = Server(), list[Any]()

    def stays(then: Any) -> bool:
        leave.append(then)
        return True

    task = asyncio.create_task(forever(server.guard(stays=stays)))
    await settle()
    server.departure.happen()
    await settle()
    assert not task.done()
    leave[0]()
    with pytest.raises(ClientGone):
        await task


async def test_e4_what_asked_to_be_told_is_not_kept_alive() -> None:
    """Whoever asks mostly holds the guard: together they would stay until the garbage collector comes."""

    class Holder:
        def __init__(self, guard: Guard) -> None:
            self.guard = guard
            guard.on_silence = self.told

        def told(self) -> None: ...

    guard = Guard(stays, deadlines(), set())
    with guard:
        gone = weakref.ref(Holder(guard))
        assert gone()
    assert not gone()


async def test_messages_before_the_disconnect_are_not_the_disconnect() -> None:
    messages = asyncio.Queue[dict[str, Any]]()
    task = asyncio.create_task(forever(Guard(messages.get, deadlines(), set())))
    messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    await settle()
    assert not task.done()
    messages.put_nowait({"type": "http.disconnect"})
    with pytest.raises(ClientGone):
        await task


@pytest.mark.parametrize(
    ("deadlines", "heard_at", "late_at", "phase"),
    [
        (deadlines(first_byte=10), [], 10, "first_byte"),
        (deadlines(first_byte=10, idle=5), [9], 14, "idle"),
        (deadlines(first_byte=5, idle=10), [4, 10, 19], 29, "idle"),
        (deadlines(first_byte=10, idle=10, total=25), [9, 18], 25, "total"),
        (deadlines(first_byte=10, total=3), [], 3, "total"),
    ],
)
async def test_each_deadline_ends_the_block_exactly_when_it_is_due(
    monkeypatch: pytest.MonkeyPatch, deadlines: Deadlines, heard_at: list[int], late_at: int, phase: str
) -> None:
    clock, guard = Clock(monkeypatch), Guard(stays, deadlines, set())
    task = asyncio.create_task(forever(guard))
    await settle()
    for second in range(1, late_at + 1):
        assert not task.done()
        await clock.advance(1)
        if second in heard_at:
            guard.heard()
    with pytest.raises(UpstreamTimeout) as caught:
        await task
    assert caught.value.detail == {"timeout": phase}
    assert f"timeouts.{phase}" in caught.value.message


async def test_each_call_gets_its_own_first_byte_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, guard = Clock(monkeypatch), Guard(stays, deadlines(first_byte=10, idle=10), set())
    task = asyncio.create_task(forever(guard))
    await settle()
    await clock.advance(9)
    guard.calling()
    await clock.advance(9)
    assert not task.done()
    await clock.advance(1)
    with pytest.raises(UpstreamTimeout, match="first_byte"):
        await task


async def test_a_second_call_is_due_sooner_than_the_silence_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, guard = Clock(monkeypatch), Guard(stays, deadlines(first_byte=2, idle=60), set())
    task = asyncio.create_task(forever(guard))
    await settle()
    guard.heard()
    await clock.advance(1)
    guard.calling()
    await clock.advance(2)
    with pytest.raises(UpstreamTimeout) as caught:
        await task
    assert caught.value.detail == {"timeout": "first_byte"}


async def test_after_the_answer_the_upstream_has_a_short_time_and_the_client_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, client = Clock(monkeypatch), Client()
    guard = Guard(client.receive, deadlines(), set())
    task = asyncio.create_task(forever(guard))
    await settle()
    guard.finishing(1.0)
    client.gone.set()
    await clock.advance(0.5)
    assert not task.done()
    await clock.advance(0.5)
    with pytest.raises(UpstreamTimeout, match="total"):
        await task


async def test_a_client_that_reads_slowly_is_not_the_upstreams_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, guard = Clock(monkeypatch), Guard(stays, deadlines(idle=10, total=60), set())
    task = asyncio.create_task(forever(guard))
    await settle()
    guard.heard()
    guard.sending()
    await clock.advance(25)
    assert not task.done()
    guard.sent()
    await clock.advance(9)
    assert not task.done()
    guard.sending()
    await clock.advance(26)
    with pytest.raises(UpstreamTimeout, match="total"):
        await task


async def test_a_client_that_is_sent_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, guard, noticed = Clock(monkeypatch), Guard(stays, deadlines(first_byte=99, idle=99, total=999), set()), 0

    def notice() -> None:
        nonlocal noticed
        noticed += 1

    task = asyncio.create_task(forever(guard))
    await settle()
    await clock.advance(SILENCE)  # nobody has asked yet
    guard.on_silence = notice
    await clock.advance(SILENCE - 1)
    assert noticed == 0
    await clock.advance(1)
    assert noticed == 1
    guard.heard()  # that the upstream speaks does not help the client
    await clock.advance(SILENCE)
    assert noticed == 2
    await clock.advance(1)
    guard.sending()
    guard.sent()
    await clock.advance(SILENCE - 1)
    assert noticed == 2
    guard.sending()
    await clock.advance(SILENCE)
    await clock.advance(SILENCE)
    assert noticed == 2
    guard.sent()
    guard.finishing(3 * SILENCE)
    await clock.advance(SILENCE)
    assert noticed == 2
    task.cancel()


async def test_at_a_deadline_it_is_the_deadline_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, guard = Clock(monkeypatch), Guard(stays, deadlines(first_byte=SILENCE), set())
    guard.on_silence = lambda: pytest.fail("a comment before the error")
    task = asyncio.create_task(forever(guard))
    await settle()
    await clock.advance(SILENCE)
    with pytest.raises(UpstreamTimeout):
        await task


async def test_draining_ends_the_block() -> None:
    guard = Guard(stays, deadlines(), set())
    task = asyncio.create_task(forever(guard))
    await settle()
    guard.drain()
    with pytest.raises(Draining):
        await task


async def test_a_foreign_cancellation_passes() -> None:
    client = Client()
    task = asyncio.create_task(forever(Guard(client.receive, deadlines(), set())))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.waiting == 0


async def test_a_foreign_cancellation_wins_over_the_guards_own() -> None:
    client = Client()
    task = asyncio.create_task(forever(Guard(client.receive, deadlines(), set())))
    await settle()
    client.gone.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_block_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, client, group = Clock(monkeypatch), Client(), set[Drainable]()
    with pytest.raises(ZeroDivisionError):
        with Guard(client.receive, deadlines(), group):
            await settle()
            raise ZeroDivisionError
    await settle()
    assert client.waiting == 0
    assert not group
    assert all(handle.cancelled() for _, handle, _ in clock.timers)


async def test_after_the_block_the_task_can_be_cancelled_anew() -> None:
    client = Client()

    async def work() -> str:
        try:
            await forever(Guard(client.receive, deadlines(), set()))
        except ClientGone:
            await asyncio.sleep(0)  # would raise at once if a cancellation were left over
            return "released"
        return "never"

    task = asyncio.create_task(work())
    await settle()
    client.gone.set()
    assert await task == "released"


async def test_two_calls_one_after_the_other_share_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    first = Guard(stays, deadlines(total=60), set())
    with first:
        await clock.advance(9)
    await clock.advance(41)
    second = Guard(stays, deadlines(first_byte=99, total=60), set(), first.ends)
    with pytest.raises(UpstreamTimeout, match="total") as late:
        with second:
            assert second.left == 10
            await asyncio.gather(clock.advance(10), asyncio.Event().wait())
    assert late.value.elsewhere is Elsewhere.NO  # there is no time for anybody else
    assert second.ends == first.ends
