"""One answer on its way to a client: its head, how its end is found, and the body's pieces.

It takes the place of what uvicorn does with an application's messages, because most of what is done for an answer that
is there already was done there: each header was looked at by two regular expressions, and head and body were written
apart, each by a call of the system, which wakes whoever reads. Here a head is checked as a whole, and goes with the
first piece.

    length      the answer has said how many bytes it has, and must have so many
    chunks      it has not: HTTP/1.1 marks the end
    connection  it has not, and HTTP/1.0 knows no chunks: the end is that of the connection (RFC 9112, section 6.3)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from functools import lru_cache
from http import HTTPStatus
from operator import itemgetter
from typing import Any, Final, NamedTuple

from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.core.arrived import EXTENSION as ARRIVED
from proxy.core.departure import EXTENSION as DEPARTURE
from proxy.core.departure import Departure
from proxy.core.errors import Headers
from proxy.core.head import EXTENSION as HEAD
from proxy.core.head import Head
from proxy.core.sent import SENT

LARGE: Final = 1 << 16
"""Bytes of a first piece that is not copied to stand behind its head."""

_LOG: Final = logging.getLogger("uvicorn.error")
_SORRY: Final = b"Internal Server Error"
_BROKEN: Final = {
    "type": "http.response.start",
    "status": 500,
    "headers": [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(_SORRY)),
        (b"connection", b"close"),
    ],
}
"""What is said where even the application's own error is none."""

_STATUS: Final = {status.value: b"HTTP/1.1 %d %b" % (status, status.phrase.encode()) for status in HTTPStatus}
_NO_BODY: Final = (204, 304)
_NAME: Final = itemgetter(0)
_VALUE: Final = itemgetter(1)

_ALLOWED: Final = bytes({*range(0x20, 0x7F), *range(0x80, 0x100), 0x09})
"""What a header may have in it: anything but control characters."""

_TOKEN: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
"""What its name may have in it. In capitals none is sent."""


class Answer:
    """One request and its answer, as an application sees them: what uvicorn's protocol knows as a cycle.

    `body` is what has come of the request's and was not received yet; `more_body`: there may be more.
    """

    more_body = True
    waiting_for_100_continue = False
    disconnected = False
    response_started = False
    response_complete = False
    chunked_encoding: bool | None = None
    expected_content_length = 0
    body: bytes | bytearray = b""

    _news = False
    """Whether something has come since the application received last."""
    _arrival: asyncio.Event | None = None
    """Of news, once somebody has had to wait for some."""
    _head = b""
    """Held until the body begins, which in this program it does at once: whoever begins an answer has a part of it."""
    _by_connection = False

    def __init__(self, scope: Scope, head: Head, connection: HttpToolsProtocol, *, keep_alive: bool) -> None:
        # The scope itself is not kept: it holds on to this.
        self._is_head, self._is_old = scope["method"] == "HEAD", scope["http_version"] == "1.0"
        self.transport = connection.transport
        self.flow = flow = connection.flow
        self.default_headers = connection.server_state.default_headers
        self.on_response: Any = connection.on_response_complete
        self.keep_alive = keep_alive
        self.departure = departure = Departure(flow.resume_reading, connection.transport.abort)
        """Of its client."""
        scope["extensions"] = {HEAD: head, ARRIVED: self.arrived, DEPARTURE: departure}

    # The request.

    def takes(self, piece: bytes | bytearray) -> None:
        """This has come of its body."""
        if not self.body:
            self.body = piece
        else:
            if isinstance(self.body, bytes):
                self.body = bytearray(self.body)
            self.body += piece
        self._tell()

    def ends(self) -> None:
        """All of its body has come."""
        self.more_body = False
        self._tell()

    def comes_with(self, body: bytes) -> None:
        """It is all here."""
        self.body, self.more_body, self._news = body, False, True

    def _tell(self) -> None:
        """Whoever waits to receive has something now."""
        self._news = True
        if self._arrival is not None:
            self._arrival.set()

    def arrived(self) -> bytes | None:
        """All of the body that was not received yet, if its end is here."""
        if self.more_body or not self._news or self.disconnected:
            return None
        self.flow.resume_reading()
        self._news = False
        body, self.body = self.body, b""
        return bytes(body)

    async def receive(self) -> Message:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not (self.disconnected or self.response_complete):
            self.flow.resume_reading()
            while not (self._news or self.disconnected or self.response_complete):
                if self._arrival is None:
                    self._arrival = asyncio.Event()
                await self._arrival.wait()
                self._arrival.clear()
        self._news = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": bytes(body), "more_body": self.more_body}

    def disconnect(self) -> None:
        """The client has left, or gets nothing more."""
        self.disconnected = True
        self._tell()
        self.departure.happen()

    # The answer.

    async def run_asgi(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
            if not (self.response_started or self.disconnected):
                raise RuntimeError("the application ended without an answer")
            if not (self.response_complete or self.disconnected):
                _LOG.warning("An answer was cut off: of its rest there is none.")
        except BaseException as error:
            _LOG.error("Exception in ASGI application", exc_info=error)
            if not self.response_started:
                await self.send(dict(_BROKEN))
                await self.send({"type": "http.response.body", "body": _SORRY})
        finally:
            if self.response_started and not (self.response_complete or self.disconnected):
                self._cut_off()
            self.on_response = _nothing

    def _cut_off(self) -> None:
        """There is no more of it, and nobody is to take the half for the whole."""
        if self._head:
            self._write(b"")
        self.transport.close()

    def send(self, message: Message) -> Awaitable[None]:
        """Raises RuntimeError for what is no answer, or not the one that its head has announced."""
        if self.disconnected:
            return SENT
        if self.flow.write_paused:
            return self._send_when_there_is_room(message)
        kind = message["type"]
        if kind == "http.response.body" and self.response_started and not self.response_complete:
            self._go_on(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start" and not self.response_started:
            self._begin(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"{kind} is out of place in an answer")
        return SENT

    async def _send_when_there_is_room(self, message: Message) -> None:
        await self.flow.drain()
        await self.send(message)

    def _begin(self, status: int, headers: Headers) -> None:
        headers = [*self.default_headers, *headers]
        shape = _shape(tuple(map(_NAME, headers)))
        if shape.says_connection:
            headers = self._heeding_connection(headers)
            shape = _shape(tuple(map(_NAME, headers)))
        more = b""
        if shape.length is not None:
            self._announce(headers[shape.length][1])
        elif self.chunked_encoding is None and not self._is_head and status not in _NO_BODY:
            self.chunked_encoding = not self._is_old
            self._by_connection = self._is_old
            if self.chunked_encoding:
                more = b"transfer-encoding: chunked\r\n"
        if not self.keep_alive:
            more += b"connection: close\r\n"
        values = tuple(map(_VALUE, headers))
        if b"".join(values).translate(None, _ALLOWED):
            raise RuntimeError("a header has a control character")
        first = _STATUS.get(status) or b"HTTP/1.1 %d " % status
        self._head = b"%b\r\n%b%b\r\n" % (first, shape.lines % values, more)
        self.response_started = True
        self.waiting_for_100_continue = False

    def _announce(self, length: bytes) -> None:
        if not length.isdigit():
            raise RuntimeError("an answer has its length in digits")
        self.expected_content_length, self.chunked_encoding = int(length), False

    def _heeding_connection(self, headers: Headers) -> Headers:
        """Whoever says `close` has it said once, at the end."""
        kept = [one for one in headers if one[0] != b"connection" or b"close" not in one[1].lower()]
        if len(kept) < len(headers):
            self.keep_alive = False
        return kept

    def _go_on(self, body: bytes, more: bool) -> None:
        if self._is_head:
            body, self.expected_content_length = b"", 0
        elif self.chunked_encoding:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        elif not self._by_connection:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0 or (self.expected_content_length and not more):
                raise RuntimeError("the body is not as long as its head has said")
        self._write(body)
        if not more:
            if self._head:
                self._write(b"")
            self.response_complete = True
            self._tell()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    def _write(self, data: bytes) -> None:
        head, self._head = self._head, b""
        if head and len(data) <= LARGE:
            data = head + data
        elif head:
            self.transport.write(head)
        if data:
            self.transport.write(data)


class _Shape(NamedTuple):
    """What can be said of headers by their names: the `lines` that wait for their values, where the `length` is, if it
    is there, and whether they say what becomes of the connection."""

    lines: bytes
    length: int | None
    says_connection: bool


@lru_cache(1024)  # their names are ours, and few
def _shape(names: tuple[bytes, ...]) -> _Shape:
    """Raises RuntimeError unless they can be an answer's. How its end is found is said here and nowhere else."""
    if not all(names) or not _TOKEN.issuperset(b"".join(names)) or b"transfer-encoding" in names:
        raise RuntimeError("an answer has no such header")
    if names.count(b"content-length") > 1:
        raise RuntimeError("an answer has one length")
    lines = b"".join([name.replace(b"%", b"%%") + b": %b\r\n" for name in names])
    length = names.index(b"content-length") if b"content-length" in names else None
    return _Shape(lines, length, b"connection" in names)


def _nothing() -> None:
    """An answer that has ended tells nobody more."""
