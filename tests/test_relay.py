"""The relay alone: fake events, a fake upstream, and what it sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message

from proxy.core.errors import Draining, ProxyError, UpstreamFailed, UpstreamTimeout
from proxy.core.json import Json
from proxy.core.sent import SENT
from proxy.core.sse import KEEP_ALIVE
from proxy.guard import SILENCE, Deadlines, Guard
from proxy.relay import CHUNK, CHUNKS_A_TURN, Relay
from proxy.upstream.transport import TransportError
from tests.test_guard import Clock, settle


class Events:
    """A stream of lower-case letters in upper case: `.` is its terminal event, `!` an error, `_` is held back. What
    comes behind the terminal event is surplus."""

    def __init__(self, complete: bool = False) -> None:
        self.error: ProxyError | None = None
        self.done = self.surplus = False
        self.usage: Json | None = None
        self.delivered = 0
        self.tier: str | None = None
        self._complete = complete

    def feed(self, chunk: bytes) -> bytes:
        before, mark, _ = chunk.partition(b"!")
        if mark:
            self.error = UpstreamFailed("it says so")
            return before.replace(b"_", b"").upper()
        before, end, rest = chunk.partition(b".")
        self.done, self.surplus = bool(end), bool(rest)
        return (before + end).replace(b"_", b"").upper()

    def end(self) -> bytes:
        if not self._complete:
            self.error = UpstreamFailed("cut short")
        return b"END"


class Upstream:
    """An answer of these chunks. An exception among them is raised, a callable is awaited."""

    def __init__(self, *chunks: Any, kind: str | None = "text/event-stream") -> None:
        self.status = 200
        self.taken: list[bytes] = []
        self._chunks, self._kind = chunks, kind

    def header(self, name: str) -> str | None:
        return self._kind if name == "content-type" else None

    def whole(self) -> bytes | None:
        return None

    async def chunks(self) -> AsyncIterator[bytes]:
        for one in self._chunks:
            if isinstance(one, Exception):
                raise one
            if callable(one):
                await one()
                continue
            self.taken.append(one)
            yield one


class Client:
    """What was sent: the start, then each body with whether more follows."""

    def __init__(self) -> None:
        self.start: Message = {}
        self.bodies: list[tuple[bytes, bool]] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            assert not self.start
            self.start = message
        else:
            assert not self.bodies or self.bodies[-1][1], "nothing follows the end"
            self.bodies.append((message["body"], message["more_body"]))


def unchanged(data: bytes) -> bytes:
    return data


async def never() -> Any:
    await asyncio.Event().wait()


async def relay(
    upstream: Upstream, events: Events | None = None, scrub: Callable[[bytes], bytes] = unchanged
) -> tuple[Client, Relay, ProxyError | None]:
    """Run one stream under a guard; what it raised comes back."""
    client = Client()
    guard = Guard(never, Deadlines.together(60.0), set())
    made = Relay(events or Events(), guard, client.send, scrub)
    try:
        with guard:
            await made.run(upstream)
    except ProxyError as error:
        return client, made, error
    return client, made, None


async def test_that_it_is_whole_is_said_once_before_the_last_piece_goes_on() -> None:
    client, said = Client(), list[int]()
    guard = Guard(never, Deadlines.together(60.0), set())
    made = Relay(Events(), guard, client.send, unchanged, lambda: said.append(len(client.bodies)))
    with guard:
        await made.run(Upstream(b"a", b"b", b"c."))
    assert (said, len(client.bodies)) == ([2], 3)
    said.clear()
    broken = Relay(Events(), guard, Client().send, unchanged, lambda: said.append(0))
    with pytest.raises(UpstreamFailed):
        with guard:
            await broken.run(Upstream(b"a", b"!"))
    await broken.fail(UpstreamFailed("cut"))
    assert not said


async def test_each_chunk_is_sent_as_it_comes() -> None:
    client, made, error = await relay(Upstream(b"a", b"bc", b"d."))
    assert error is None
    assert made.started
    assert client.start["status"] == 200
    assert dict(client.start["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert client.bodies == [(b"A", True), (b"BC", True), (b"D.", False)]


async def test_nothing_is_sent_for_what_is_held_back() -> None:
    client, _, _ = await relay(Upstream(b"_", b"_", b"a", b"_", b"."))
    assert client.bodies == [(b"A", True), (b".", False)]


async def test_nothing_of_one_stream_is_left_in_the_next() -> None:
    """Stages add headers to the start; the next stream has a start of its own."""
    first, _, _ = await relay(Upstream(b"."))
    first.start["headers"] = [*first.start["headers"], (b"x-first", b"1")]
    second, _, _ = await relay(Upstream(b"."))
    assert b"x-first" not in dict(second.start["headers"])


async def test_the_upstreams_answer_is_read_to_its_end() -> None:
    """So that its connection can serve again."""
    ended = False

    async def end() -> None:
        nonlocal ended
        ended = True

    client, _, error = await relay(Upstream(b"a.", end))
    assert client.bodies == [(b"A.", False)]
    assert error is None
    assert ended


@pytest.mark.parametrize(
    ("chunks", "taken"), [((b"a.more", b"and more"), 1), ((b"a.", b"more", b"and more", b"and more"), 2)]
)
async def test_what_comes_behind_the_end_is_not_read(chunks: tuple[bytes, ...], taken: int) -> None:
    """Of a connection that goes on talking nothing more is wanted: the error keeps it from being used again."""
    upstream = Upstream(*chunks)
    client, _, error = await relay(upstream)
    assert client.bodies == [(b"A.", False)]
    assert isinstance(error, UpstreamFailed)
    assert len(upstream.taken) == taken


async def test_who_does_not_end_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.relay.LINGER", 0.01)
    client, _, error = await relay(Upstream(b"a.", never))
    assert client.bodies == [(b"A.", False)]
    assert isinstance(error, UpstreamTimeout)  # dispatch knows that it no longer matters


async def test_an_upstream_that_just_ends() -> None:
    client, made, error = await relay(Upstream(b"a"))
    assert isinstance(error, UpstreamFailed)
    assert client.bodies == [(b"A", True)]
    await made.fail(error)
    [_, (body, more)] = client.bodies
    assert body.startswith(b'ENDdata: {"error"')
    assert more is False


async def test_an_upstream_that_ends_complete_but_without_its_terminal_event() -> None:
    client, _, error = await relay(Upstream(b"a"), Events(complete=True))
    assert error is None
    assert client.bodies == [(b"A", True), (b"END", False)]


async def test_an_error_in_the_stream() -> None:
    client, made, error = await relay(Upstream(b"a", b"b!c", b"d"))
    assert isinstance(error, UpstreamFailed)
    assert client.bodies == [(b"A", True)]
    await made.fail(error)
    assert client.bodies[1][0].startswith(b'Bdata: {"error"')


async def test_what_comes_with_an_error_is_no_reason_to_hold_the_upstream() -> None:
    """A client that does not read gets it when the call is over; that there is something to get is known before."""
    client, made, error = await relay(Upstream(b"b!c"))
    assert isinstance(error, UpstreamFailed)
    assert made.started
    assert not client.bodies
    await made.fail(error)
    assert client.start["status"] == 200
    [(body, more)] = client.bodies
    assert body.startswith(b'Bdata: {"error"')
    assert more is False


async def test_before_the_first_byte_nothing_has_begun() -> None:
    for upstream in (
        Upstream(b"!"),
        Upstream(b"_", b"_!"),
        Upstream(b"a", kind="text/html"),
        Upstream(b"a", kind=None),
    ):
        client, made, error = await relay(upstream)
        assert isinstance(error, UpstreamFailed)
        assert not made.started
        assert not client.start
        assert not client.bodies


async def test_what_the_transport_raises_is_passed_on() -> None:
    client = Client()
    guard = Guard(never, Deadlines.together(60.0), set())
    with pytest.raises(TransportError):
        with guard:
            await Relay(Events(), guard, client.send, unchanged).run(Upstream(b"a", TransportError("closed", "cut")))
    assert client.bodies == [(b"A", True)]


async def test_every_body_is_scrubbed() -> None:
    client, _, _ = await relay(Upstream(b"a key", b"the key."), scrub=lambda data: data.replace(b"KEY", b"***"))
    assert client.bodies == [(b"A ***", True), (b"THE ***.", False)]


async def test_the_error_frame() -> None:
    client, made, _ = await relay(Upstream(b"a", b"!"))
    await made.fail(Draining("Come again."))
    [first, (body, more)] = client.bodies
    assert first == (b"A", True)
    assert more is False
    frame, done, rest = body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert json.loads(frame.removeprefix(b"data: "))["error"]["code"] == "draining"


@pytest.mark.parametrize(
    ("chunk", "chunks_a_turn"), [(b"a", CHUNKS_A_TURN), (b"_" * CHUNK * 3, CHUNKS_A_TURN / 4), (b"a" * 16_384, 1)]
)
async def test_d25_others_have_their_turn_between_chunks(chunk: bytes, chunks_a_turn: float) -> None:
    """Not many events that come at once: they are as much work as alone."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await relay(Upstream(*[chunk] * 96, b"."))
    task.cancel()
    assert turns >= 96 / chunks_a_turn


async def test_a_client_that_takes_its_time_is_not_the_upstreams_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it does not read, nothing is asked of the upstream; afterwards the upstream has its whole time again."""
    clock, may_go_on = Clock(monkeypatch), asyncio.Event()
    client = Client()

    async def slow(message: Message) -> None:
        await client.send(message)
        if client.bodies:
            await may_go_on.wait()

    deadlines = Deadlines(first_byte=10.0, idle=10.0, total=100.0)
    guard = Guard(never, deadlines, set())

    async def run() -> None:
        with guard:
            await Relay(Events(), guard, slow, unchanged).run(Upstream(b"a", b"b", never))

    task = asyncio.create_task(run())
    await settle()
    await clock.advance(11)
    assert not task.done()
    may_go_on.set()
    await settle()
    assert client.bodies == [(b"A", True), (b"B", True)]
    await clock.advance(9)
    assert not task.done()
    await clock.advance(2)
    with pytest.raises(UpstreamTimeout) as caught:
        await task
    assert caught.value.detail == {"timeout": "idle"}


async def test_the_last_bytes_have_as_long_as_the_client_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the upstream is hurried once the answer is whole."""
    clock, may_go_on, client = Clock(monkeypatch), asyncio.Event(), Client()

    async def slow(message: Message) -> None:
        await may_go_on.wait()
        await client.send(message)

    deadlines = Deadlines(first_byte=10.0, idle=10.0, total=100.0)
    guard = Guard(never, deadlines, set())

    async def run() -> None:
        with guard:
            await Relay(Events(), guard, slow, unchanged).run(Upstream(b"a."))

    task = asyncio.create_task(run())
    await settle()
    await clock.advance(50)
    may_go_on.set()
    await task
    assert client.bodies == [(b"A.", False)]


class Comments:
    """A relay under a clock that the test moves, with a client that can stop reading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *chunks: Any) -> None:
        self.clock, self.client, self.reads = Clock(monkeypatch), Client(), asyncio.Event()
        self.reads.set()
        deadlines = Deadlines(first_byte=100.0, idle=50.0, total=200.0)
        guard = Guard(never, deadlines, set())
        self.made = Relay(Events(), guard, self.send, unchanged)

        async def run() -> None:
            with guard:
                await self.made.run(Upstream(*chunks))

        self.task = asyncio.create_task(run())

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        await self.client.send(message)

    async def after(self, *seconds: float) -> list[bytes]:
        await settle()
        for one in seconds:
            await self.clock.advance(one)
        return [body for body, _ in self.client.bodies]


async def test_a_client_that_waits_long_gets_a_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()
    stream = Comments(monkeypatch, b"a", go_on.wait, b"b.")
    assert await stream.after(SILENCE - 1) == [b"A"]
    assert await stream.after(1) == [b"A", KEEP_ALIVE]
    assert await stream.after(SILENCE, SILENCE) == [b"A", KEEP_ALIVE, KEEP_ALIVE, KEEP_ALIVE]
    go_on.set()
    await stream.task
    assert stream.client.bodies[-1] == (b"B.", False)


async def test_a_comment_that_comes_too_late_is_not_begun() -> None:
    """The stream may end between the timer and the turn of the loop in which the comment would be sent."""
    asked: list[Message] = []

    def send(message: Message) -> Awaitable[None]:
        asked.append(message)  # as the server's, which sends at once and not when it is awaited
        return SENT

    relay = Relay(Events(), Guard(never, Deadlines.together(60.0), set()), send, unchanged)
    relay._keep_alive()
    assert relay._comment
    relay._comment.cancel()
    await settle()
    assert asked == []


async def test_comments_do_not_put_off_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Comments(monkeypatch, b"a", never)
    await stream.after(SILENCE, SILENCE, SILENCE)
    await stream.after(50 - 3 * SILENCE)
    with pytest.raises(UpstreamTimeout, match="idle"):
        await stream.task
    assert [body for body, _ in stream.client.bodies] == [b"A"] + [KEEP_ALIVE] * 3


async def test_what_is_held_back_is_silence_to_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that sends half events all the time does not leave its client without a sign."""
    go_on = [asyncio.Event() for _ in range(3)]
    stream = Comments(monkeypatch, b"a", *(one for event in go_on for one in (event.wait, b"_")), never)
    for event in go_on:
        await stream.after(SILENCE / 3)
        event.set()
    assert await stream.after(0) == [b"A", KEEP_ALIVE]
    stream.task.cancel()


async def test_before_the_answer_has_begun_there_is_no_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Comments(monkeypatch, b"_", never)
    assert await stream.after(SILENCE, SILENCE) == []
    assert not stream.client.start
    stream.task.cancel()


async def test_a_client_that_does_not_read_gets_no_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()
    stream = Comments(monkeypatch, b"a", go_on.wait, b"b", never)
    assert await stream.after(1) == [b"A"]
    stream.reads.clear()
    go_on.set()
    assert await stream.after(SILENCE, SILENCE) == [b"A"]
    stream.reads.set()
    assert await stream.after(SILENCE - 1) == [b"A", b"B"]
    assert await stream.after(1) == [b"A", b"B", KEEP_ALIVE]
    stream.task.cancel()


async def test_one_comment_at_a_time_and_nothing_overtakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()
    stream = Comments(monkeypatch, b"a", go_on.wait, b"b.")
    await stream.after(1)
    stream.reads.clear()
    await stream.after(SILENCE, SILENCE)
    go_on.set()
    assert await stream.after(1) == [b"A"]
    stream.reads.set()
    await stream.task
    assert stream.client.bodies == [(b"A", True), (KEEP_ALIVE, True), (b"B.", False)]


async def test_a_comment_on_its_way_is_not_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the end of the stream, above all: a server takes nothing after that."""
    go_on, arrives = asyncio.Event(), asyncio.Event()
    stream = Comments(monkeypatch, b"a", go_on.wait, b"b.")
    client_send = stream.client.send

    async def send(message: Message) -> None:
        if message.get("body") == KEEP_ALIVE:
            await arrives.wait()
        await client_send(message)

    monkeypatch.setattr(stream.client, "send", send)
    assert await stream.after(SILENCE) == [b"A"]
    go_on.set()
    assert await stream.after(1) == [b"A"]
    arrives.set()
    await stream.task
    assert stream.client.bodies == [(b"A", True), (KEEP_ALIVE, True), (b"B.", False)]


async def test_a_comment_that_waits_ends_with_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    before = asyncio.all_tasks()
    stream = Comments(monkeypatch, b"a", never)
    await stream.after(1)
    stream.reads.clear()
    await stream.after(SILENCE)
    assert len(asyncio.all_tasks() - before) == 3  # the stream, the guard's watcher, the comment
    stream.task.cancel()
    await settle()
    assert asyncio.all_tasks() == before
    stream.reads.set()
    await settle()
    assert stream.client.bodies == [(b"A", True)]


async def test_the_error_frame_does_not_wait_for_a_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Comments(monkeypatch, b"a", never)
    await stream.after(1)
    stream.reads.clear()
    await stream.after(SILENCE, 50)
    with pytest.raises(UpstreamTimeout) as caught:
        await stream.task
    stream.reads.set()
    await stream.made.fail(caught.value)
    [first, (body, more)] = stream.client.bodies
    assert first == (b"A", True)
    assert body.startswith(b'data: {"error"')
    assert more is False


async def test_no_comment_comes_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.relay.LINGER", 99)
    stream = Comments(monkeypatch, b"a.", never)
    assert await stream.after(SILENCE, SILENCE) == [b"A."]
    stream.task.cancel()
