"""The relay alone: fake events, a fake upstream, and what it sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.types import Message

from proxy.core.errors import Draining, ProxyError, UpstreamFailed, UpstreamTimeout
from proxy.core.json import Json
from proxy.guard import Guard
from proxy.relay import CHUNKS_A_TURN, Relay
from proxy.upstream.config import Timeouts
from proxy.upstream.transport import TransportError
from tests.test_guard import Clock, settle


class Events:
    """A stream of lower-case letters in upper case: `.` is its terminal event, `!` an error, `_` is held back."""

    def __init__(self, complete: bool = False) -> None:
        self.error: ProxyError | None = None
        self.done = False
        self.usage: Json | None = None
        self._complete = complete

    def feed(self, chunk: bytes) -> bytes:
        before, mark, _ = chunk.partition(b"!")
        if mark:
            self.error = UpstreamFailed("it says so")
            return before.replace(b"_", b"").upper()
        self.done = b"." in chunk
        return chunk.replace(b"_", b"").upper()

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
    guard = Guard(never, Timeouts(), set())
    made = Relay(events or Events(), guard, client.send, scrub)
    try:
        async with guard:
            await made.run(upstream)
    except ProxyError as error:
        return client, made, error
    return client, made, None


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


async def test_the_rest_of_the_upstreams_answer_is_read_and_thrown_away() -> None:
    """So that its connection can serve again."""
    upstream = Upstream(b"a.", b"more", b"and more")
    client, _, _ = await relay(upstream)
    assert client.bodies == [(b"A.", False)]
    assert upstream.taken == [b"a.", b"more", b"and more"]


async def test_who_does_not_end_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.relay.LINGER", 0.01)
    client, _, error = await relay(Upstream(b"a.", never))
    assert client.bodies == [(b"A.", False)]
    assert isinstance(error, UpstreamTimeout)  # dispatch knows that it no longer matters


async def test_an_upstream_that_just_ends() -> None:
    client, made, error = await relay(Upstream(b"a"))
    assert isinstance(error, UpstreamFailed)
    assert client.bodies == [(b"A", True), (b"END", True)]
    await made.fail(error)
    assert client.bodies[-1][1] is False


async def test_an_upstream_that_ends_complete_but_without_its_terminal_event() -> None:
    client, _, error = await relay(Upstream(b"a"), Events(complete=True))
    assert error is None
    assert client.bodies == [(b"A", True), (b"END", False)]


async def test_an_error_in_the_stream() -> None:
    client, _, error = await relay(Upstream(b"a", b"b!c", b"d"))
    assert isinstance(error, UpstreamFailed)
    assert client.bodies == [(b"A", True), (b"B", True)]


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
    guard = Guard(never, Timeouts(), set())
    with pytest.raises(TransportError):
        async with guard:
            await Relay(Events(), guard, client.send, unchanged).run(Upstream(b"a", TransportError("closed", "cut")))
    assert client.bodies == [(b"A", True)]


async def test_every_body_is_scrubbed() -> None:
    client, _, _ = await relay(Upstream(b"a key", b"the key."), scrub=lambda data: data.replace(b"KEY", b"***"))
    assert client.bodies == [(b"A ***", True), (b"THE ***.", False)]


async def test_the_error_frame() -> None:
    client, made, _ = await relay(Upstream(b"a!"))
    await made.fail(Draining("Come again."))
    [first, (body, more)] = client.bodies
    assert first == (b"A", True)
    assert more is False
    frame, done, rest = body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert json.loads(frame.removeprefix(b"data: "))["error"]["code"] == "draining"


async def test_others_have_their_turn_between_chunks() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await relay(Upstream(*[b"a"] * 100, b"."))
    task.cancel()
    assert turns >= 100 // CHUNKS_A_TURN


async def test_a_client_that_takes_its_time_is_not_the_upstreams_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it does not read, nothing is asked of the upstream; afterwards the upstream has its whole time again."""
    clock, may_go_on = Clock(monkeypatch), asyncio.Event()
    client = Client()

    async def slow(message: Message) -> None:
        await client.send(message)
        if client.bodies:
            await may_go_on.wait()

    timeouts = Timeouts.model_construct(connect=9.0, first_byte=10.0, idle=10.0, total=100.0)
    guard = Guard(never, timeouts, set())

    async def run() -> None:
        async with guard:
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

    timeouts = Timeouts.model_construct(connect=9.0, first_byte=10.0, idle=10.0, total=100.0)
    guard = Guard(never, timeouts, set())

    async def run() -> None:
        async with guard:
            await Relay(Events(), guard, slow, unchanged).run(Upstream(b"a."))

    task = asyncio.create_task(run())
    await settle()
    await clock.advance(50)
    may_go_on.set()
    await task
    assert client.bodies == [(b"A.", False)]
