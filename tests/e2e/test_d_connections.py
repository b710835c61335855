"""Faults of the connection to the upstream: every one is answered in time, and nobody else's answer is.

`stage` has deadlines that no test waits for; `hasty` has short ones, and no test waits long for those either.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trustme

from tests.conftest import OTHER_KEY, PROVIDER_KEY, TEAM_KEY, Proxy, start_proxy
from tests.e2e.conftest import PLACES, Stage
from tests.e2e.upstream import JSON, STREAM, Reply, completion, event, listener, prompt, url_of
from tests.e2e.wire import Answer, ask, chat, connect, request, soon, turns
from tests.programs import Program
from tests.upstream.conftest import Authority
from tests.upstream.scripted import Peer, Received, answer, chunk
from tests.upstream.test_tls import BAD

TRANSPORTS = ["http1", "httpx"]

HASTY = """
server: {{port: 0, drain: 60s}}
providers:
  mistral:
    base_url: {simulator}
    api_keys: ["${{PROVIDER_KEY}}"]
    retry: {{max_attempts: 1}}
    circuit_breaker: {{failure_threshold: 1000000}}
    transport: {transport}
    max_connections: 4
    timeouts: {{connect: 150ms, first_byte: 500ms, idle: 30s, total: 800ms}}
teams:
  research: {{keys: ["${{TEAM_KEY}}", "${{OTHER_KEY}}"]}}
"""


@contextmanager
def in_front_of(held: socket.socket, folder: Path, transport: str) -> Iterator[Stage]:
    proxy = start_proxy(folder, url_of(held), transport, HASTY)
    yield Stage(proxy, held)
    proxy.program.stop()


@pytest.fixture(scope="module", params=TRANSPORTS)
def hasty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with listener() as held, in_front_of(held, tmp_path_factory.mktemp("hasty"), request.param) as stage:
        yield stage


def failed(answer: Answer, status: int, timeout: str | None = None) -> None:
    error = answer.error()
    code = {502: "upstream_error", 504: "upstream_timeout"}[status]
    assert (answer.status, error["type"], error["code"]) == (status, "server_error", code)
    assert error.get("timeout") == timeout


async def both(url: str) -> list[Answer]:
    """What a request and a request for a stream are told, by two teams' keys."""
    return [
        await ask(url, chat(stream=stream, headers={"authorization": f"Bearer {key}"}))
        for stream, key in ((False, TEAM_KEY), (True, OTHER_KEY))
    ]


# no connection


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_d1_refused(transport: str, tmp_path: Path) -> None:
    with socket.socket() as held:  # bound and not listening
        held.bind(("127.0.0.1", 0))
        with in_front_of(held, tmp_path, transport) as stage:
            for told in await both(stage.url):
                failed(told, 502)
                assert told.header("x-proxy-attempts") == "1"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_d2_a_host_that_swallows_connections(transport: str, tmp_path: Path) -> None:
    """A full backlog: the kernel drops what else wants to connect, as a firewall does."""
    with ExitStack() as stack:
        held = stack.enter_context(socket.socket())
        held.bind(("127.0.0.1", 0))
        held.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(held.getsockname())
        stage = stack.enter_context(in_front_of(held, tmp_path, transport))
        for told in await both(stage.url):
            failed(told, 504, "connect")
        # More than there are places: whoever waits for one is told so, and all places are free in the end.
        crowd = await asyncio.gather(*(ask(stage.url, chat()) for _ in range(3 * PLACES)))
        assert {told.status for told in crowd} <= {503, 504}
        failed(await ask(stage.url, chat()), 504, "connect")


# TLS, in an environment that would have it otherwise


@dataclass
class Guarded:
    """A proxy that speaks TLS with its upstream, in an environment full of traps."""

    proxy: Proxy
    held: socket.socket
    authority: Authority
    keylog: Path

    @asynccontextmanager
    async def served(self, context: ssl.SSLContext, script: Callable[[Peer], Awaitable[object]]) -> AsyncIterator[None]:
        writers: list[asyncio.StreamWriter] = []
        ended = asyncio.Semaphore(0)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                await script(Peer(reader, writer))
            await Peer(reader, writer).cut()
            ended.release()

        server = await asyncio.start_server(serve, sock=self.held.dup(), ssl=context)
        yield
        server.close()
        for writer in writers:
            writer.transport.abort()
            await soon(ended.acquire())
        await server.wait_closed()


@pytest.fixture(scope="module", params=TRANSPORTS)
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    authority = Authority(trustme.CA())
    authority.ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    netrc = folder / "netrc"
    netrc.write_text("machine localhost login someone password from-netrc\n")
    netrc.chmod(0o600)
    env = {"PROVIDER_KEY": PROVIDER_KEY, "TEAM_KEY": TEAM_KEY, "OTHER_KEY": OTHER_KEY}
    env |= {"SSL_CERT_FILE": str(folder / "ca.pem"), "SSLKEYLOGFILE": str(folder / "keys"), "NETRC": str(netrc)}
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        env |= dict.fromkeys((name, name.lower()), "http://127.0.0.1:1")
    with listener() as held:
        url = f"https://localhost:{held.getsockname()[1]}"
        (folder / "proxy.yaml").write_text(HASTY.format(simulator=url, transport=request.param))
        program = Program("serve", env=env, cwd=folder)
        yield Guarded(Proxy(program.url(), program), held, authority, folder / "keys")
        program.stop()


@pytest.mark.parametrize("context", [bad for bad, _ in BAD.values()], ids=BAD)
async def test_d4_a_server_that_cannot_be_trusted_gets_no_byte(guarded: Guarded, context: Any) -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.gone())

    async with guarded.served(context(guarded.authority), script):
        for told in await both(guarded.proxy.url):
            failed(told, 502)
    assert b"".join(seen) == b""


async def test_d4_a_handshake_that_is_cut(guarded: Guarded) -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1 << 16))
        writer.transport.abort()

    server = await asyncio.start_server(serve, sock=guarded.held.dup())
    for told in await both(guarded.proxy.url):
        failed(told, 502)
    server.close()
    await server.wait_closed()
    assert seen
    assert PROVIDER_KEY.encode() not in b"".join(seen)


async def test_d5_the_environment_decides_nothing(guarded: Guarded) -> None:
    seen: list[Received] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.send(completion("Safe."))
        await peer.gone()

    async with guarded.served(guarded.authority.server(), script):
        told = await ask(guarded.proxy.url, chat())
    assert told.json()["choices"][0]["message"]["content"] == "Safe."
    assert [one.header("authorization") for one in seen] == [f"Bearer {PROVIDER_KEY}"]
    assert not guarded.keylog.exists()


# a connection that closes


@pytest.fixture
def reuses(request: pytest.FixtureRequest) -> bool:
    """Whether the transport uses an HTTP/1.1 connection again; httpx never does."""
    return bool(request.node.callspec.params["stage"] == "http1")


class Closing:
    """Answers `hello`, two at a time. Anything else meets `bad` if it is among the requests `at` of its connection."""

    def __init__(self, bad: Reply, at: tuple[int, ...]) -> None:
        self.asked: list[str] = []
        self._bad, self._at = bad, at
        self._counts: dict[asyncio.StreamWriter, int] = {}
        self._two = asyncio.Barrier(2)

    async def __call__(self, peer: Peer, received: Received) -> None:
        count = self._counts[peer.writer] = self._counts.get(peer.writer, 0) + 1
        if prompt(received) == "hello":
            await soon(self._two.wait())
        else:
            self.asked.append(prompt(received))
            if count in self._at:
                await self._bad(peer, received)
        await peer.send(completion())


async def close(peer: Peer, received: Received) -> None:
    raise ConnectionError


async def reset(peer: Peer, received: Received) -> None:
    await peer.cut()
    raise ConnectionError


async def two_idle(stage: Stage) -> None:
    """Leave the proxy with two connections that may be used again."""
    told = await asyncio.gather(*(ask(stage.url, chat("hello")) for _ in range(2)))
    assert [one.status for one in told] == [200] * 2


@pytest.mark.parametrize("bad", [close, reset])
async def test_d6_a_new_connection_that_closes_without_an_answer(stage: Stage, bad: Reply) -> None:
    """Its request may have been heard, so it is not sent twice."""
    script = Closing(bad, (1,))
    async with stage.upstream(script):
        for stream in (False, True):
            told = await ask(stage.url, chat("x", stream=stream))
            failed(told, 502)
            assert told.header("x-proxy-attempts") == "1"
    assert script.asked == ["x"] * 2


@pytest.mark.parametrize("bad", [close, reset])
async def test_d6_a_stale_connection_costs_one_more_attempt_on_a_fresh_one(
    stage: Stage, bad: Reply, reuses: bool
) -> None:
    script = Closing(bad, (2, 3))
    async with stage.upstream(script) as seen:
        await two_idle(stage)
        told = await ask(stage.url, chat("x"))
        assert told.status == 200
        assert told.header("x-proxy-attempts") == ("2" if reuses else "1")
        assert script.asked == ["x"] * (2 if reuses else 1)
        assert seen.connections == 3  # though another one was idle


@pytest.mark.parametrize("bad", [close, reset])
async def test_d6_there_is_no_third_attempt(stage: Stage, bad: Reply, reuses: bool) -> None:
    script = Closing(bad, (1, 2, 3))
    async with stage.upstream(script):
        await two_idle(stage)
        told = await ask(stage.url, chat("x"))
        failed(told, 502)
        assert told.header("x-proxy-attempts") == ("2" if reuses else "1")
        assert script.asked == ["x"] * (2 if reuses else 1)


@pytest.mark.parametrize(
    "sent", [b"HTTP/1.1 2", b"HTTP/1.1 100 Continue\r\n\r\n", JSON + b"content-length: 9\r\n\r\n{"]
)
async def test_d6_an_answer_that_had_begun_is_not_asked_for_again(stage: Stage, sent: bytes) -> None:
    async def bad(peer: Peer, received: Received) -> None:
        await peer.send(sent)
        raise ConnectionError

    script = Closing(bad, (1, 2, 3))
    async with stage.upstream(script):
        await two_idle(stage)
        failed(await ask(stage.url, chat("x")), 502)
    assert script.asked == ["x"]


# a client that leaves while the second call of its request is under way


class Leaving:
    """Refuses the first call as `first` says, then keeps silent, and notes that the second call was closed."""

    def __init__(self, first: Reply) -> None:
        self.waiting, self.closed = asyncio.Event(), asyncio.Event()
        self._first: Reply | None = first

    async def __call__(self, peer: Peer, received: Received) -> None:
        body = json.loads(received.body)
        if body["model"] == "free":
            await peer.send(completion())
            return
        first, self._first = self._first, None
        if first:
            await first(peer, received)
            return
        self.waiting.set()
        await peer.gone()
        self.closed.set()


async def unknown_seed(peer: Peer, received: Received) -> None:
    detail = {"type": "extra_forbidden", "loc": ["body", "random_seed"], "msg": "Extra inputs are not permitted"}
    await peer.send(answer(json.dumps({"detail": [detail]}).encode(), b"HTTP/1.1 422 No\r\n"))


async def vectors(peer: Peer, received: Received) -> None:
    texts = json.loads(received.body)["input"]
    rows = [{"object": "embedding", "index": at, "embedding": [0.5]} for at in range(len(texts))]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    body = {"object": "list", "data": rows, "model": "mistral-embed", "usage": usage}
    await peer.send(answer(json.dumps(body).encode(), JSON))


EMBED = json.dumps({"model": "mistral-embed", "input": ["x"] * 300}).encode()
SECOND = {
    "a mended body": (unknown_seed, chat("x", seed=1)),
    "a mended stream": (unknown_seed, chat("x", stream=True, seed=1)),
    "a batch": (vectors, request("POST", "/v1/embeddings", EMBED)),
    "a stale connection": (close, chat("x")),
}


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize(("first", "data"), SECOND.values(), ids=SECOND)
async def test_d6_a_client_that_leaves_during_the_second_call(
    stage: Stage, first: Reply, data: bytes, how: str, reuses: bool
) -> None:
    if first is close and not reuses:
        return
    mark, script = uuid4().hex, Leaving(first)
    data = data.replace(b"\r\n", f"\r\nx-request-id: {mark}\r\n".encode(), 1)
    async with stage.upstream(script):
        assert (await ask(stage.url, chat(model="free"))).status == 200
        async with connect(stage.url) as client:
            await client.send(data)
            await soon(script.waiting.wait())
            client.leave(how)
            await soon(script.closed.wait())
        line = await asyncio.to_thread(stage.proxy.program.line, request_id=mark)
        assert (line["client_gone"], line["attempts"]) == (True, 2)
        told = await asyncio.gather(*(ask(stage.url, chat(model="free")) for _ in range(2 * PLACES)))
        assert [one.status for one in told] == [200] * 2 * PLACES


async def test_d25_a_client_that_does_not_read_holds_nothing_of_the_upstream(stage: Stage) -> None:
    """As many as there are places, each with an answer larger than all buffers on its way."""
    large = completion("x" * 16_000_000)

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(large if prompt(received) == "large" else completion())

    async with stage.upstream(script), AsyncExitStack() as stack:
        for _ in range(PLACES):
            client = await stack.enter_async_context(connect(stage.url))
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(chat("large"))
        told = await asyncio.gather(*(ask(stage.url, chat("small")) for _ in range(2 * PLACES)))
        assert [one.status for one in told] == [200] * 2 * PLACES


# an upstream that takes its time


async def silent(peer: Peer, received: Received) -> None:
    """Not even headers."""


async def only_headers(peer: Peer, received: Received) -> None:
    await peer.send(STREAM if json.loads(received.body).get("stream") else JSON + b"content-length: 9\r\n\r\n")


async def only_interim(peer: Peer, received: Received) -> None:
    await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3)


@pytest.mark.parametrize("bad", [silent, only_headers, only_interim])
async def test_d7_no_first_byte(hasty: Stage, bad: Reply) -> None:
    closed: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(peer: Peer, received: Received) -> None:
        await bad(peer, received)
        closed.put_nowait(await peer.gone())

    async with hasty.upstream(script):
        for told in await both(hasty.url):
            failed(told, 504, "first_byte")
            await soon(closed.get())


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_d24_an_answer_that_drips(hasty: Stage, stream: bool) -> None:
    """Each byte comes in time, and the whole never does."""
    closed = asyncio.Event()

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(STREAM + chunk(event("Hello")) if stream else JSON + b"content-length: 100000\r\n\r\n{")
        with suppress(ConnectionError):
            while True:
                await peer.send(chunk(b":") if stream else b" ")
                await turns(hasty.url, 1)
        closed.set()

    async with hasty.upstream(script):
        told = await ask(hasty.url, chat(stream=stream))
        await soon(closed.wait())
    if not stream:
        failed(told, 504, "total")
        return
    first, frame, done, _ = told.body.split(b"\n\n")
    assert (first + b"\n\n", done) == (event("Hello"), b"data: [DONE]")
    assert json.loads(frame.removeprefix(b"data: "))["error"]["timeout"] == "total"


# redirects, and answers that come too early


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_d22_a_redirect_is_not_followed(stage: Stage, status: int) -> None:
    elsewhere = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal elsewhere
        elsewhere += 1
        writer.close()

    other = await asyncio.start_server(count, "127.0.0.1", 0)
    target = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}/v1/chat/completions"

    async def script(peer: Peer, received: Received) -> None:
        await peer.send(answer(b"moved", b"HTTP/1.1 %d Moved\r\nlocation: %b\r\n" % (status, target.encode())))

    async with stage.upstream(script) as seen:
        for told in await both(stage.url):
            failed(told, 502)
            assert told.header("location") is None
            assert target not in told.body.decode()
    other.close()
    await other.wait_closed()
    assert (len(seen.requests), elsewhere) == (2, 0)


async def test_d26_an_answer_before_the_request_is_whole(stage: Stage, reuses: bool) -> None:
    """It is passed on, the rest of the upload is dropped with its connection, and the place is free again.

    httpx sends all before it reads: there the upstream has to take it.
    """
    gone: asyncio.Queue[int] = asyncio.Queue()
    large = chat("x" * 9_000_000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Left to itself the kernel may take all of it, before anybody has looked at the answer.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        peer = Peer(reader, writer)
        await reader.readuntil(b"\r\n\r\n")
        await peer.send(answer(b'{"message": "too large"}', b"HTTP/1.1 413 No\r\n"))
        if reuses:
            await soon(taken.wait())
        gone.put_nowait(len(await peer.gone()))
        writer.close()

    taken = asyncio.Event()
    async with await asyncio.start_server(serve, sock=stage.held.dup(), limit=1 << 16):
        for _ in range(2 * PLACES):
            taken.clear()
            told = await ask(stage.url, large)
            assert (told.status, told.error()["code"]) == (413, "body_too_large")
            taken.set()
            assert (await soon(gone.get()) < 9_000_000) == reuses
