"""A signal: nothing new is taken, what is open may end, and the process ends with the code that a shell expects."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import TEAM_KEY, Proxy, start_proxy
from tests.e2e.conftest import PLACES, Stage
from tests.e2e.upstream import DONE, JSON, STREAM, event, listener, upstream, url_of
from tests.e2e.wire import CHAT, Connection, ask, chat, connect, request, soon, turns
from tests.programs import Program
from tests.upstream.scripted import Peer, Received, chunk

CONFIG = """
server: {{port: 0, drain: %s}}
providers:
  mistral:
    base_url: {simulator}
    api_keys: ["${{PROVIDER_KEY}}"]
    retry: {{max_attempts: 1}}
    circuit_breaker: {{failure_threshold: 1000000}}
    transport: {transport}
    max_connections: 4
teams: {{research: {{keys: ["${{TEAM_KEY}}"]}}}}
"""

Start = Callable[[str], Stage]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a proxy of its own for one test, with this `server.drain`."""
    started: list[Proxy] = []

    def start_one(drain: str, transport: str = "http1") -> Stage:
        started.append(start_proxy(tmp_path, url_of(held), transport, CONFIG % drain))
        return Stage(started[-1], held)

    with listener() as held:
        yield start_one
        for proxy in started:
            if proxy.program.process.poll() is None:
                proxy.program.process.kill()
            proxy.program.stop()


class Script:
    """One event; the rest of the stream when `release` is set."""

    def __init__(self) -> None:
        self.release, self.closed = asyncio.Event(), asyncio.Event()

    async def __call__(self, peer: Peer, received: Received) -> None:
        if not received.line.startswith(f"POST {CHAT}"):
            return
        gone = asyncio.create_task(peer.gone())
        await peer.send(STREAM + chunk(event("Hello")))
        release = asyncio.create_task(self.release.wait())
        await asyncio.wait({gone, release}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            release.cancel()
            self.closed.set()
            return
        await peer.send(chunk(event("", "stop")) + chunk(DONE) + chunk(b""))
        await gone


@asynccontextmanager
async def streaming(stage: Stage) -> AsyncIterator[tuple[Connection, Script, str]]:
    """A stream of which the client has the first event."""
    script, mark = Script(), uuid4().hex
    async with stage.upstream(script), connect(stage.url) as client:
        await client.send(chat(stream=True, headers={"x_request_id": mark}))
        assert (await client.head()).status == 200
        assert await client.chunk() == event("Hello")
        yield client, script, mark


async def closed_to_newcomers(url: str) -> None:
    """Wait until somebody new is sent away: told to go elsewhere, or not let in."""
    async with asyncio.timeout(20):
        while True:
            try:
                if (await ask(url, request(target="/health/ready"))).status == 503:
                    return
            except (ConnectionError, asyncio.IncompleteReadError):
                return


async def ends(stage: Stage) -> int:
    """The exit code as a shell reports it: 128 and the signal's number, if a signal ended the process."""
    code = await asyncio.to_thread(stage.proxy.program.process.wait, 20)
    await asyncio.to_thread(stage.proxy.program.stop)  # joins the readers of its output
    return code if code >= 0 else 128 - code


def frame(data: bytes) -> Any:
    """The error in the first of these two frames; the second one is [DONE]."""
    first, done, rest = data.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return json.loads(first.removeprefix(b"data: "))["error"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_k5_an_open_stream_ends_in_peace(start: Start, number: signal.Signals, code: int) -> None:
    stage = start("60s")
    async with streaming(stage) as (client, script, mark):
        stage.proxy.program.signal(number)
        await closed_to_newcomers(stage.url)
        with pytest.raises(ConnectionError):
            while True:
                async with connect(stage.url):
                    pass
        assert stage.proxy.program.process.poll() is None
        script.release.set()
        rest = b""
        while piece := await client.chunk():
            rest += piece
        assert rest == event("", "stop") + DONE
        assert await client.end() == b""
        assert await ends(stage) == code
    [line] = stage.proxy.program.logged(request_id=mark)
    assert line["status_code"] == 200
    assert "error_code" not in line
    assert not stage.proxy.program.err


async def test_k5_readiness_ends_at_once_even_on_a_connection_that_is_kept(start: Start) -> None:
    """A load balancer that keeps its connection learns it there, or from the connection's end."""
    stage = start("60s")
    async with streaming(stage) as (client, script, _), connect(stage.url) as balancer:
        await balancer.send(request(target="/health/ready"))
        assert (await balancer.answer()).status == 200
        stage.proxy.program.signal(signal.SIGTERM)
        status = 200
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            while True:
                await balancer.send(request(target="/health/ready"))
                answer = await balancer.answer()
                assert not (status == 503 and answer.status == 200)
                status = answer.status
        script.release.set()
        await client.end()
        assert await ends(stage) == 143


@pytest.mark.parametrize("transport", ["http1", "httpx"])
async def test_k5_a_stream_longer_than_the_drain_ends_with_an_error(start: Any, transport: str) -> None:
    stage = start("200ms", transport)
    async with streaming(stage) as (client, script, mark):
        stage.proxy.program.signal(signal.SIGTERM)
        error = frame(await client.chunk())
        assert (error["code"], error["type"]) == ("draining", "server_error")
        assert await client.chunk() == b""
        await soon(script.closed.wait())
        assert await ends(stage) == 143
    [line] = stage.proxy.program.logged(request_id=mark)
    assert (line["error_code"], line["status_code"]) == ("draining", 200)
    assert not stage.proxy.program.err


async def test_k5_what_waits_behind_a_stream_on_its_connection_never_begins(start: Start) -> None:
    """The connection ends with the answer before it, by which a client knows that it may ask again elsewhere."""
    stage = start("200ms")
    asked: list[str] = []

    async def script(peer: Peer, received: Received) -> None:
        asked.append(received.line)
        await peer.send(STREAM + chunk(event("Hello")))
        await peer.gone()

    async with stage.upstream(script), connect(stage.url) as client:
        await client.send(chat(stream=True) * 3)
        assert (await client.head()).status == 200
        assert await client.chunk() == event("Hello")
        stage.proxy.program.signal(signal.SIGTERM)
        assert frame(await client.chunk())["code"] == "draining"
        assert await client.chunk() == b""
        assert await client.end() == b""
        assert await ends(stage) == 143
    assert len(asked) == 1
    assert not stage.proxy.program.err


async def test_k5_what_has_not_begun_is_told_to_come_again(start: Start) -> None:
    """Requests that wait for the upstream, and one that waits for a place: an ordinary 503."""
    stage = start("200ms")
    arrived = asyncio.Semaphore(0)

    async def script(peer: Peer, received: Received) -> None:
        arrived.release()
        await peer.gone()

    async with stage.upstream(script):
        asked = [asyncio.create_task(ask(stage.url, chat(stream=i % 2 == 0))) for i in range(PLACES + 1)]
        for _ in range(PLACES):
            await soon(arrived.acquire())
        await turns(stage.url)
        stage.proxy.program.signal(signal.SIGTERM)
        answers = await soon(asyncio.gather(*asked))
        assert await ends(stage) == 143
    assert [answer.status for answer in answers] == [503] * (PLACES + 1)
    assert {answer.error()["code"] for answer in answers} == {"draining"}
    assert len(stage.proxy.program.logged(error_code="draining")) == PLACES + 1


async def test_k5_half_an_answer_is_not_passed_off_as_one(start: Start) -> None:
    stage = start("100ms")
    arrived = asyncio.Event()

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(JSON + b'content-length: 500\r\n\r\n{"id": "cmpl-1", ')
        arrived.set()
        await peer.gone()

    async with stage.upstream(script):
        asked = asyncio.create_task(ask(stage.url, chat()))
        await soon(arrived.wait())
        await turns(stage.url)
        stage.proxy.program.signal(signal.SIGTERM)
        answer = await soon(asked)
        assert (answer.status, answer.error()["code"]) == (503, "draining")
        assert await ends(stage) == 143


async def test_k5_a_request_whose_body_is_still_to_come_is_told_to_come_again(start: Start) -> None:
    stage = start("200ms")
    async with connect(stage.url) as client:
        await client.send(request("POST", CHAT, content_type="application/json", content_length="500") + b'{"model"')
        await turns(stage.url)
        stage.proxy.program.signal(signal.SIGTERM)
        answer = await client.answer()
        assert (answer.status, answer.error()["code"]) == (503, "draining")
    assert await ends(stage) == 143


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGTERM, signal.SIGTERM), 143),
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGTERM, signal.SIGINT), 143),
    ],
)
async def test_k7_a_second_signal_does_not_wait(start: Start, numbers: tuple[signal.Signals, ...], code: int) -> None:
    """What is open is told so, and the process ends though the drain would last a minute; the first signal counts."""
    stage = start("60s")
    async with streaming(stage) as (client, _, mark):
        stage.proxy.program.signal(numbers[0])
        await closed_to_newcomers(stage.url)
        stage.proxy.program.signal(numbers[1])
        assert frame(await client.chunk())["code"] == "draining"
        assert await ends(stage) == code
    [line] = stage.proxy.program.logged(request_id=mark)
    assert line["error_code"] == "draining"
    assert not stage.proxy.program.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_k5_with_nothing_open_it_ends_at_once(start: Start, number: signal.Signals, code: int) -> None:
    stage = start("60s")
    async with connect(stage.url) as idle:
        await idle.send(request())
        assert (await idle.answer()).status == 200
        await ask(stage.url, request(target="/nowhere", x_request_id="the-last-line"))
        stage.proxy.program.signal(number)
        assert await idle.end() == b""
        assert await ends(stage) == code
    assert stage.proxy.program.logged(request_id="the-last-line")
    assert not stage.proxy.program.err


async def test_k5_a_drain_of_nothing_ends_streams_at_once(start: Start) -> None:
    stage = start("0s")
    async with streaming(stage) as (client, _, _):
        stage.proxy.program.signal(signal.SIGTERM)
        assert frame(await client.chunk())["code"] == "draining"
        assert await ends(stage) == 143


async def test_k7_a_second_signal_does_not_wait_for_who_never_reads(start: Start) -> None:
    """Nor for a body that never comes: both are told what there is to tell, and cut."""
    stage = start("60s")

    async def flood(peer: Peer, received: Received) -> None:
        with suppress(ConnectionError):
            await peer.send(STREAM)
            while True:
                await peer.send(chunk(event("x" * 10_000)))

    async with stage.upstream(flood), connect(stage.url) as deaf, connect(stage.url) as slow:
        await deaf.send(chat(stream=True))
        await slow.send(request("POST", CHAT, content_type="application/json", content_length="500") + b"{")
        await turns(stage.url)
        stage.proxy.program.signal(signal.SIGTERM)
        await closed_to_newcomers(stage.url)
        stage.proxy.program.signal(signal.SIGTERM)
        assert (await slow.answer()).error()["code"] == "draining"
        assert await ends(stage) == 143


async def test_a_reload_during_the_drain_is_ignored(start: Start, tmp_path: Path) -> None:
    stage = start("60s")
    async with streaming(stage) as (client, script, _):
        stage.proxy.program.signal(signal.SIGTERM)
        await closed_to_newcomers(stage.url)
        file = tmp_path / "proxy.yaml"
        file.write_text(file.read_text() + "# changed\n")
        stage.proxy.program.signal(signal.SIGHUP)
        line = await asyncio.to_thread(lambda: stage.proxy.program.line(event="reload_ignored"))
        assert line["what"] == "the proxy is shutting down"
        script.release.set()
        await client.end()
        assert await ends(stage) == 143


# Many times: 50 starts, each with 100 streams that are open when the signal comes.

RESTARTS, AT_A_TIME, STREAMS = 50, 5, 100


class Wave:
    """Restarts that go in step: each moment comes when all are there for it."""

    def __init__(self) -> None:
        self.all = asyncio.Barrier(AT_A_TIME)
        self.beat, self.last = asyncio.Event(), asyncio.Event()

    async def __call__(self, peer: Peer, received: Received) -> None:
        """One event at once, one at the beat, and the end."""
        await peer.send(STREAM + chunk(event("Hello")))
        await self.beat.wait()
        await peer.send(chunk(event("still here")))
        await self.last.wait()
        await peer.send(chunk(event("", "stop")) + chunk(DONE) + chunk(b""))

    async def moment(self, come: asyncio.Event) -> None:
        await soon(self.all.wait())
        come.set()


async def one_restart(wave: Wave, proxy: Proxy) -> int:
    """Open the streams, signal; all go on, and end. How many came to their end."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(proxy.url)) for _ in range(STREAMS)]
        for client in clients:
            await client.send(chat(stream=True))
        for client in clients:
            assert (await client.head()).status == 200
            assert await client.chunk() == event("Hello")
        proxy.program.signal(signal.SIGTERM)
        await closed_to_newcomers(proxy.url)
        await wave.moment(wave.beat)
        for client in clients:
            assert await client.chunk() == event("still here")
        assert proxy.program.process.poll() is None
        await wave.moment(wave.last)
        rest = [await client.end() for client in clients]
    assert proxy.program.process.wait(20) in (143, -signal.SIGTERM)
    return sum(DONE in one and b"draining" not in one for one in rest)


async def test_k5_no_restart_cuts_a_stream(tmp_path: Path) -> None:
    config = (CONFIG % "60s").replace("max_connections: 4", f"max_connections: {STREAMS}")
    with listener() as held:
        for first in range(0, RESTARTS, AT_A_TIME):
            wave = Wave()
            folders = [tmp_path / str(first + number) for number in range(AT_A_TIME)]
            transports = ["httpx", *["http1"] * (AT_A_TIME - 1)]
            proxies = await asyncio.to_thread(started, folders, url_of(held), transports, config)
            try:
                async with upstream(held, wave):
                    ended = await asyncio.gather(*(one_restart(wave, proxy) for proxy in proxies))
                assert ended == [STREAMS] * AT_A_TIME
            finally:
                for proxy in proxies:
                    proxy.program.process.kill()
                    await asyncio.to_thread(proxy.program.stop)
            assert not any(proxy.program.err for proxy in proxies)


def started(folders: list[Path], url: str, transports: list[str], config: str) -> list[Proxy]:
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor() as threads:
        return list(
            threads.map(lambda one: start_proxy(one[0], url, one[1], config), zip(folders, transports, strict=True))
        )


async def test_k5_the_simulator_inside_lives_as_long_as_the_streams(tmp_path: Path) -> None:
    # Not the team of a start without a configuration: a name with a fault in it has no price.
    (tmp_path / "proxy.yaml").write_text('teams: {research: {keys: ["${TEAM_KEY}"]}}')
    program = Program("serve", "--simulate", "--port", "0", env={"TEAM_KEY": TEAM_KEY}, cwd=tmp_path)
    try:
        url, key = program.url(), TEAM_KEY
        async with connect(url) as client:
            model = "mistral-small-latest+events=30+delay=0.02"
            await client.send(chat(stream=True, model=model, headers={"authorization": f"Bearer {key}"}))
            answer = await client.head()
            await client.chunk()
            program.signal(signal.SIGTERM)
            while piece := await client.chunk():
                answer.chunks.append(piece)
        assert answer.chunks[-1] == DONE
        assert await asyncio.to_thread(program.stop) in (143, -signal.SIGTERM)
        assert not program.err
    finally:
        program.process.kill()
        program.stop()
