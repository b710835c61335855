"""What an answer looks like on its way to a client, by the protocol that writes it."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from proxy.core.arrived import arrived
from proxy.http.answer import LARGE
from proxy.http.protocol import Protocol
from tests.fuzz.framing import App, Wire, connection, settled

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n"


def start(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes = b"", more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def sent(*messages: Message | Exception, request: bytes = GET) -> Wire:
    """What a client gets of an application that says this."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            if isinstance(message, Exception):
                raise message
            await send(message)

    protocol, wire = connection(app)
    protocol.data_received(request)
    await settled(protocol)
    return wire


def of_head(wire: Wire) -> list[bytes]:
    """Its lines, without the date, which another test looks at."""
    return [line for line in bytes(wire.written).partition(b"\r\n\r\n")[0].split(b"\r\n") if line[:5] != b"date:"]


async def test_the_head_goes_with_the_first_piece() -> None:
    wire = await sent(start(), body(b"one", more=True), body(b"two", more=True), body())
    head, _, rest = bytes(wire.written).partition(b"\r\n\r\n")
    assert rest == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert wire.writes == [len(head) + 4 + 8, 8, 5]
    assert of_head(wire) == [b"HTTP/1.1 200 OK", b"transfer-encoding: chunked"]
    assert not wire.closed


async def test_a_large_piece_is_not_copied() -> None:
    wire = await sent(start((b"content-length", b"%d" % (LARGE + 1))), body(bytes(LARGE + 1)))
    assert wire.writes[1:] == [LARGE + 1]


@pytest.mark.parametrize("status", [204, 304])
async def test_what_has_no_body_has_no_length_either(status: int) -> None:
    wire = await sent(start(status=status), body())
    assert len(of_head(wire)) == 1
    assert len(wire.writes) == 1
    assert not wire.closed


async def test_head_gets_the_head_and_no_body() -> None:
    wire = await sent(start((b"content-length", b"5")), body(b"hello"), request=HEAD)
    assert of_head(wire) == [b"HTTP/1.1 200 OK", b"content-length: 5"]
    assert wire.written.endswith(b"\r\n\r\n")


async def test_who_says_close_closes() -> None:
    wire = await sent(start((b"connection", b"close"), (b"content-length", b"0")), body())
    assert of_head(wire).count(b"connection: close") == 1
    assert wire.closed


@pytest.mark.parametrize(
    "header",
    [
        (b"x-a", b"1\r\nx-b: 2"), (b"x-a", b"1\n"), (b"x-a", b"\r"), (b"x-a", b"\0"), (b"x-a", b"\x7f"),
        (b"x-a\r\nx-b", b"1"), (b"x a", b"1"), (b"X-A", b"1"), (b"x-a:", b"1"), (b"", b"1"),
        (b"transfer-encoding", b"chunked"), (b"content-length", b"5, 5"),
        (b"content-length", b"+0"), (b"content-length", b"-0"), (b"content-length", b" 0"),
    ],
)  # fmt: skip
async def test_a_header_that_is_none_becomes_an_error(header: tuple[bytes, bytes]) -> None:
    wire = await sent(start(header), body())
    assert wire.statuses() == [500]
    assert wire.closed
    assert b"x-b" not in wire.written


@pytest.mark.parametrize(
    ("messages", "logged"),
    [
        ((), ("ERROR", RuntimeError)),
        ((ZeroDivisionError(),), ("ERROR", ZeroDivisionError)),
        ((start(), ZeroDivisionError()), ("ERROR", ZeroDivisionError)),
        ((start(),), ("WARNING", None)),  # whoever means to say no more of it has no other way
        ((start(), body(b"a", more=True)), ("WARNING", None)),
        ((start(), body()), None),
    ],
)
async def test_what_is_no_whole_answer_is_logged(messages: Any, logged: Any, caplog: pytest.LogCaptureFixture) -> None:
    wire = await sent(*messages)
    found = [(one.levelname, one.exc_info and one.exc_info[0]) for one in caplog.records]
    assert found == ([logged] if logged else [])
    assert bool(logged) == wire.closed


@pytest.mark.parametrize("other", [b"3", b"5"])
async def test_two_lengths_are_none(other: bytes) -> None:
    wire = await sent(start((b"content-length", b"3"), (b"content-length", other)), body(b"abc"))
    assert wire.statuses() == [500]
    assert wire.closed


async def test_a_tab_and_other_letters_may_be_in_a_header() -> None:
    wire = await sent(start((b"x-a", "a\tb é".encode()), (b"x-100%b", b"%b 100%")), body())
    assert "x-a: a\tb é".encode() in of_head(wire)
    assert b"x-100%b: %b 100%" in of_head(wire)


@pytest.mark.parametrize(
    "messages",
    [
        (body(b"x"),),
        (start(), start()),
        (start(), body(), body()),
        (start((b"content-length", b"3")), body(b"toolong")),
        (start((b"content-length", b"3")), body(b"no")),
        (start((b"content-length", b"3")), body(b"no", more=True)),
        (start(), body(b"no", more=True)),
        (start(),),
        (start(), RuntimeError()),
        (start(), body(b"no", more=True), RuntimeError()),
        (RuntimeError(),),
        (),
    ],
)
async def test_what_is_no_whole_answer_never_looks_like_one(messages: Any) -> None:
    wire = await sent(*messages)
    whole = re.fullmatch(
        rb"HTTP/1.1 200 OK\r\n(date: [^\r]*\r\n)?transfer-encoding: chunked\r\n\r\n0\r\n\r\n", wire.written
    )
    assert bool(whole) == (messages == (start(), body(), body()))
    assert wire.closed or whole
    if not whole and not wire.written.startswith(b"HTTP/1.1 500 "):
        assert wire.written.startswith(b"HTTP/1.1 200 ")
        assert not wire.written.endswith(b"0\r\n\r\n")


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Two events, and no length."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for more in (True, True, False):
        await send({"type": "http.response.body", "body": b"data: x\n\n" if more else b"", "more_body": more})


async def answered(app: Any, request: bytes) -> Wire:
    protocol, wire = connection(app)
    protocol.data_received(request)
    await settled(protocol)
    assert wire.statuses() == [200]
    assert wire.closed
    return wire


async def test_http_1_0_gets_a_stream_without_chunks() -> None:
    wire = await answered(stream, b"POST / HTTP/1.0\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
    head, _, body = bytes(wire.written).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body == b"data: x\n\n" * 2


async def test_http_1_0_gets_a_length_when_there_is_one() -> None:
    wire = await answered(App(), b"GET / HTTP/1.0\r\nhost: a\r\n\r\n")
    assert b"content-length: 2\r\n" in wire.written
    assert wire.written.endswith(b"\r\n\r\nok")


async def test_http_1_0_gets_no_body_for_head() -> None:
    wire = await answered(stream, b"HEAD / HTTP/1.0\r\nhost: a\r\n\r\n")
    assert wire.written.endswith(b"\r\n\r\n")


# What an application is handed of the request.


def post(length: int, body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % length + body


END = {"type": "http.disconnect"}


async def asked(*segments: bytes) -> tuple[list[Any], Protocol]:
    """What there is to take at once, and then what is received, until nothing more comes."""
    found: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found.append(arrived(scope))
        while END not in found:
            found.append(await receive())

    protocol, _ = connection(app)
    for segment in segments:
        protocol.data_received(segment)
        await settled(protocol)
    return found, protocol


async def test_a_body_that_is_there_is_taken_at_once() -> None:
    found, protocol = await asked(post(3, b"one"))
    assert found == [b"one"]  # there is nothing more to receive
    protocol.connection_lost(None)
    await settled(protocol)
    assert found[1:] == [END]


async def test_a_body_that_is_not_is_received() -> None:
    found, _ = await asked(post(9, b"one"), b"two", b"end")
    pieces = [(message["body"], message["more_body"]) for message in found[1:]]
    assert (found[0], pieces) == (None, [(b"one", True), (b"two", True), (b"end", False)])


async def test_no_body_is_one_too() -> None:
    assert (await asked(GET))[0] == [b""]


async def test_of_a_client_that_has_left_nothing_is_taken() -> None:
    taken: list[bytes | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        taken.append(arrived(scope))

    protocol, _ = connection(app)
    protocol.data_received(post(3, b"one"))
    protocol.connection_lost(None)
    await settled(protocol)
    assert taken == [None]


async def test_no_more_of_a_body_is_read_than_is_wanted() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    protocol, wire = connection(app)
    for _ in range(4):
        assert wire.reading
        protocol.data_received(post(1 << 20) if not protocol.tasks else bytes(20_000))
        await settled(protocol)
    protocol.data_received(bytes(20_000))
    assert not wire.reading
    for task in protocol.tasks:
        task.cancel()


async def test_who_waits_to_send_is_told_that_the_client_has_left() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"one", more=True))

    protocol, _ = connection(app)
    protocol.pause_writing()
    protocol.data_received(GET)
    await settled(protocol)
    assert protocol.tasks
    protocol.connection_lost(None)
    await settled(protocol)
    assert not protocol.tasks


@pytest.mark.parametrize("leaves", [True, False])
async def test_all_who_wait_to_receive_are_told_of_the_end(leaves: bool) -> None:
    told: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

        async def waits() -> None:
            told.append(await receive())

        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(waits())
            await asyncio.sleep(0)
            if not leaves:
                await send(start((b"content-length", b"0")))
                await send(body())

    protocol, _ = connection(app)
    protocol.data_received(GET)
    await settled(protocol)
    if leaves:
        protocol.connection_lost(None)
        await settled(protocol)
    assert told == [END, END]


async def test_what_was_never_begun_goes_with_its_connection() -> None:
    waiting = App()
    waiting.go_on.clear()
    gc.collect()
    gc.disable()
    try:
        protocol, _ = connection(waiting)
        protocol.data_received(post(2, b"{}") + post(2, b"{}"))
        await settled(protocol)
        protocol.connection_lost(None)
        waiting.go_on.set()
        await settled(protocol)
        lost = weakref.ref(protocol)
        del protocol, _
        assert lost() is None
    finally:
        gc.enable()
