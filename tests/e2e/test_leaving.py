"""The client leaves, at any moment and in any way: the upstream call is closed and its place is free again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e.conftest import PLACES, Stage
from tests.e2e.upstream import JSON, STREAM, Reply, completion, event, prompt
from tests.e2e.wire import Connection, ask, chat, connect, soon, turns
from tests.upstream.scripted import Peer, Received, chunk

LEAVE = "leave"

pytestmark = pytest.mark.parametrize("how", ["fin", "rst"])


class Upstream:
    """Answers good requests; does `bad` with the one whose client will leave, and notes that it was closed."""

    def __init__(self, bad: Reply) -> None:
        self.arrived, self.closed = asyncio.Event(), asyncio.Event()
        self._bad = bad
        self._all_here = asyncio.Barrier(PLACES)

    async def __call__(self, peer: Peer, received: Received) -> None:
        if prompt(received) != LEAVE:
            if prompt(received) == "together":
                await soon(self._all_here.wait())
            await peer.send(completion())
            return
        self.arrived.set()
        try:
            await self._bad(peer, received)
            await peer.gone()
        except ConnectionError:
            pass
        self.closed.set()


async def silence(peer: Peer, received: Received) -> None:
    """Not even headers."""


async def headers(peer: Peer, received: Received) -> None:
    await peer.send(STREAM)


async def one_event(peer: Peer, received: Received) -> None:
    await peer.send(STREAM + chunk(event("Hello")))


async def half_an_event(peer: Peer, received: Received) -> None:
    await peer.send(STREAM + chunk(event("Hello")) + chunk(event("world")[:20]))


async def half_an_answer(peer: Peer, received: Received) -> None:
    await peer.send(JSON + b'content-length: 1000\r\n\r\n{"id": "cmpl-1"')


async def a_flood(peer: Peer, received: Received) -> None:
    """Events that never stop, and the next one is there before the last is gone."""
    await peer.send(STREAM)
    many = b"".join(chunk(event(f"word {i} ")) for i in range(50))
    while True:
        await peer.send(many)
        await asyncio.sleep(0)  # the flood must not starve this test


async def check(stage: Stage, mark: str, attempts: int = 1, status: int = 499) -> None:
    """The log has one line, and as many requests as there are places are answered while all of them are open."""
    line = await asyncio.to_thread(stage.proxy.program.line, request_id=mark)
    assert line["client_gone"] is True
    assert (line["status_code"], line["attempts"]) == (status, attempts)
    answers = await soon(asyncio.gather(*(ask(stage.url, chat("together")) for _ in range(PLACES))))
    assert [answer.status for answer in answers] == [200] * PLACES


@asynccontextmanager
async def asking(stage: Stage, mark: str, **fields: Any) -> AsyncIterator[Connection]:
    """A client that has sent the request of which it will not see the end."""
    async with connect(stage.url) as client:
        await client.send(chat(LEAVE, headers={"x_request_id": mark}, **fields))
        yield client


@pytest.mark.parametrize(
    ("reply", "stream"),
    [(silence, False), (silence, True), (headers, True), (half_an_answer, False)],
    ids=["before headers", "stream, before headers", "stream, before the first event", "in a whole answer"],
)
async def test_before_the_client_has_anything(stage: Stage, how: str, reply: Reply, stream: bool) -> None:
    script, mark = Upstream(reply), uuid4().hex
    async with stage.upstream(script):
        async with asking(stage, mark, stream=stream) as client:
            await soon(script.arrived.wait())
            await turns(stage.url)
            client.leave(how)
            await soon(script.closed.wait())
        await check(stage, mark)


@pytest.mark.parametrize("reply", [one_event, half_an_event])
async def test_in_the_middle_of_a_stream(stage: Stage, how: str, reply: Reply) -> None:
    script, mark = Upstream(reply), uuid4().hex
    async with stage.upstream(script):
        async with asking(stage, mark, stream=True) as client:
            assert (await client.head()).status == 200
            assert await client.chunk() == event("Hello")
            client.leave(how)
            await soon(script.closed.wait())
        await check(stage, mark, status=200)


async def test_in_the_line_for_a_place(stage: Stage, how: str) -> None:
    mark, release = uuid4().hex, asyncio.Event()
    held: list[str] = []

    async def script(peer: Peer, received: Received) -> None:
        held.append(prompt(received))
        await soon(release.wait())
        await peer.send(completion())

    async with stage.upstream(script), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(stage.url)) for _ in range(PLACES)]
        for client in clients:
            await client.send(chat("hold"))
        async with asyncio.timeout(20):
            while len(held) < PLACES:
                await turns(stage.url, 1)
        async with asking(stage, mark) as last:
            await turns(stage.url)
            last.leave(how)
            line = await asyncio.to_thread(stage.proxy.program.line, request_id=mark)
        assert line["client_gone"] is True
        release.set()
        assert [(await client.answer()).status for client in clients] == [200] * PLACES
        held.clear()
        answers = await asyncio.gather(*(ask(stage.url, chat("after")) for _ in range(PLACES)))
        assert [answer.status for answer in answers] == [200] * PLACES
        assert LEAVE not in held


async def test_a_stream_that_never_pauses(stage: Stage, how: str) -> None:
    """Somebody else is answered meanwhile, and its end is noticed as any other's."""
    script, mark = Upstream(a_flood), uuid4().hex
    async with stage.upstream(script):
        async with asking(stage, mark, stream=True) as client:
            reading = asyncio.create_task(client.end())
            await soon(script.arrived.wait())
            for _ in range(3):
                assert (await ask(stage.url, chat("somebody else"))).status == 200
            assert not reading.done()
            reading.cancel()
            await asyncio.wait([reading])
            client.leave(how)
            await soon(script.closed.wait())
        await check(stage, mark, status=200)


async def test_a_client_that_does_not_read(stage: Stage, how: str) -> None:
    """The proxy reads no faster than its client: what lies in between is bounded. Then that client leaves."""
    sent, mark = 0, uuid4().hex

    async def script(peer: Peer, received: Received) -> None:
        nonlocal sent
        await peer.send(STREAM)
        while True:
            await peer.send(chunk(event("x" * 10_000)))
            sent += 10_000
            assert sent < 100_000_000

    script_ = Upstream(script)
    async with stage.upstream(script_):
        async with asking(stage, mark, stream=True) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await soon(script_.arrived.wait())
            before = -1
            while before != sent:
                before = sent
                await turns(stage.url, 20)
            client.leave(how)
            await soon(script_.closed.wait())
        await check(stage, mark, status=200)


async def test_while_it_sends_its_request(stage: Stage, how: str) -> None:
    mark = uuid4().hex
    body = json.dumps({"model": "m", "messages": []}).encode()
    head = chat(headers={"x_request_id": mark, "content-length": "1000"}).partition(b"\r\n\r\n")[0]
    script = Upstream(silence)
    async with stage.upstream(script) as seen:
        async with connect(stage.url) as client:
            await client.send(head + b"\r\n\r\n" + body)
            await turns(stage.url)
            client.leave(how)
        line = await asyncio.to_thread(stage.proxy.program.line, request_id=mark)
        assert line["client_gone"] is True
        assert not seen.requests


async def test_with_another_request_behind_the_first(stage: Stage, how: str) -> None:
    """Pipelined: the second one waits for the first, and hides nothing."""
    script, mark = Upstream(one_event), uuid4().hex
    async with stage.upstream(script):
        async with asking(stage, mark, stream=True) as client:
            assert (await client.head()).status == 200
            assert await client.chunk() == event("Hello")
            await client.send(chat("pipelined"))
            await turns(stage.url)
            client.leave(how)
            await soon(script.closed.wait())
        await check(stage, mark, status=200)
