"""Answers to HTTP/1.0, by the protocol that makes them."""

from __future__ import annotations

from typing import Any

from starlette.types import Receive, Scope, Send

from tests.fuzz.framing import App, Wire, connection, settled


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
