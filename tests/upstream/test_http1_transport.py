"""What only our own HTTP/1.1 client has: a parser for each answer, and a reader that is not drowned."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream import http1_transport
from proxy.upstream.head import Origin
from proxy.upstream.http1_transport import _Connection
from proxy.upstream.transport import TransportError
from tests.upstream.conftest import Open
from tests.upstream.scripted import CHUNKED, OK, Peer, answer, chunk, every_request, soon, upstream, whole

TRAILER = b"0\r\ncontent-type: evil\r\nx-trailer: 1\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport without a network. What is written is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.aborted = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self if name == "socket" else default

    def fileno(self) -> int:
        return 0

    def writelines(self, pieces: Any) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def open_connection() -> _Connection:
    connection = _Connection(asyncio.get_running_loop(), memoryview(bytearray(http1_transport._READ)))
    connection.opened(Wire())
    return connection


def receive(connection: _Connection, data: bytes) -> None:
    """As the event loop does it: through the buffer."""
    while data:
        buffer = connection.get_buffer(-1)
        taken = data[: len(buffer)]
        buffer[: len(taken)] = taken
        connection.buffer_updated(len(taken))
        data = data[len(taken) :]


@pytest.fixture
async def connection() -> _Connection:
    return open_connection()


def wire(connection: _Connection) -> Wire:
    transport: Any = connection._transport
    assert isinstance(transport, Wire)
    return transport


async def begun(connection: _Connection, data: bytes) -> http1_transport._Answer:
    """The answer to a request, of which this has come."""
    asking = asyncio.ensure_future(connection.ask((b"GET / HTTP/1.1\r\n\r\n", b"")))
    await asyncio.sleep(0)
    receive(connection, data)
    return await soon(asking)


async def rest(reply: http1_transport._Answer) -> bytes:
    return b"".join([data async for data in reply.chunks()])


WHOLE = {
    "length": answer(b"hello world"),
    "chunks": CHUNKED + chunk(b"hello ") + chunk(b"world") + chunk(b""),
    "extension": CHUNKED + b"5;a=b\r\nhello\r\n" + chunk(b" world") + chunk(b""),
    "trailers": CHUNKED + chunk(b"hello world") + TRAILER,
    "interim": b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\nx-early: 1\r\n\r\n" * 3 + answer(b"hello world"),
}


@pytest.mark.parametrize("reply", WHOLE.values(), ids=WHOLE)
async def test_an_answer_is_the_same_however_it_is_cut(reply: bytes):
    for at in range(1, len(reply)):
        connection = open_connection()
        asking = asyncio.ensure_future(connection.ask((b"", b"")))
        await asyncio.sleep(0)
        receive(connection, reply[:at])
        await asyncio.sleep(0)
        receive(connection, reply[at:])
        given = await soon(asking)
        assert (given.status, given.header("content-type"), given.header("x-early")) == (200, "text/plain", None)
        assert given.header("x-trailer") is None
        assert await rest(given) == b"hello world"
        assert connection.is_done()


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=8), st.integers(1, 30))
def test_a_chunked_body_is_what_was_sent(pieces: list[bytes], size: int):
    async def scenario() -> None:
        connection = open_connection()
        given = await begun(connection, CHUNKED)
        sent = b"".join(map(chunk, [*pieces, b""]))
        for at in range(0, len(sent), size):
            receive(connection, sent[at : at + size])
        assert await rest(given) == b"".join(pieces)
        assert connection.is_done()

    asyncio.run(scenario())


async def test_nothing_of_an_answer_is_a_part_of_the_next(open_http1: Open):
    async with upstream(every_request(CHUNKED + chunk(b"ok") + TRAILER)) as server:
        transport = open_http1(server.url)
        for _ in range(3):
            async with asyncio.timeout(5), transport.call("GET", "/", [], b"") as reply:
                assert [data async for data in reply.chunks()] == [b"ok"]
                assert (reply.header("content-type"), reply.header("x-trailer")) == ("text/plain", None)
    assert server.connections == 1


@pytest.mark.parametrize("more", [answer(b"two"), b"HTTP/1.1 200 OK\r\n", b"nonsense", b"\0"])
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
async def test_what_comes_behind_an_answer_ends_its_connection(connection: _Connection, more: bytes, apart: bool):
    given = await begun(connection, answer(b"one") if apart else answer(b"one") + more)
    if apart:
        assert connection.is_done()
        receive(connection, more)
    assert await rest(given) == b"one"
    assert not connection.is_done()
    assert wire(connection).aborted


async def test_what_comes_before_anything_was_asked_ends_the_connection(connection: _Connection):
    receive(connection, answer(b"one"))
    with pytest.raises(TransportError) as caught:
        await soon(connection.ask((b"", b"")))
    assert (caught.value.kind, connection.sent) == ("closed", False)


async def test_no_more_is_read_than_a_slow_reader_takes(connection: _Connection):
    most = http1_transport._MOST_HELD
    given = await begun(connection, OK + b"content-length: %d\r\n\r\n" % (3 * most))
    receive(connection, b"a" * most)
    assert wire(connection).reading
    receive(connection, b"b")
    assert not wire(connection).reading
    assert await anext(given) == b"a" * most + b"b"
    assert wire(connection).reading
    receive(connection, b"c" * (2 * most - 1))
    assert wire(connection).reading  # it is over
    assert await rest(given) == b"c" * (2 * most - 1)
    assert connection.is_done()


async def test_a_large_answer_leaves_its_connection_to_the_next(open_http1: Open):
    large = b"x" * 3_000_000
    async with upstream(every_request(answer(large))) as server:
        transport = open_http1(server.url)
        for _ in range(3):
            assert await whole(transport) == large
    assert server.connections == 1


BARREN = {
    "a head": OK,
    "a header": OK + b"x: ",
    "a chunk's size": CHUNKED + b"2;",
    "a trailer": CHUNKED + chunk(b"ok") + b"0\r\nx: ",
    "trailers": CHUNKED + chunk(b"ok") + b"0\r\n",
}


@pytest.mark.parametrize("start", BARREN.values(), ids=BARREN)
async def test_d12_bytes_that_bring_nothing_on_have_an_end(connection: _Connection, start: bytes):
    asking = asyncio.ensure_future(connection.ask((b"", b"")))
    await asyncio.sleep(0)
    receive(connection, start)
    more = b"y: 1\r\n" * 100 if start.endswith(b"\r\n") and not start.endswith(b"\r\n\r\n") else b"y" * 600
    sent = 0
    while not wire(connection).aborted and sent < 1_000_000:
        receive(connection, more)
        sent += len(more)
    assert sent < http1_transport._MOST_HEAD + 1000
    with pytest.raises(TransportError, match=r"not valid HTTP|without measure") as caught:
        await rest(await asking)
    assert (caught.value.kind, caught.value.answered) == ("protocol", True)


def long_head(headers: int, size: int) -> bytes:
    return OK + b"".join(b"x-%03d: %b\r\n" % (number, b"a" * (size - 5)) for number in range(headers)) + b"\r\n"


@pytest.mark.parametrize(
    ("head", "fits"),
    [
        (long_head(61, 1074), True),  # content-type is one more, of 22 bytes
        (long_head(61, 1074).replace(b"x-001: ", b"x-001: a"), False),
        (long_head(127, 100), True),
        (long_head(128, 100), False),
        (long_head(100, 100).replace(b"200 OK", b"103 Early Hints", 1) + long_head(100, 100), True),
    ],
    ids=["as large", "larger", "as many", "more", "two of them"],
)
async def test_d12_a_head_has_a_size_also_when_it_comes_at_once(connection: _Connection, head: bytes, fits: bool):
    asking = asyncio.ensure_future(connection.ask((b"", b"")))
    await asyncio.sleep(0)
    for start in range(0, len(head), http1_transport._READ):
        if not wire(connection).aborted:
            receive(connection, head[start : start + http1_transport._READ])
    if fits:
        assert (await asking).header("x-000")
        return
    with pytest.raises(TransportError, match="not valid HTTP") as caught:
        await asking
    assert caught.value.kind == "protocol"


@pytest.mark.parametrize("cleanly", [False, True])
async def test_what_was_wrong_is_told_however_late_it_is_heard(connection: _Connection, cleanly: bool):
    given = await begun(connection, CHUNKED + chunk(b"ok"))
    receive(connection, b"zz\r\n")
    connection.connection_lost(None if cleanly else ConnectionResetError())
    assert await anext(given) == b"ok"
    with pytest.raises(TransportError) as caught:
        await anext(given)
    assert caught.value.kind == "protocol"


async def test_an_answer_leaves_nothing_to_the_garbage_collector(connection: _Connection):
    async def exchange() -> None:
        assert await rest(await begun(connection, CHUNKED + chunk(b"ok") + chunk(b""))) == b"ok"

    await exchange()
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            await exchange()
        assert gc.collect() == 0
    finally:
        gc.enable()


async def test_nor_does_one_that_is_cut():
    """Its error has the frames it came through, and the answer is in them."""

    async def exchange() -> str:
        connection = open_connection()
        reply = await begun(connection, CHUNKED + chunk(b"ok"))
        connection.connection_lost(ConnectionResetError())
        try:
            await rest(reply)
        except TransportError as error:
            return error.kind
        return ""

    await exchange()
    gc.collect()
    gc.disable()
    try:
        assert [await exchange() for _ in range(10)] == ["closed"] * 10
        await asyncio.sleep(0)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert not [one for one in gc.garbage if isinstance(one, TransportError)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("when", ["head", "body"])
async def test_who_no_longer_waits_can_be_told_nothing(connection: _Connection, when: str):
    if when == "head":
        waiting: asyncio.Future[Any] = asyncio.ensure_future(connection.ask((b"", b"")))
    else:
        waiting = asyncio.ensure_future(anext(await begun(connection, CHUNKED)))
    await asyncio.sleep(0)
    waiting.cancel()
    receive(connection, CHUNKED if when == "head" else chunk(b"x"))  # within the same turn of the loop
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not connection.is_done()


@pytest.mark.parametrize(
    ("sent", "cleanly", "body"),
    [
        (OK + b"\r\nuntil the end", True, b"until the end"),
        (OK + b"\r\nuntil the end", False, None),
        (OK + b"transfer-encoding: identity\r\n\r\nx", True, None),
        (OK + b"content-length: 9\r\n\r\nx", True, None),
        (CHUNKED + chunk(b"x"), True, None),
    ],
)
async def test_only_what_has_no_length_is_whole_at_its_end(
    connection: _Connection, sent: bytes, cleanly: bool, body: bytes | None
):
    given = await begun(connection, sent)
    connection.connection_lost(None if cleanly else ConnectionResetError())
    if body is None:
        with pytest.raises(TransportError) as caught:
            await rest(given)
        assert (caught.value.kind, caught.value.answered) == ("closed", True)
    else:
        assert await rest(given) == body
    assert not connection.is_done()


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://localhost", "localhost"),
        ("http://localhost:80/", "localhost"),
        ("http://LOCALHOST:8080", "localhost:8080"),
        ("https://api.example:443/x y", "api.example"),
        ("https://api.example:444", "api.example:444"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_the_host_of_a_request(url: str, host: str):
    origin = Origin(url)
    prefix = b"/x%20y" if "x y" in url else b""
    assert origin.head("GET", "/v1", [], [], b"") == b"GET %b/v1 HTTP/1.1\r\nHost: %b\r\n\r\n" % (
        prefix,
        host.encode(),
    )


async def test_an_answer_without_a_length_that_we_end_is_not_whole(open_http1: Open):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"\r\npartial")
        await peer.gone()

    async with upstream(script) as server:
        transport = open_http1(server.url)
        with pytest.raises(TransportError) as caught:
            async with asyncio.timeout(5), transport.call("POST", "/", [], b"{}") as reply:
                pieces = reply.chunks()
                assert await anext(pieces) == b"partial"
                await transport.close()
                await anext(pieces)
    assert caught.value.kind == "closed"
