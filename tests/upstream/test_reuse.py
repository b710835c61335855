"""What only http1 and aiohttp do: use an HTTP/1.1 connection again, and know when not to."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress

import pytest

from proxy.upstream.transport import TransportError
from tests.upstream.conftest import Authority, Open
from tests.upstream.scripted import CHUNKED, OK, Peer, answer, chunk, every_request, soon, upstream, whole

WHOLE = {
    "length": answer(b"ok"),
    "chunked": CHUNKED + chunk(b"ok") + chunk(b""),
    "empty": answer(b""),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "an error": answer(b"no", b"HTTP/1.1 500 Oh\r\n"),
}
ENDING = {
    "connection: close": answer(b"ok", OK + b"connection: close\r\n"),
    "HTTP/1.0": answer(b"ok", b"HTTP/1.0 200 OK\r\n"),
}


async def test_the_bytes_of_a_request(open_reusing: Open):
    received: list[bytes] = []

    async def script(peer: Peer) -> None:
        received.append(await peer.reader.readuntil(b"{}"))
        await peer.send(answer(b"ok"))

    async with upstream(script) as server:
        await whole(open_reusing(server.url), path="/v1/x", headers=[("X-Name", "café")])
    host = b"localhost:%d" % server.port
    assert received == [
        b"POST /v1/x HTTP/1.1\r\nHost: " + host + b"\r\nX-Name: caf\xe9\r\nContent-Length: 2\r\n\r\n{}",
    ]


@pytest.mark.parametrize("reply", WHOLE.values(), ids=WHOLE)
async def test_a_whole_answer_leaves_the_connection_to_the_next_call(open_reusing: Open, reply: bytes):
    async with upstream(every_request(reply)) as server:
        transport = open_reusing(server.url)
        bodies = [await whole(transport) for _ in range(5)]
    assert len(set(bodies)) == 1
    assert server.connections == 1


async def test_a_connection_is_reused_under_tls(open_reusing: Open, authority: Authority):
    async with upstream(every_request(answer(b"ok")), authority.server()) as server:
        transport = open_reusing(server.url)
        for _ in range(5):
            await whole(transport)
    assert server.connections == 1


@pytest.mark.parametrize("reply", ENDING.values(), ids=ENDING)
async def test_a_connection_that_the_server_ends_is_not_reused(open_reusing: Open, reply: bytes):
    async with upstream(every_request(reply)) as server:
        transport = open_reusing(server.url)
        assert [await whole(transport) for _ in range(3)] == [b"ok"] * 3
    assert server.connections == 3


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used(open_reusing: Open):
    """The commonest upstream fault of all: a POST on a stale connection cannot be repeated without asking."""
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"ok"))
        await peer.cut()
        closed.set()

    async with upstream(script) as server:
        transport = open_reusing(server.url)
        for _ in range(20):
            assert await whole(transport) == b"ok"
            await soon(closed.wait())
            closed.clear()
    assert server.connections == 20


async def test_a_call_cancelled_on_a_reused_connection_closes_it(open_reusing: Open):
    """It has seen a whole answer: the one before."""
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"ok"))
        await peer.request()
        asked.set()
        await peer.gone()
        gone.set()

    async with upstream(script) as server:
        transport = open_reusing(server.url)
        await whole(transport)
        call = asyncio.create_task(whole(transport))
        await soon(asked.wait())
        call.cancel()
        await soon(gone.wait())
        assert await whole(transport) == b"ok"
    assert server.connections == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_nothing_is_asked_twice(open_reusing: Open, method: str):
    asked = 0

    async def script(peer: Peer) -> None:
        nonlocal asked
        await peer.request()
        await peer.send(answer(b"ok"))
        await peer.request()
        asked += 1

    async with upstream(script) as server:
        transport = open_reusing(server.url)
        await whole(transport, method=method)
        with pytest.raises(TransportError) as caught:
            await whole(transport, method=method)
    assert (caught.value.kind, asked, server.connections) == ("closed", 1, 1)
    assert caught.value.stale


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    "sent", [b"", b"H", b"HTTP/1.1 2", OK, b"HTTP/1.1 100 Continue\r\n\r\n", CHUNKED, CHUNKED + chunk(b"data")]
)
async def test_d6_a_connection_is_stale_only_while_nothing_of_the_answer_has_come(
    open_reusing: Open, authority: Authority, sent: bytes, tls: bool, reset: bool
):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"ok"))
        await peer.request()
        await peer.send(sent)
        if reset:
            await peer.cut()

    async with upstream(script, authority.server() if tls else None) as server:
        transport = open_reusing(server.url, max_connections=1)
        await whole(transport)
        with pytest.raises(TransportError) as caught:
            await whole(transport)
        assert caught.value.kind == "closed"
        if not reset or not sent:  # what was sent can be lost by a reset
            assert (caught.value.stale, caught.value.answered) == (not sent, bool(sent))


async def test_d6_a_fresh_call_takes_no_idle_connection(open_reusing: Open):
    async with upstream(every_request(answer(b"ok"))) as server:
        transport = open_reusing(server.url, max_connections=2)
        for count in (1, 1, 2, 2, 3):
            fresh = count > server.connections
            async with asyncio.timeout(5), transport.call("POST", "/", [], b"{}", fresh=fresh) as reply:
                assert [data async for data in reply.chunks()] == [b"ok"]
            assert server.connections == count


async def test_an_answer_that_comes_before_the_request_has_left(open_reusing: Open):
    """It is handed over, and the connection, on which the rest of the body is still to come, is closed."""
    gone: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(peer: Peer) -> None:
        if server.connections > 1:
            await every_request(answer(b"ok"))(peer)
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(answer(b"too large", b"HTTP/1.1 413 No\r\n"))
        gone.put_nowait(await peer.gone())

    async with upstream(script) as server:
        transport = open_reusing(server.url)
        large = b"x" * 16_000_000
        assert await whole(transport, body=large) == b"too large"
        assert len(await soon(gone.get())) < len(large)
        assert await whole(transport) == b"ok"


def one_answer(listener: socket.socket, context: ssl.SSLContext, reply: bytes, *, says_so: bool) -> None:
    """Accept one connection, answer, and send its end at once: asyncio's own servers wait for the client's first."""
    with suppress(OSError), context.wrap_socket(listener.accept()[0], server_side=True) as peer:
        peer.recv(1 << 16)
        peer.sendall(reply)
        if says_so:
            peer.settimeout(0)
            with suppress(OSError):
                peer.unwrap()
        socket.socket.shutdown(peer, socket.SHUT_WR)
        with suppress(OSError):
            peer.settimeout(5)
            while socket.socket.recv(peer, 1 << 16):
                pass


@pytest.mark.parametrize(
    "head", [OK, OK + b"connection: close\r\ncontent-length: 400000\r\n"], ids=["no length", "length"]
)
@pytest.mark.parametrize("says_so", [False, True], ids=["FIN", "close_notify"])
@pytest.mark.parametrize("turns", [0, 300], ids=["fast", "slow"])
async def test_under_tls_the_end_of_a_connection_takes_nothing_of_an_answer_with_it(
    open_reusing: Open, authority: Authority, head: bytes, says_so: bool, turns: int
):
    large, context = b"x" * 400_000, authority.server()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transport = open_reusing(f"https://localhost:{listener.getsockname()[1]}")
        for _ in range(5):
            serving = asyncio.create_task(
                asyncio.to_thread(one_answer, listener, context, head + b"\r\n" + large, says_so=says_so)
            )
            received = b""
            async with asyncio.timeout(10), transport.call("POST", "/", [], b"{}") as reply:
                async for data in reply.chunks():
                    received += data
                    for _ in range(turns):
                        await asyncio.sleep(0)
            assert received == large
            await serving
