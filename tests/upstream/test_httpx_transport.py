"""What only the second transport does: HTTP/2, egress proxies, a connection per call; respx mocks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import respx

from proxy.upstream.transport import TransportError
from tests.upstream.conftest import Authority, Open
from tests.upstream.http2 import Stream, http2_upstream
from tests.upstream.scripted import Peer, answer, every_request, soon, upstream, whole

CHAT = "https://api.mistral.ai/v1/chat/completions"


# HTTP/1.1


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2 not offered by the server"])
async def test_an_http_1_1_connection_is_never_reused(open_httpx: Open, authority: Authority, http2: bool):
    async with upstream(every_request(answer(b"ok")), authority.server()) as server:
        transport = open_httpx(server.url, http2=http2, max_connections=1)
        assert [await whole(transport) for _ in range(5)] == [b"ok"] * 5
    assert server.connections == 5


async def test_the_deadline_for_connecting_is_over_when_the_request_is_sent(
    open_httpx: Open, authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    """The rest is the caller's to limit: a slow first byte is no slow connection."""
    deadlines: list[asyncio.Timeout] = []
    timeout = asyncio.timeout

    def watched(delay: float | None) -> asyncio.Timeout:
        made = timeout(delay)
        if delay == 77.0:
            deadlines.append(made)
        return made

    async def script(peer: Peer) -> None:
        await peer.request()
        during.append([deadline.when() for deadline in deadlines])
        await peer.send(answer(b"ok"))

    during: list[list[float | None]] = []
    monkeypatch.setattr(asyncio, "timeout", watched)
    async with upstream(script, authority.server()) as server:
        assert await whole(open_httpx(server.url, connect=77.0)) == b"ok"
    assert during == [[None]]


# HTTP/2


async def echo(stream: Stream) -> None:
    await stream.head()
    await stream.data(stream.body, end=True)


async def test_http2_carries_the_request_as_it_was_given(open_httpx: Open, authority: Authority):
    seen: list[Stream] = []

    async def script(stream: Stream) -> None:
        seen.append(stream)
        await stream.head(("x-id", "1"), ("x-id", "2"))
        await stream.data(b"ok", end=True)

    path, body = "/v1/a%2Fb/../c?x=%20", b"{}" * 50_000
    headers = [("Authorization", "Bearer k"), ("content-type", "application/json")]
    async with (
        http2_upstream(authority.server(), script) as (server, _),
        asyncio.timeout(5),
        open_httpx(server.url, http2=True).call("POST", path, headers, body) as reply,
    ):
        assert (reply.status, reply.header("x-id")) == (200, "1")
        assert [data async for data in reply.chunks()] == [b"ok"]
    pseudo = {":method": "POST", ":scheme": "https", ":path": path, ":authority": f"localhost:{server.port}"}
    fields = {"authorization": "Bearer k", "content-type": "application/json", "content-length": "100000"}
    assert [(stream.headers, stream.body) for stream in seen] == [(pseudo | fields, body)]


async def test_an_http2_connection_is_reused_by_one_call_at_a_time(open_httpx: Open, authority: Authority):
    async with http2_upstream(authority.server(), echo) as (server, _):
        transport = open_httpx(server.url, http2=True)
        assert [await whole(transport) for _ in range(5)] == [b"{}"] * 5
        assert server.connections < 5  # a frame that comes after the answer may cost a connection
        before = server.connections
        assert await soon(asyncio.gather(*[whole(transport) for _ in range(3)])) == [b"{}"] * 3
        assert server.connections >= before + 2


async def test_http2_chunks_arrive_as_they_are_sent(open_httpx: Open, authority: Authority):
    received = asyncio.Event()

    async def script(stream: Stream) -> None:
        await stream.head()
        for data in (b"data: 1\n\n", b"data: 2\n\n"):
            await stream.data(data)
            await soon(received.wait())
            received.clear()
        await stream.data(b"", end=True)

    chunks = []
    async with (
        http2_upstream(authority.server(), script) as (server, _),
        asyncio.timeout(5),
        open_httpx(server.url, http2=True).call("POST", "/", [], b"{}") as reply,
    ):
        async for data in reply.chunks():
            chunks.append(data)
            received.set()
    assert chunks == [b"data: 1\n\n", b"data: 2\n\n"]


@pytest.mark.parametrize("phase", ["headers", "body"])
async def test_a_cancelled_call_ends_at_the_http2_server_too(open_httpx: Open, authority: Authority, phase: str):
    stalled = asyncio.Event()

    async def script(stream: Stream) -> None:
        if phase == "body":
            await stream.head()
            await stream.data(b"data: 1\n\n")
        stalled.set()

    async with http2_upstream(authority.server(), script) as (server, gone):
        call = asyncio.create_task(whole(open_httpx(server.url, http2=True)))
        await soon(stalled.wait())
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await soon(gone.get())


async def test_leaving_before_the_end_closes_the_http2_connection(open_httpx: Open, authority: Authority):
    async def script(stream: Stream) -> None:
        await stream.head()
        await stream.data(b"data: 1\n\n")

    async with http2_upstream(authority.server(), script) as (server, gone):
        transport = open_httpx(server.url, http2=True)
        async with asyncio.timeout(5), transport.call("POST", "/", [], b"{}") as reply:
            async for _ in reply.chunks():
                break
        await soon(gone.get())


@pytest.mark.parametrize("way", ["go_away", "hang_up"])
async def test_an_http2_connection_that_the_server_left_is_not_used(open_httpx: Open, authority: Authority, way: str):
    left = asyncio.Event()

    async def script(stream: Stream) -> None:
        await echo(stream)
        try:
            await getattr(stream, way)()
        finally:  # the server ends a script with its connection
            left.set()

    async with http2_upstream(authority.server(), script) as (server, _):
        transport = open_httpx(server.url, http2=True)
        for _ in range(5):
            assert await whole(transport) == b"{}"
            await soon(left.wait())
            left.clear()
    assert server.connections == 5


@pytest.mark.parametrize("way", ["reset", "go_away"])
@pytest.mark.parametrize("begun", [False, True])
async def test_an_http2_answer_that_is_cut(open_httpx: Open, authority: Authority, way: str, begun: bool):
    async def script(stream: Stream) -> None:
        if begun:
            await stream.head()
            await stream.data(b"data: 1\n\n")
        await getattr(stream, way)()

    async with http2_upstream(authority.server(), script) as (server, _):
        with pytest.raises(TransportError) as caught:
            await whole(open_httpx(server.url, http2=True))
    assert caught.value.kind == "closed"
    assert not caught.value.stale  # the connection was a new one


@pytest.mark.parametrize(("way", "stale"), [("hang_up", True), ("reset", False)])
async def test_d6_an_http2_connection_is_stale_when_it_closes_not_when_it_resets_a_stream(
    open_httpx: Open, authority: Authority, way: str, stale: bool
):
    asked = 0

    async def script(stream: Stream) -> None:
        nonlocal asked
        asked += 1
        await (echo(stream) if asked % 2 else getattr(stream, way)())

    async with http2_upstream(authority.server(), script) as (server, _):
        transport = open_httpx(server.url, http2=True)
        reused = False
        while not reused:  # a frame that comes after the answer may cost a connection
            asked = 0
            assert await whole(transport) == b"{}"
            with pytest.raises(TransportError) as caught:
                await whole(transport)
            reused = caught.value.reused
    assert (caught.value.kind, caught.value.stale) == ("closed", stale)


async def test_an_http2_answer_shorter_than_it_said(open_httpx: Open, authority: Authority):
    async def script(stream: Stream) -> None:
        await stream.head(("content-length", "10"))
        await stream.data(b"short", end=True)

    async with http2_upstream(authority.server(), script) as (server, _):
        with pytest.raises(TransportError) as caught:
            await whole(open_httpx(server.url, http2=True))
    assert caught.value.kind == "protocol"


async def test_a_server_that_breaks_the_rules_of_http2(open_httpx: Open, authority: Authority):
    context = authority.server()
    context.set_alpn_protocols(["h2"])

    async def script(peer: Peer) -> None:
        await peer.send(bytes(9))  # a DATA frame on stream 0
        await peer.gone()

    async with upstream(script, context) as server:
        with pytest.raises(TransportError) as caught:
            await whole(open_httpx(server.url, http2=True))
    assert caught.value.kind == "protocol"


# egress proxies


class Egress:
    """An HTTP proxy that opens tunnels, or answers with something else."""

    def __init__(self, refusal: bytes | None = None) -> None:
        self.asked: list[str] = []
        self.refusal = refusal

    async def __call__(self, peer: Peer) -> None:
        request = await peer.request()
        self.asked.append(request.line)
        if self.refusal is not None:
            await peer.send(self.refusal)
            await peer.gone()
            return
        host, port = request.line.split()[1].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(copy(peer.reader, writer), copy(reader, peer.writer))


async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            target.write(data)
    finally:
        target.close()


async def test_through_an_egress_proxy(open_httpx: Open, authority: Authority):
    egress = Egress()
    async with upstream(every_request(answer(b"ok")), authority.server()) as server, upstream(egress) as proxy:
        transport = open_httpx(server.url, proxy_url=f"http://localhost:{proxy.port}")
        assert await whole(transport, headers=[("authorization", "Bearer k")]) == b"ok"
    assert egress.asked == [f"CONNECT localhost:{server.port} HTTP/1.1"]


async def test_an_egress_proxy_that_refuses(open_httpx: Open):
    egress = Egress(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
    async with upstream(egress) as proxy:
        transport = open_httpx("https://api.example", proxy_url=f"http://localhost:{proxy.port}")
        with pytest.raises(TransportError, match="egress proxy") as caught:
            await whole(transport)
    assert caught.value.kind == "connect"


async def test_an_egress_proxy_that_never_answers(open_httpx: Open):
    async with upstream(Egress(b"")) as proxy:
        transport = open_httpx("https://api.example", proxy_url=f"http://localhost:{proxy.port}", connect=0.05)
        with pytest.raises(TransportError) as caught:
            await whole(transport)
    assert caught.value.kind == "connect_timeout"


# mocked: what httpx2 raises and what becomes of it


async def test_respx_sees_the_request(open_httpx: Open, respx_mock: respx.MockRouter):
    route = respx_mock.post(CHAT).respond(201, headers={"x-id": "1"}, json={"id": "cmpl"})
    transport = open_httpx("https://api.mistral.ai")
    async with transport.call("POST", "/v1/chat/completions", [("authorization", "Bearer k")], b"{}") as reply:
        assert (reply.status, reply.header("x-id")) == (201, "1")
        assert b"".join([data async for data in reply.chunks()]) == b'{"id":"cmpl"}'
    (call,) = route.calls
    assert dict(call.request.headers) == {"host": "api.mistral.ai", "authorization": "Bearer k", "content-length": "2"}
    assert call.request.content == b"{}"


async def test_respx_streams(open_httpx: Open, respx_mock: respx.MockRouter):
    async def events() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        yield b"data: 2\n\n"
        raise httpx2.ReadError("reset")

    answered: Any = httpx2.Response(200, content=events())  # respx's annotations still mean httpx
    respx_mock.post(CHAT).mock(answered)
    async with open_httpx("https://api.mistral.ai").call("POST", "/v1/chat/completions", [], b"{}") as reply:
        chunks = reply.chunks()
        assert [await anext(chunks), await anext(chunks)] == [b"data: 1\n\n", b"data: 2\n\n"]
        with pytest.raises(TransportError) as caught:
            await anext(chunks)
    assert caught.value.kind == "closed"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx2.ReadError("x"), "closed"),
        (httpx2.WriteError("x"), "closed"),
        (httpx2.RemoteProtocolError("Server disconnected without sending a response."), "closed"),
        (httpx2.RemoteProtocolError("illegal status line"), "protocol"),
        (httpx2.LocalProtocolError("x"), "protocol"),
        (httpx2.ProxyError("407 Proxy Authentication Required"), "connect"),
        (OSError("x"), "closed"),
        (RuntimeError("x"), "protocol"),
    ],
)
async def test_every_error_becomes_ours(open_httpx: Open, respx_mock: respx.MockRouter, error: Exception, kind: str):
    respx_mock.post(CHAT).mock(side_effect=error)
    with pytest.raises(TransportError) as caught:
        await whole(open_httpx("https://api.mistral.ai"), path="/v1/chat/completions")
    assert caught.value.kind == kind
