"""The client leaves, at any moment and in any way: the upstream call is closed and its place is free again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import psutil
import pytest

from proxy.core.errors import ClientGone
from proxy.core.model import Model
from proxy.core.table import Context
from proxy.guard import Deadlines, Guard
from proxy.providers.mistral.stream import ChatStream
from proxy.relay import Relay
from proxy.upstream import open_transport
from proxy.upstream.config import Config
from tests.conftest import start_proxy
from tests.e2e.conftest import PLACES, Stage
from tests.e2e.upstream import JSON, STREAM, Reply, completion, event, events, listener, prompt, upstream, url_of
from tests.e2e.wire import Connection, ask, chat, connect, soon, turns
from tests.upstream.scripted import Peer, Received, chunk

LEAVE = "leave"

ways = pytest.mark.parametrize("how", ["fin", "rst"])


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


@ways
@pytest.mark.parametrize(
    ("reply", "stream"),
    [(silence, False), (silence, True), (headers, True), (half_an_answer, False)],
    ids=["before headers", "stream, before headers", "stream, before the first event", "in a whole answer"],
)
async def test_e1_e3_before_the_client_has_anything(stage: Stage, how: str, reply: Reply, stream: bool) -> None:
    script, mark = Upstream(reply), uuid4().hex
    async with stage.upstream(script):
        async with asking(stage, mark, stream=stream) as client:
            await soon(script.arrived.wait())
            await turns(stage.url)
            client.leave(how)
            await soon(script.closed.wait())
        await check(stage, mark)


@ways
@pytest.mark.parametrize("reply", [one_event, half_an_event])
async def test_e2_in_the_middle_of_a_stream(stage: Stage, how: str, reply: Reply) -> None:
    script, mark = Upstream(reply), uuid4().hex
    async with stage.upstream(script):
        async with asking(stage, mark, stream=True) as client:
            assert (await client.head()).status == 200
            assert await client.chunk() == event("Hello")
            client.leave(how)
            await soon(script.closed.wait())
        await check(stage, mark, status=200)


@ways
async def test_e2_anywhere_in_a_stream(stage: Stage, how: str) -> None:
    """After any number of bytes, of an upstream that is silent there or goes on."""
    body, random = b"".join(events(20)), Random(how)
    for turn in range(20):
        sent = random.randrange(body.index(b"\n\n") + 2, len(body) - 20)
        whole = body.rindex(b"\n\n", 0, sent) + 2
        read, goes_on = random.randrange(1, whole), bool(turn % 2)
        sent = whole if goes_on else sent

        async def part(peer: Peer, received: Received, sent: int = sent, goes_on: bool = goes_on) -> None:
            await peer.send(STREAM + chunk(body[:sent]))
            while goes_on:
                await peer.send(chunk(b": still here\n\n"))
                await asyncio.sleep(0)

        script, mark = Upstream(part), uuid4().hex
        async with stage.upstream(script):
            async with asking(stage, mark, stream=True) as client:
                await client.head()
                await soon(client.reader.readexactly(read))
                client.leave(how)
                await soon(script.closed.wait())
            if turn > 17:
                await check(stage, mark, status=200)


@ways
async def test_e1_in_the_line_for_a_place(stage: Stage, how: str) -> None:
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


@ways
async def test_e7_a_stream_that_never_pauses(stage: Stage, how: str) -> None:
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


@ways
async def test_e6_a_client_that_does_not_read(stage: Stage, how: str) -> None:
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


@ways
async def test_e3_while_it_sends_its_request(stage: Stage, how: str) -> None:
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


@ways
async def test_e2_with_another_request_behind_the_first(stage: Stage, how: str) -> None:
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


@pytest.mark.parametrize("transport", ["http1", "httpx"])
async def test_e4_nothing_is_left_of_abandoned_streams(transport: str) -> None:
    """Guard, relay and pool in this process, where it can be seen: no task, no place, no connection."""
    random, body = Random(transport), b"".join(events(3))

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM + chunk(body[: random.randrange(1, len(body))]))
        await peer.gone()

    async def send(message: Any) -> None:
        await asyncio.sleep(0)

    async def abandoned(turns: int) -> None:
        async def receive() -> Any:
            for _ in range(turns):
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        with pytest.raises(ClientGone):
            with Guard(receive, Deadlines.together(60.0), guards) as guard:
                async with door.call("POST", "/", [], b"{}") as answer:
                    events = ChatStream(Context(Model("m"), {}, strict=False, notes={}))
                    await Relay(events, guard, send, bytes).run(answer)

    guards: set[Any] = set()
    with listener() as held:
        async with upstream(held, script):
            door: Any = open_transport(Config.model_validate({
                "base_url": url_of(held), "transport": transport, "max_connections": PLACES,
            }))  # fmt: skip
            before, files = asyncio.all_tasks(), psutil.Process().num_fds()
            for _ in range(50):
                await soon(asyncio.gather(*(abandoned(random.randrange(60)) for _ in range(2 * PLACES))))
            async with asyncio.timeout(20):
                while psutil.Process().num_fds() > files or asyncio.all_tasks() != before:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            assert not guards
            pool = door._pool
            assert pool._places.free == PLACES
            assert not pool._open
            assert not pool._idle
            await door.close()


async def test_e5_who_closes_one_half_has_left(stage: Stage) -> None:
    """HTTP would let such a client read on. No SDK does that, and it looks the same as one that is gone for good."""
    script, mark = Upstream(one_event), uuid4().hex
    async with stage.upstream(script):
        async with asking(stage, mark, stream=True) as client:
            assert (await client.head()).status == 200
            assert await client.chunk() == event("Hello")
            client.writer.write_eof()
            await soon(script.closed.wait())
            assert await client.end() == b""  # and not the end of a chunked body, which would look complete
        await check(stage, mark, status=200)


SLOW = 50
"""Clients that read nothing, or next to nothing."""


@pytest.fixture(params=["http1", "httpx"])
def alone(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A proxy whose memory nobody else uses, and that gives up soon."""
    config = """
server: {{port: 0}}
providers:
  mistral:
    base_url: {simulator}
    api_keys: ["${{PROVIDER_KEY}}"]
    retry: {{max_attempts: 1}}
    circuit_breaker: {{failure_threshold: 1000000}}
    transport: {transport}
    max_connections: 51
    timeouts: {{total: %s}}
teams: {{research: {{keys: ["${{TEAM_KEY}}"]}}}}
"""

    def start(total: str) -> Stage:
        started.append(Stage(start_proxy(tmp_path, url_of(held), request.param, config % total), held))
        return started[0]

    started: list[Stage] = []
    with listener() as held:
        yield start
        started[0].proxy.program.stop()


@asynccontextmanager
async def slow_readers(stage: Stage, flood: Flood) -> AsyncIterator[list[Connection]]:
    """SLOW clients that read the head of a stream and no more, once their upstream can send no more either."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(stage.url, receive=8192)) for _ in range(SLOW)]
        for client in clients:
            await client.send(chat(LEAVE, stream=True))
            await client.head()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        before = -1
        while before != flood.sent:
            before = flood.sent
            await turns(stage.url, 20)
        yield clients


class Flood:
    """An upstream that always has one more event; counts what it got rid of, and the calls that were closed."""

    def __init__(self) -> None:
        self.sent = self.closed = 0

    async def __call__(self, peer: Peer, received: Received) -> None:
        if prompt(received) != LEAVE:
            await peer.send(completion())
            return
        many = chunk(event("x" * 200)) * 50
        try:
            await peer.send(STREAM)
            while True:
                await peer.send(many)
                self.sent += len(many)
        finally:
            self.closed += 1


async def test_e6_what_slow_readers_make_the_proxy_hold(alone: Any) -> None:
    stage, flood = alone("60s"), Flood()
    process = psutil.Process(stage.proxy.program.process.pid)
    async with stage.upstream(flood):
        await turns(stage.url)
        before = process.memory_info().rss
        async with slow_readers(stage, flood) as clients:
            assert (process.memory_info().rss - before) / SLOW < 400_000
            assert (await ask(stage.url, chat("somebody else"))).status == 200
            for client in clients:
                client.leave("rst")
            async with asyncio.timeout(20):
                while flood.closed < SLOW:
                    await turns(stage.url, 1)


async def test_e6_at_the_deadline_a_client_that_does_not_read_holds_nothing(alone: Any) -> None:
    """It is still there, and the error frame waits for it; the upstream's connections and places do not."""
    stage, flood = alone("2s"), Flood()
    async with stage.upstream(flood), slow_readers(stage, flood):
        async with asyncio.timeout(20):
            while flood.closed < SLOW:
                await turns(stage.url, 1)
        answers = await soon(asyncio.gather(*(ask(stage.url, chat("after")) for _ in range(SLOW))))
        assert {answer.status for answer in answers} == {200}
