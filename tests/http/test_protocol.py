"""The protocol alone: a connection whose client the test plays, and the application behind it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from proxy.core import departure
from proxy.core.errors import ProxyError
from proxy.http.framing import Limits, block_size, line_size
from proxy.http.protocol import LOOK, Protocol, send_away
from tests.fuzz.framing import App, connection, limits, settled
from tests.fuzz.requests import HIDDEN, attacks

SOON = 0.05
"""Seconds of a deadline that a test waits for."""

PATIENCE = 20.0

GET = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nhost: a\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"

Refusals = list[tuple[int, str | None, str, str]]


class Client:
    """One connection, from the client's side."""

    def __init__(self, app: Any = None, bounds: Limits | None = None, state: ServerState | None = None) -> None:
        self.refusals: Refusals = []
        self.app = app or App()
        kind = Protocol.bounded(bounds or Limits(), self._refused)
        self.protocol, self.wire = connection(self.app, kind, state)

    def _refused(self, error: ProxyError, request_id: str, client: str) -> None:
        self.refusals.append((error.status, error.code, request_id, client))

    async def send(self, *segments: bytes) -> list[int]:
        """The statuses of all answers so far."""
        for segment in segments:
            self.protocol.data_received(segment)
        await settled(self.protocol)
        return self.wire.statuses()

    def leave(self) -> None:
        self.wire.closed = True
        self.protocol.connection_lost(None)

    @property
    def is_over(self) -> bool:
        return self.wire.closed or self.wire.half_closed


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# Refusals.


async def test_a_request_is_answered_and_another_one_may_follow() -> None:
    client = Client()
    assert await client.send(GET) == [200]
    assert await client.send(POST + b"content-length: 3\r\n\r\nabc") == [200, 200]
    assert client.app.served == [("GET", "/health", b""), ("POST", "/x", b"abc")]
    assert not client.refusals
    assert not client.is_over


async def test_a_refusal_says_why_and_is_told_of() -> None:
    client = Client()
    assert await client.send(POST + b"transfer-encoding: gzip, chunked\r\n\r\n" + GET) == [400]
    [(status, code, request_id, address)] = client.refusals
    assert (status, code, address) == (400, "bad_framing", "192.0.2.7")
    head, _, body = bytes(client.wire.written).partition(b"\r\n\r\n")
    assert f"x-request-id: {request_id}".encode() in head
    assert b"x-proxy-decision: auth=none, fault=caller;code=bad_framing" in head
    assert b"connection: close" in head
    assert b"cache-control: no-store" in head
    assert b"content-length: %d" % len(body) in head
    assert not client.app.begun


async def test_nothing_behind_a_refusal_is_parsed() -> None:
    client = Client()
    await client.send(b"GET / HTTP/1.1\r\n\r\n" + GET, GET)
    assert await client.send(GET) == [400]
    assert client.is_over
    assert not client.app.begun


async def test_a_refusal_waits_for_the_answers_before_it() -> None:
    client = Client()
    client.app.go_on.clear()
    assert await client.send(GET + GET + b"garbage\r\n\r\n") == []
    client.app.go_on.set()
    await settled(client.protocol)
    assert client.wire.statuses() == [200, 200, 400]
    assert client.is_over


async def test_a_refused_head_request_gets_no_body() -> None:
    client = Client()
    assert await client.send(b"HEAD / HTTP/1.1\r\n\r\n") == [400]
    assert client.wire.written.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("chunk", [b"3\nabc\r\n", b"3\r\nabcd\r\n", b"0x3\r\n", b"-3\r\n", b"f" * 17 + b"\r\n"])
async def test_a5_a_request_with_a_bad_chunk_never_runs(chunk: bytes) -> None:
    client = Client()
    assert await client.send(POST + CHUNKED + chunk) == [400]
    assert not client.app.begun


@pytest.mark.parametrize("chunk", [b"3\nabc\r\n", b"3\r\nabcd\r\n"])
async def test_a5_a_bad_chunk_that_comes_later_ends_the_request(chunk: bytes) -> None:
    client = Client()
    assert await client.send(POST + CHUNKED, chunk) == [400]
    assert not client.app.served
    assert client.app.left == len(client.app.begun)


async def test_a5_a_bad_chunk_behind_a_request_is_for_its_own() -> None:
    client = Client()
    client.app.go_on.clear()
    await client.send(GET + POST + CHUNKED + b"3\nabc")
    client.app.go_on.set()
    await settled(client.protocol)
    assert client.wire.statuses() == [200, 400]
    assert client.app.served == [("GET", "/health", b"")]


PADDED = {
    "extension": b"3;x=" + b"y" * 1500 + b"\r\nabc\r\n0\r\n\r\n",
    "extension of the last one": b"3\r\nabc\r\n0;x=" + b"y" * 1500 + b"\r\n\r\n",
    "long extension": b"3;x=" + b"y" * 70_000 + b"\r\nabc\r\n0\r\n\r\n",
    "zeros": b"0" * 2000 + b"3\r\nabc\r\n0\r\n\r\n",
    "trailers": b"0\r\n" + b"x: y\r\n" * 300 + b"\r\n",
    "many extensions": b"1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\na\r\n" * 100
    + b"0\r\n\r\n",
}


@pytest.mark.parametrize("body", PADDED.values(), ids=PADDED)
@pytest.mark.parametrize("apart", [False, True])
async def test_a5_much_between_chunks_is_too_much(body: bytes, apart: bool) -> None:
    client = Client()
    head = POST + CHUNKED
    segments = [head, *(body[at : at + 100] for at in range(0, len(body), 100))] if apart else [head + body]
    assert await client.send(*segments) == [400]
    assert not client.app.served
    assert apart or not client.app.begun


async def test_a5_a_little_between_chunks_is_nothing() -> None:
    """Two thousand chunks of one byte, a few with a short extension; then the next request, and again."""
    client = Client()
    body = (b"1\r\nx\r\n" * 19 + b"1;a=b\r\nx\r\n") * 100 + b"0\r\nx-checksum: abc\r\n\r\n"
    for number in range(1, 4):
        assert await client.send(POST + CHUNKED + body) == [200] * number
    assert client.app.served == [("POST", "/x", b"x" * 2000)] * 3


SMALL = {
    "trailers": b"0\r\n" + b"x: y\r\n" * 300 + b"\r\n",
    "one trailer": b"0\r\nx: " + b"y" * 20_000 + b"\r\n\r\n",
    "extension": b"0;x=" + b"y" * 2000 + b"\r\n\r\n",
    "extensions": b"1;a=b\r\nx\r\n" * 400,
    "zeros": b"00001\r\nx\r\n" * 400,
}


@pytest.mark.parametrize("end", SMALL.values(), ids=SMALL)
async def test_a5_chunks_pay_for_nothing_but_themselves(end: bytes) -> None:
    """However many of them there are, and however small."""
    client = Client()
    assert await client.send(POST + CHUNKED, b"1\r\nx\r\n" * 8000, end) == [400]
    assert client.refusals[0][1] == "bad_framing"
    assert not client.app.served


async def test_a11_chunks_pay_for_no_head() -> None:
    client = Client()
    client.app.go_on.clear()
    await client.send(POST + CHUNKED + b"1\r\nx\r\n" * 8000 + b"0\r\n\r\n" + GET[:-2] + b"x: " + b"y" * 60_000)
    await until(lambda: client.protocol._refusal)
    client.app.go_on.set()
    await settled(client.protocol)
    assert client.wire.statuses() == [200, 431]


async def test_a5_no_head_is_between_the_chunks_of_the_next_request() -> None:
    client = Client()
    plain = GET[:-2] + b"x: %b\r\ncontent-length: 3\r\n\r\nabc" % (b"y" * 3000)
    assert await client.send(plain + POST + CHUNKED + b"3\r\nabc\r\n0\r\n\r\n") == [200, 200]


async def test_a5_tiny_chunks_do_not_keep_the_loop() -> None:
    """What is read from a socket at once holds forty thousand of them; others have their turns in between."""
    client = Client()
    body = b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n"
    client.protocol.data_received(POST + CHUNKED + body)
    assert not client.wire.reading
    turns = 0
    while not client.wire.statuses():
        await asyncio.sleep(0)
        turns += 1
        assert turns < 100
    assert turns >= 8
    assert client.app.served == [("POST", "/x", b"x" * 40_000)]
    assert client.wire.reading


async def test_a5_what_comes_meanwhile_waits_its_turn() -> None:
    client = Client()
    client.protocol.data_received(POST + CHUNKED + b"1\r\nx\r\n" * 10_000)
    for data in (b"0\r\n", b"\r\n", GET):
        client.wire.reading = True  # the application had asked for more
        client.protocol.data_received(data)
        assert not client.wire.reading
    assert await client.send() == [200, 200]
    assert client.app.served == [("POST", "/x", b"x" * 10_000), ("GET", "/health", b"")]
    assert client.wire.reading


@pytest.mark.parametrize(("leaves", "count"), [(True, 5000), (True, 40_000), (False, 40_000)])
async def test_a5_what_waits_for_its_turn_goes_with_its_connection(leaves: bool, count: int) -> None:
    async def hasty(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    client = Client(hasty)
    client.protocol.data_received(POST + CHUNKED + b"1\r\nx\r\n" * count + b"0\r\n\r\n" + GET)
    assert client.protocol._kept
    if leaves:
        client.leave()
    await settled(client.protocol)
    assert client.wire.statuses() == [401] * (not leaves)
    assert client.is_over
    assert not client.protocol._kept


async def test_a_large_chunk_is_read_at_once() -> None:
    client = Client()
    client.protocol.data_received(POST + CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (200_000, b"x" * 200_000))
    assert not client.protocol._kept
    assert await client.send() == [200]


@pytest.mark.parametrize("offer", [b"", b"connection: upgrade\r\nupgrade: h2c\r\n"])
async def test_a5_a_head_and_data_are_not_between_chunks(offer: bytes) -> None:
    client = Client()
    data = POST + b"x: %b\r\n" % (b"y" * 5000) + offer + CHUNKED + b"1388\r\n%b\r\n0\r\n\r\n" % (b"z" * 5000)
    assert await client.send(data) == [200]


async def test_a6_trailers_are_no_headers() -> None:
    client = Client()
    trailers = b"authorization: Bearer evil\r\nhost: b\r\nx-forwarded-for: 1.2.3.4\r\nexpect: 100-continue\r\n"
    assert await client.send(POST + CHUNKED + b"3\r\nabc\r\n0\r\n" + trailers + b"\r\n" + GET) == [200, 200]
    assert client.app.begun[0]["headers"] == [(b"host", b"a"), (b"transfer-encoding", b"chunked")]
    assert client.app.begun[1]["headers"] == [(b"host", b"a")]


@pytest.mark.parametrize("trailer", [b"content-length: 3", b"transfer-encoding: chunked", b"transfer-encoding: gzip"])
async def test_a6_a_trailer_that_would_move_the_end_is_refused(trailer: bytes) -> None:
    client = Client()
    assert await client.send(POST + CHUNKED + b"3\r\nabc\r\n0\r\n" + trailer + b"\r\n\r\n" + GET) == [400]
    assert not client.app.begun


@pytest.mark.parametrize("trailer", [b"connection: close", b"connection: upgrade\r\nupgrade: h2c"])
async def test_a6_no_trailer_leaves_a_connection_that_does_not_answer(trailer: bytes) -> None:
    client = Client()
    answers = await client.send(POST + CHUNKED + b"3\r\nabc\r\n0\r\n" + trailer + b"\r\n\r\n", GET)
    assert answers == [200, 200] or (answers == [200] and client.is_over)


# Sizes.


@pytest.mark.parametrize("size", [1, 1000, 100_000])
async def test_a11_a_long_target(size: int) -> None:
    data = b"GET /" + b"x" * 100_000
    client = Client()
    sent = 0
    while not client.is_over:
        assert sent < len(data)
        client.protocol.data_received(data[sent : sent + size])
        sent += size
    assert client.wire.statuses() == [414]
    assert client.refusals[0][1] == "uri_too_long"
    assert sent <= 64 * 1024 or size == 100_000


@pytest.mark.parametrize("size", [7, 1000, 1_000_000])
@pytest.mark.parametrize(
    "headers", [b"x: " + b"y" * 1_000_000, b"y" * 1_000_000, b"x: y\r\n" * 50_000, b"x:" + b" " * 1_000_000]
)
async def test_a11_a_header_block_that_does_not_end(size: int, headers: bytes) -> None:
    client = Client()
    head = GET[:-2]
    client.protocol.data_received(head)
    sent = len(head)
    while not client.is_over:
        assert headers
        client.protocol.data_received(headers[:size])
        headers, sent = headers[size:], sent + size
    assert client.wire.statuses() == [431]
    assert client.refusals[0][1] == "headers_too_large"
    assert block_size(client.protocol.headers) <= 64 * 1024
    assert sent <= 64 * 1024 or size == 1_000_000
    assert not client.app.begun


async def test_a11_heads_at_their_limits_are_served() -> None:
    bounds = Limits()
    line = b"/" + b"x" * (bounds.request_line - line_size(b"GET", b"/"))
    room = bounds.header_block - block_size([(b"host", b"a"), (b"x", b"")])
    client = Client()
    assert await client.send(b"GET %b HTTP/1.1\r\nhost: a\r\nx: %b\r\n\r\n" % (line, b"y" * room)) == [200]
    many = b"x: y\r\n" * (bounds.headers - 1)
    assert await client.send(b"GET / HTTP/1.1\r\nhost: a\r\n%b\r\n" % many) == [200] * 2
    assert await client.send(b"GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n%b\r\n" % many) == [200, 200, 431]


async def test_a_large_body_in_one_segment() -> None:
    client = Client()
    body = b"x" * 300_000
    assert await client.send(POST + b"content-length: %d\r\n\r\n" % len(body) + body + GET) == [200, 200]
    assert client.app.served[0][2] == body


# Deadlines.


async def test_a12_a_head_that_does_not_come_in_time() -> None:
    client = Client(bounds=limits(head=SOON))
    await client.send(b"GET / HTTP/1.1\r\nhost")
    await until(lambda: client.is_over)
    assert client.wire.statuses() == [408]
    assert client.refusals[0][:2] == (408, "request_timeout")


async def test_a12_drops_do_not_move_the_deadline() -> None:
    client = Client(bounds=limits(head=SOON))

    async def drip() -> None:
        client.protocol.data_received(b"GET / HTTP/1.1\r\nhost: a\r\nx: ")
        while not client.is_over:
            client.protocol.data_received(b"y")
            await asyncio.sleep(SOON / 10)

    await asyncio.wait_for(drip(), PATIENCE)
    assert client.wire.statuses() == [408]


@pytest.mark.parametrize("data", [b"", b"\r\n\r\n"])
async def test_a12_a_connection_without_a_request_is_closed_without_a_word(data: bytes) -> None:
    client = Client(bounds=limits(head=SOON))
    client.protocol.data_received(data)
    await until(lambda: client.is_over)
    assert not client.wire.written
    assert not client.refusals


async def test_a12_a_connection_that_was_used_has_the_same_deadline() -> None:
    client = Client(bounds=limits(head=SOON))
    assert await client.send(GET) == [200]
    await client.send(b"GET /")
    await until(lambda: client.is_over)
    assert client.wire.statuses() == [200, 408]


async def test_a12_nobody_is_late_who_is_being_answered() -> None:
    """Neither a slow answer nor a slow body nor a pause between two requests is a late head."""
    client = Client(bounds=limits(head=SOON))
    client.app.go_on.clear()
    await client.send(POST + b"content-length: 3\r\n\r\n")
    late = asyncio.get_running_loop().call_later(SOON * 3, client.app.go_on.set)
    await until(client.app.go_on.is_set)
    assert late.when()
    assert await client.send(b"abc") == [200]
    assert not client.is_over


async def test_a12_a_late_head_behind_a_request_does_not_disturb_it() -> None:
    client = Client(bounds=limits(head=SOON))
    client.app.go_on.clear()
    await client.send(GET + b"GET /")
    await until(lambda: client.protocol._refusal)
    assert not client.wire.written
    client.app.go_on.set()
    await settled(client.protocol)
    assert client.wire.statuses() == [200, 408]


def is_closed_when_idle(client: Client) -> bool:
    """Whether the connection ends now that nobody has said anything for as long as it is kept open."""
    crowd, loop = client.protocol.crowd, Later()
    send_away(crowd, loop, 0.0)
    return client.wire.closed


class Later:
    """A loop that tells a later time, and what is set for one."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, Any]] = []

    def time(self) -> float:
        return asyncio.get_running_loop().time() + 1

    def call_at(self, when: float, call: Callable[..., object], *arguments: Any) -> None:
        self.asked.append((when, call))


async def test_only_a_request_ends_the_wait_for_one() -> None:
    for stray, closed in ((b"", True), (b"\r\n", True), (b"G", False)):
        client = Client()
        await client.send(GET)
        await client.send(stray)
        assert is_closed_when_idle(client) is closed


async def test_a_request_that_began_before_the_last_answer_is_not_cut_off() -> None:
    """Half its head was here: the end of that answer is not the begin of a pause."""
    client = Client()
    client.app.go_on.clear()
    await client.send(GET + GET[:20])
    client.app.go_on.set()
    assert await client.send() == [200]
    client.app.go_on.clear()
    await client.send(GET[20:])
    assert len(client.app.begun) == 2
    assert not is_closed_when_idle(client)
    client.app.go_on.set()
    assert await client.send() == [200, 200]
    assert is_closed_when_idle(client)


async def test_one_timer_looks_after_all_idle_connections() -> None:
    client, loop = Client(), Later()
    await client.send(GET)
    crowd, now = client.protocol.crowd, loop.time()
    assert crowd.watched_by is asyncio.get_running_loop()
    send_away(crowd, loop, 75.0)
    assert not client.wire.closed
    [(when, call)] = loop.asked
    assert call is send_away
    assert crowd.watched_by not in (None, asyncio.get_running_loop())
    assert now + LOOK <= when <= now + 75
    send_away(crowd, loop, 0.0)
    assert client.wire.closed
    assert crowd.watched_by is None


async def test_nobody_waits_on_a_connection_that_is_lost() -> None:
    client = Client()
    await client.send(GET)
    client.wire.closed = True
    client.protocol.connection_lost(ConnectionResetError())
    assert client.protocol.crowd.tires_of(0.0) is None


async def test_a_head_in_one_piece_arms_no_timer() -> None:
    client = Client()
    await client.send(GET)
    loop, armed = asyncio.get_running_loop(), []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            if name == "call_later":
                armed.append(name)
            return getattr(loop, name)

    client.protocol.loop = Counting()  # type: ignore[assignment]
    client.protocol.data_received(GET)
    assert not armed


async def test_e6_the_kernel_keeps_no_megabytes_for_a_client() -> None:
    made: list[Protocol] = []

    def protocol() -> Protocol:
        made.append(connection(App())[0])
        return made[-1]

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await until(lambda: made and made[0]._late is False)
    sock = made[0].transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * Limits().send_buffer
    writer.close()
    server.close()
    await until(lambda: made[0].parser is None)


# The last request of a connection.


async def test_an_answer_before_the_body_ends_the_connection() -> None:
    async def hasty(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    client = Client(hasty, limits(linger=SOON))
    assert await client.send(POST + b"content-length: 100000\r\n\r\nabc") == [401]
    assert b"connection: close" in client.wire.written
    assert (client.wire.half_closed, client.wire.closed) == (True, False)
    client.wire.reading = False
    assert await client.send(b"x" * 99_997, GET) == [401]
    await until(lambda: client.wire.closed)


async def test_an_answer_that_has_said_it_is_the_last_is_the_last() -> None:
    """Though the body is here before the answer is complete."""
    go_on = asyncio.Event()

    async def hasty(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await go_on.wait()
        await send({"type": "http.response.body"})

    client = Client(hasty)
    await client.send(POST + b"content-length: 3\r\n\r\n")
    await client.send(b"abc")
    go_on.set()
    await settled(client.protocol)
    assert b"connection: close" in client.wire.written
    assert client.wire.statuses() == [401]
    assert client.is_over


async def test_a_whole_request_is_answered_without_closing() -> None:
    client = Client()
    assert await client.send(POST + b"content-length: 3\r\n\r\nab") == []
    assert await client.send(b"c") == [200]
    assert b"connection: close" not in client.wire.written


async def test_what_comes_behind_the_last_request_is_not_read() -> None:
    client = Client()
    assert await client.send(GET[:-2] + b"connection: close\r\n\r\n" + GET) == [200]
    assert len(client.app.begun) == 1
    assert client.is_over


async def test_after_shutdown_the_request_under_way_is_the_last() -> None:
    client = Client()
    client.app.go_on.clear()
    await client.send(POST + b"content-length: 3\r\n\r\n")
    client.protocol.shutdown()
    await client.send(b"abc")
    client.app.go_on.set()
    await settled(client.protocol)
    assert b"connection: close" in client.wire.written
    assert client.is_over


@pytest.mark.parametrize("behind", [GET, GET * 3, GET + b"garbage\r\n\r\n", GET + POST + CHUNKED + b"3\r\nab"])
async def test_after_shutdown_nothing_begins_that_waits(behind: bytes) -> None:
    client = Client()
    client.app.go_on.clear()
    await client.send(GET + behind)
    client.protocol.shutdown()
    client.app.go_on.set()
    assert await client.send(GET) == [200]
    assert len(client.app.begun) == 1
    assert not client.refusals
    assert client.is_over


async def test_a1_a2_a3_what_is_hidden_in_a_mutated_request_never_runs() -> None:
    """As tests/e2e/test_mutated_requests.py, where every one of them is looked at alone."""
    for segments in attacks(1, 5000, "localhost", "k" * 20):
        client = Client()
        await client.send(*segments)
        assert len(client.app.begun) <= 1, segments
        assert not any(HIDDEN in scope["path"] for scope in client.app.begun), segments
        client.leave()


# Pipelines.


async def test_a19_requests_are_answered_in_their_order() -> None:
    client = Client()
    data = b"".join(b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % number for number in range(5))
    assert await client.send(data) == [200] * 5
    assert [path for _, path, _ in client.app.served] == [f"/{number}" for number in range(5)]
    assert not client.is_over


async def test_more_than_a_few_are_not_read() -> None:
    client = Client()
    client.app.go_on.clear()
    await client.send(GET * 1000)
    client.app.go_on.set()
    await settled(client.protocol)
    most = Limits().waiting + 1
    assert client.wire.statuses() == [200] * most
    assert len(client.app.begun) == most
    assert client.is_over


BEHIND = {
    "one request": GET,
    "many requests": GET * 10,
    "a large body": POST + b"content-length: 200000\r\n\r\n" + b"x" * 200_000,
    "half a body": POST + b"content-length: 200000\r\n\r\n" + b"x" * 70_000,
    "garbage": b"garbage\r\n\r\n",
}


async def by_receiving(scope: Scope, receive: Receive, send: Send, gone: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def by_departure(scope: Scope, receive: Receive, send: Send, gone: asyncio.Event) -> None:
    """As a guard does (proxy/guard.py)."""
    told = departure.of(scope)
    assert told
    told.watch(gone.set)
    await gone.wait()


@pytest.mark.parametrize("waits", [by_receiving, by_departure])
@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
async def test_a_client_is_seen_to_leave_whatever_waits_behind_its_request(behind: bytes, waits: Any) -> None:
    gone = asyncio.Event()

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        await waits(scope, receive, send, gone)

    client = Client(waiting)
    await client.send(GET)
    await client.send(behind)
    assert client.wire.reading  # or its leaving could not be seen
    client.leave()
    await settled(client.protocol)
    assert gone.is_set()
    assert not client.protocol.tasks


@pytest.mark.parametrize("watches_first", [False, True])
async def test_a_client_is_seen_to_leave_in_the_middle_of_a_body_that_nobody_reads(watches_first: bool) -> None:
    watch, gone = asyncio.Event(), asyncio.Event()

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        await watch.wait()
        await by_departure(scope, receive, send, gone)

    client = Client(waiting)
    if watches_first:
        watch.set()
    await client.send(POST + b"content-length: 1000000\r\n\r\n" + b"x" * 100_000)
    watch.set()
    await asyncio.sleep(0)
    await client.send(b"x" * 100_000)
    assert client.wire.reading
    assert not gone.is_set()
    client.leave()
    await settled(client.protocol)
    assert gone.is_set()
    assert not client.protocol.tasks


async def test_who_watches_after_the_client_has_left_is_told_at_once() -> None:
    told = list[str]()
    client, watch = Client(), asyncio.Event()

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await watch.wait()
        found = departure.of(scope)
        assert found
        found.watch(lambda: told.append("gone"))

    client = Client(late)
    await client.send(GET)
    client.leave()
    watch.set()
    await settled(client.protocol)
    assert told == ["gone"]


async def test_nobody_is_told_who_has_stopped_watching_or_has_answered() -> None:
    told = list[str]()

    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        found = departure.of(scope)
        assert found
        found.watch(lambda: told.append("left"))
        if scope["path"] == "/x":
            found.ignore()
            await asyncio.Event().wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    answered, stopped = Client(answers), Client(answers)
    assert await answered.send(GET) == [204]
    await stopped.send(POST + b"content-length: 0\r\n\r\n")
    for client in (answered, stopped):
        client.leave()
    await asyncio.sleep(0)
    assert told == []
    for task in stopped.protocol.tasks:
        task.cancel()


async def test_a17_http_1_0_is_not_told_to_go_on() -> None:
    client = Client()
    head = b"POST / HTTP/1.0\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    assert await client.send(head) == []
    assert not client.wire.written
    assert await client.send(b"{}") == [200]


# Upgrades.


async def test_a20_an_offer_is_not_passed_on() -> None:
    client = Client()
    offer = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    assert await client.send(POST + offer + b"content-length: 3\r\n\r\nabc" + GET) == [200, 200]
    assert client.app.served[0] == ("POST", "/x", b"abc")
    assert client.app.begun[0]["headers"] == [(b"host", b"a"), (b"content-length", b"3")]


async def test_a20_offers_are_read_no_further_than_requests() -> None:
    client = Client()
    offer = b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
    assert await client.send(offer * 1000) == [200] * (Limits().waiting + 1)
    assert client.is_over


async def test_a20_an_offer_hides_nothing() -> None:
    client = Client()
    offer = b"connection: upgrade\r\nupgrade: h2c\r\n"
    assert await client.send(POST + offer + b"transfer-encoding: gzip, chunked\r\n\r\n" + GET) == [400]
    assert not client.app.begun


async def test_a10_no_tunnel_is_opened() -> None:
    client = Client()
    assert await client.send(b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n" + GET) == [405]
    assert b"allow: \r\n" in client.wire.written
    assert not client.app.begun


# Room.


def full(count: int) -> ServerState:
    state = ServerState()
    state.connections.update(range(count))  # type: ignore[arg-type]
    return state


async def test_a22_one_connection_too_many_is_told_so() -> None:
    client = Client(bounds=limits(connections=3, most_connections=9), state=full(3))
    assert await client.send(POST + b"content-length: 0\r\n\r\n") == [503]
    assert client.refusals[0][:2] == (503, "overloaded")
    assert b"retry-after: 1" in client.wire.written
    assert client.is_over


async def test_a22_the_others_are_served_and_so_is_it_once_they_are_fewer() -> None:
    state = full(2)
    bounds = limits(connections=3, most_connections=9)
    early, late = Client(bounds=bounds, state=state), Client(bounds=bounds, state=state)
    data = POST + b"content-length: 0\r\n\r\n"
    assert await early.send(data) == [200]
    early.leave()
    assert await late.send(data) == [200]


async def test_a22_a_probe_does_not_keep_a_place() -> None:
    client = Client(bounds=limits(connections=3, most_connections=9), state=full(3))
    assert await client.send(b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n") == [200]
    assert b"connection: close" in client.wire.written
    assert client.is_over


async def test_a22_of_far_too_many_the_oldest_that_says_nothing_goes() -> None:
    state = full(7)
    kind = Protocol.bounded(limits(connections=3, most_connections=9), lambda *_: None)
    app = App()
    app.go_on.clear()
    (busy, first), (silent, second), (_, third) = (connection(app, kind, state) for _ in range(3))
    assert (first.aborted, second.aborted, third.aborted) == (True, False, False)
    busy.connection_lost(None)
    silent.data_received(b"GET /health")  # not a whole head
    fourth = connection(app, kind, state)[1]
    assert (second.aborted, third.aborted, fourth.aborted) == (True, False, False)
    assert not second.written
    silent.data_received(GET)
    await settled(silent)
    assert not app.begun


async def test_a22_who_has_asked_does_not_give_way() -> None:
    state = full(7)
    kind = Protocol.bounded(limits(connections=9, most_connections=9), lambda *_: None)
    (asking, first), (_, second) = (connection(App(), kind, state) for _ in range(2))
    asking.data_received(GET[:9])
    asking.data_received(GET[9:])
    connection(App(), kind, state)
    assert (first.aborted, second.aborted) == (False, True)


async def test_a22_who_is_idle_makes_room() -> None:
    """The one that waits longest first; who is busy, who is told something and who has begun to ask stay."""
    state = full(0)
    kind = Protocol.bounded(limits(connections=4, most_connections=9), lambda *_: None)
    app = App()
    (busy, one), (asking, two), (slow, three), (idle, four) = (connection(app, kind, state) for _ in range(4))
    for protocol in (asking, slow, idle, busy):
        protocol.data_received(GET)
        await settled(protocol)
    three.unsent = 5
    asking.data_received(GET[:5])
    app.go_on.clear()
    busy.data_received(GET)
    late, five = connection(app, kind, state)
    post = POST + b"content-length: 0\r\n\r\n"
    app.go_on.set()
    late.data_received(post)
    await settled(late)
    assert five.statuses() == [200]
    assert not five.closed
    assert [wire.closed for wire in (one, two, three, four)] == [False, False, False, True]
    assert not four.aborted


async def test_a22_who_is_idle_and_gone_is_not_asked_to_go() -> None:
    state = full(0)
    bounds = limits(connections=1, most_connections=9)
    first = Client(bounds=bounds, state=state)
    kind = type(first.protocol)
    await first.send(GET)
    first.leave()
    state.connections.add(None)  # type: ignore[arg-type]
    late, wire = connection(App(), kind, state)
    late.data_received(POST + b"content-length: 0\r\n\r\n")
    assert wire.statuses() == [503]


async def test_a22_nobody_who_is_gone_is_counted() -> None:
    """Though the transport did not know yet that it is closed."""
    client = Client()
    await client.send(POST)  # half a head
    client.protocol.connection_lost(None)
    assert not client.protocol.crowd._strangers
    assert not client.protocol.crowd._idle


async def test_a22_who_is_only_thrown_away_makes_room_too() -> None:
    state = full(8)
    client = Client(bounds=limits(connections=9, most_connections=9), state=state)
    assert await client.send(POST + CHUNKED, b"not a size") == [400]
    assert not client.wire.closed
    assert not connection(App(), type(client.protocol), state)[1].aborted
    assert client.wire.aborted


async def test_a22_far_too_many_that_are_all_answered() -> None:
    client = Client(bounds=limits(connections=3, most_connections=9), state=full(9))
    assert client.wire.aborted
    assert not client.wire.written
    client.leave()
    assert len(client.protocol.connections) == 9


@pytest.mark.parametrize(
    ("address", "told"),
    [("::ffff:192.0.2.7", "192.0.2.7"), ("192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::1"), ("::1", "::1")],
)
async def test_a23_an_ipv4_address_looks_like_one(address: str, told: str) -> None:
    app = App()
    protocol, _ = connection(app, client=address)
    protocol.data_received(GET)
    await settled(protocol)
    assert app.begun[0]["client"] == (told, 4711)
