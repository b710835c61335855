"""The default transport: HTTP/1.1 over reused connections, for nothing but what a proxy does with it.

llhttp (by httptools, which uvicorn has too) reads what comes, aiohappyeyeballs connects, and pool.py keeps the
connections. What lies between is written here. docs/decisions/0002-upstream-transport.md says why, and what it costs.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import Awaitable
from typing import Final, cast

from aiohappyeyeballs import AddrInfoType, start_connection
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from proxy.upstream import tls
from proxy.upstream.addresses import Addresses
from proxy.upstream.config import Config
from proxy.upstream.head import Origin
from proxy.upstream.pool import Pool
from proxy.upstream.transport import Call, Connections, Headers, TransportError

Request = tuple[bytes, bytes]
"""Head and body, as they are sent."""

_NEXT_ADDRESS: Final = 0.25
"""Seconds until the next address is tried beside one that does not answer: RFC 8305, 5."""

_READ: Final = 32 << 10
"""Bytes that are read at once. uvloop would read 250 KB: so much for each client that reads slowly."""

_MOST_HELD: Final = 32 << 10
"""Bytes of a body that wait for a slow reader. While there are more, nothing is read from the network."""

_MOST_HEADERS: Final = 128
"""Different ones, of one head."""

_MOST_HEAD: Final = 64 << 10
"""Bytes of the headers of one head; and of what is no body, be it within one line or between two chunks, which is
looked at after each read."""

_MOST_INTERIM: Final = 16


class Http1Transport:
    """One origin. Build it inside the running event loop."""

    def __init__(self, config: Config, ssl_context: ssl.SSLContext | None = None) -> None:
        self._origin = origin = Origin(config.base_url)
        self._tls = (ssl_context or tls.client_context()) if origin.is_https else None
        self._patience = config.timeouts.connect
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(bytearray(_READ))
        self._addresses = Addresses(origin.host, origin.port, self._loop.time)
        self._pool: Pool[Request] = Pool(config.max_connections, self._patience, self._connect, self._loop)

    def call(
        self, method: str, path: str, headers: Headers, body: bytes, *, more: Headers = (), fresh: bool = False
    ) -> Call:
        """See Transport. Raises ValueError for what may not stand in the head of a request."""
        return self._pool.call((self._origin.head(method, path, headers, more, body), body), fresh=fresh)

    @property
    def connections(self) -> Connections:
        """See Transport."""
        return self._pool.connections

    async def close(self) -> None:
        """See Transport. Calls under way fail with TransportError("closed")."""
        self._addresses.close()
        await self._pool.close()

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(self._patience):
                return await self._connected()
        except TimeoutError:
            self._addresses.forget()
            raise TransportError("connect_timeout", "the upstream took too long to accept a connection") from None
        except TransportError:
            self._addresses.forget()
            raise

    async def _connected(self) -> _Connection:
        try:
            addresses = await self._addresses.get()
            connected = await start_connection(
                addresses, happy_eyeballs_delay=_NEXT_ADDRESS, socket_factory=_keep_alive
            )
        except (OSError, RuntimeError, UnicodeError) as error:  # uvloop's own, and of a name that is none
            why = getattr(error, "strerror", None) or "no address answered"
            raise TransportError("connect", f"cannot connect to the upstream: {why}") from None
        name = self._origin.host if self._tls else None
        try:
            transport, connection = await self._loop.create_connection(
                lambda: _Connection(self._loop, self._buffer), sock=connected, ssl=self._tls, server_hostname=name
            )
        except (OSError, RuntimeError) as error:
            raise TransportError("tls", f"TLS with the upstream failed: {tls.reason(error)}") from None
        connection.opened(transport)
        return connection


def _keep_alive(address: AddrInfoType) -> socket.socket:
    """A socket that notices when its other side is no longer there."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return made


class _Connection(asyncio.BufferedProtocol):
    """See pool.Connection. What has come is at the beginning of `buffer` for as long as it is taken in, and all
    connections share it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        self.sent = False
        self._loop = loop
        self._buffer = buffer
        self._lost: asyncio.Future[None] = loop.create_future()
        self._answer: _Answer | None = None
        self._spoke_first = False

    def opened(self, transport: asyncio.BaseTransport) -> None:
        """By whoever opened it: what is raised in a callback of the event loop would be heard by nobody."""
        self._transport = cast(asyncio.Transport, transport)
        tls.take_all_before_the_end(transport)
        self._readable = select.poll()
        self._readable.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def ask(self, request: Request) -> Awaitable[_Answer]:
        head, body = request
        self.sent = False
        if self._transport.is_closing() or self._spoke_first:
            raise TransportError("closed", _CLOSED)
        self._answer = answer = _Answer(self._transport, self._loop)
        self.sent = True
        # Without the empty piece: from Python 3.12 on, asyncio's own loop would try to send it for ever.
        self._transport.writelines((head, body) if body else (head,))
        return answer.begun()

    def is_done(self) -> bool:
        # An answer can also be whole before the request has left.
        transport, answer = self._transport, self._answer
        is_over = answer is not None and answer.leaves_open and not transport.is_closing()
        return is_over and transport.get_write_buffer_size() == 0

    def is_usable(self) -> bool:
        # A readable socket was closed by the server, or the server is about to talk out of turn.
        return self.is_done() and not self._readable.poll(0)

    def close(self) -> asyncio.Future[None]:
        if self._answer is not None:
            self._answer.end(cleanly=False)  # it is we who end it: that makes no answer whole
        self._transport.abort()  # close() would first send what is buffered, and wait for TLS's good-bye
        return self._lost

    # What the event loop calls.

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._answer is None:
            self._spoke_first = True
        elif not self._answer.take(self._buffer[:nbytes]):
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None:
            self._answer.end(cleanly=error is None)
        if not self._lost.done():
            self._lost.set_result(None)


class _Answer:
    """One answer, as it comes: see transport.Answer. It is the iterator of its own chunks.

    It has a parser of its own, so nothing of one answer can be taken for a part of the next. The two hold each other
    until the answer is over.
    """

    __slots__ = (
        "_barren",
        "_error",
        "_has_begun",
        "_headers",
        "_held",
        "_is_heard",
        "_is_paused",
        "_is_whole",
        "_loop",
        "_messages",
        "_parser",
        "_pieces",
        "_raw",
        "_transport",
        "_waiter",
        "leaves_open",
        "on_header",
        "status",
    )

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        self.leaves_open = False
        """It is whole, and the connection can serve another call."""
        self._transport, self._loop = transport, loop
        self._has_begun = self._is_whole = self._is_heard = self._is_paused = False
        self._messages = self._held = self._barren = 0
        self._headers: dict[bytes, bytes] = {}
        self._raw: dict[bytes, bytes] = {}
        """The same as they were sent, and trailers. The parser adds each by itself: no function of ours is called."""
        self.on_header = self._raw.setdefault
        self._pieces: list[bytes] = []
        self._error: TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    # For the caller.

    async def begun(self) -> _Answer:
        """Itself, when the headers have come. Raises TransportError."""
        while not self._has_begun:
            if self._error is not None:
                raise self._error.again()
            self._waiter = waiter = self._loop.create_future()
            await waiter
        return self

    def header(self, name: str) -> str | None:
        value = self._headers.get(name.encode())
        return None if value is None else value.decode("latin-1")  # one character per byte, as it was sent

    def whole(self) -> bytes | None:
        return self._take() if self._is_whole and self._pieces else None

    def chunks(self) -> _Answer:
        return self

    def __aiter__(self) -> _Answer:
        return self

    async def __anext__(self) -> bytes:
        pieces = self._pieces
        while not pieces:
            if self._is_whole:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error.again()
            self._waiter = waiter = self._loop.create_future()
            await waiter
        return self._take()

    def _take(self) -> bytes:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._held = 0
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    # For the connection.

    def take(self, data: memoryview) -> bool:
        """Read what has come. Whether the connection is still of use: not if that was no part of this answer."""
        parser, self._is_heard = self._parser, True
        if parser is None:
            self.leaves_open = False
            return False
        self._barren += len(data)
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self.leaves_open = False
            self._fail("protocol", "the exchange with the upstream is not valid HTTP")
            return False
        if self._barren > _MOST_HEAD:
            self._fail("protocol", "the upstream sent a head without measure")
            return False
        if self._held > _MOST_HELD and not (self._is_paused or self._is_whole):
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()
        return True

    def end(self, *, cleanly: bool) -> None:
        """There is nothing more to come. An answer without a length is whole by that."""
        if cleanly and self._has_begun and self._error is None and not (self._headers.keys() & _FRAMING):
            self._is_whole = True
        self._fail("closed", _CLOSED)

    def _fail(self, kind: str, why: str) -> None:
        self._parser = None
        if not self._is_whole and self._error is None:
            self._error = TransportError(kind, why, answered=self._is_heard)
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():  # by who no longer waits for it
            waiter.set_result(None)

    # For the parser, which stops at what is raised here.

    def on_message_begin(self) -> None:
        self._messages += 1
        if self._is_whole or self._messages > _MOST_INTERIM + 1:
            raise _OutOfStep

    def on_headers_complete(self) -> None:
        assert self._parser
        status = self._parser.get_status_code()
        raw = self._raw
        if status < 100 or status == 101 or len(raw) > _MOST_HEADERS:
            raise _OutOfStep  # 101 switches protocols, and nobody has asked for that
        if self._barren > _MOST_HEAD and sum(map(len, raw)) + sum(map(len, raw.values())) > _MOST_HEAD:
            raise _OutOfStep  # the first question, about all that has come so far, is the cheap one
        if status >= 200:
            self.status, self._has_begun, self._barren = status, True, 0
            if b"".join(raw).islower():  # as most servers write them
                self._headers = raw.copy()  # trailers are still to come
            else:  # of several spellings the first, which is the last one to be written here
                self._headers = {name.lower(): value for name, value in reversed(raw.items())}

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._held += len(piece)
        self._barren = 0

    def on_message_complete(self) -> None:
        if self._has_begun:
            assert self._parser
            self._is_whole, self.leaves_open = True, self._parser.should_keep_alive()
            self._parser = None
        else:
            self._raw.clear()


class _OutOfStep(Exception):
    """An answer that cannot be believed."""


_CLOSED = "the upstream closed the connection before its answer was complete"
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
