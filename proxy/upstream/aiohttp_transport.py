"""HTTP/1.1 by aiohttp's connector and HTTP parser, without its ClientSession.

aiohttp resolves, connects (happy eyeballs, TLS) and parses. The request is written here, byte for byte what the caller
asked for, and pool.py keeps the connections. The reasons are in docs/decisions/0002-upstream-transport.md: a session
costs twice the CPU per call, gives bytes that arrived on an idle connection to the next request, which may be another
team's, and closes a cancelled connection politely, which can wait for a peer that does not read.
"""

from __future__ import annotations

import asyncio
import math
import select
import ssl
from collections.abc import AsyncIterator

from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientPayloadError,
    ClientRequest,
    ClientSSLError,
    ClientTimeout,
    StreamReader,
    TCPConnector,
    ThreadedResolver,
)
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection as Lease
from aiohttp.http import HttpProcessingError, RawResponseMessage
from yarl import URL

from proxy.upstream import tls
from proxy.upstream.config import Config
from proxy.upstream.head import Origin
from proxy.upstream.pool import Pool
from proxy.upstream.transport import Call, Connections, Headers, TransportError

Request = tuple[bytes, bytes]
"""Head and body, as they are sent."""

_DNS_TTL = 300
_READ_BUFFER = 16 * 1024
"""Bytes of an answer read at once. With it comes, for each client that reads slowly, most of what it makes us hold."""
_MOST_INTERIM = 16
_EXCHANGE_ERRORS = (ClientError, HttpProcessingError, OSError, RuntimeError)


class AiohttpTransport:
    """HTTP/1.1 over reused connections. Build it inside the running event loop."""

    def __init__(self, config: Config, ssl_context: ssl.SSLContext | None = None) -> None:
        url = URL(config.base_url)
        if ssl_context is None and url.scheme == "https":
            ssl_context = tls.client_context()
        self._connector = TCPConnector(
            limit=0,  # the pool's places bound it
            resolver=ThreadedResolver(),
            ttl_dns_cache=_DNS_TTL,
            ssl=ssl_context or True,
        )
        loop = asyncio.get_running_loop()
        # Without that threshold the connector rounds the deadline up to a whole second.
        self._timeout = ClientTimeout(connect=config.timeouts.connect, ceil_threshold=math.inf)
        # The connector asks a request where to connect to. They all go to one origin: one object says it for all.
        self._origin = ClientRequest("GET", url.origin(), loop=loop)
        self._heads = Origin(config.base_url)
        self._pool: Pool[Request] = Pool(config.max_connections, config.timeouts.connect, self._connect, loop)

    def call(
        self, method: str, path: str, headers: Headers, body: bytes, *, more: Headers = (), fresh: bool = False
    ) -> Call:
        """See Transport. Raises ValueError for what may not stand in the head of a request."""
        return self._pool.call((self._heads.head(method, path, headers, more, body), body), fresh=fresh)

    @property
    def connections(self) -> Connections:
        """See Transport."""
        return self._pool.connections

    async def close(self) -> None:
        """See Transport. Calls under way fail with TransportError("closed")."""
        await self._pool.close()
        await self._connector.close()

    async def _connect(self) -> _Connection:
        try:
            return _Connection(await self._connector.connect(self._origin, [], self._timeout))
        except (TimeoutError, ClientConnectorError) as error:
            self._connector.clear_dns_cache()  # the name may lead elsewhere by now
            raise _unconnected(error) from None
        except (ClientError, OSError, RuntimeError):
            raise TransportError("connect", "cannot connect to the upstream") from None


class _Connection:
    """One connection of the connector. See pool.Connection."""

    __slots__ = ("_ear", "_lease", "_lost", "_payload", "_protocol", "_readable", "sent")

    def __init__(self, lease: Lease) -> None:
        protocol, transport = lease.protocol, lease.transport
        if protocol is None or transport is None or (lost := protocol.closed) is None:
            lease.close()
            raise TransportError("closed", _CLOSED)
        self._lease, self._protocol, self._lost = lease, protocol, lost
        self.sent = False
        self._ear = _Ear(protocol)
        transport.set_protocol(self._ear)
        tls.take_all_before_the_end(transport)
        self._payload: StreamReader | None = None
        self._readable = select.poll()
        self._readable.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        lost.add_done_callback(self._on_lost)

    async def ask(self, request: Request) -> _Answer:
        (head, body), protocol, self._payload = request, self._protocol, None
        self._ear.heard = self.sent = False
        protocol.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=_READ_BUFFER)
        if protocol.transport is None:
            raise TransportError("closed", _CLOSED)
        try:
            self.sent = True
            # Without the empty piece: from Python 3.12 on, asyncio's own loop would try to send it for ever.
            protocol.transport.writelines((head, body) if body else (head,))
            message, payload = await protocol.read()
            interim = 0
            while 100 <= message.code < 200 and message.code != 101 and interim < _MOST_INTERIM:
                message, payload = await protocol.read()
                interim += 1
        except _EXCHANGE_ERRORS as error:
            raise _failure(error, answered=self._ear.heard) from None
        if message.code < 200:  # 101 switches protocols, and nobody has asked for that
            raise TransportError("protocol", "the upstream sent no final answer", answered=True)
        self._payload = payload
        return _Answer(message, payload)

    def is_done(self) -> bool:
        protocol, transport, payload = self._protocol, self._protocol.transport, self._payload
        if transport is None or payload is None or not payload.is_eof():
            return False
        # Surplus bytes make the protocol want to close. An answer can also be whole before the request has left.
        return not protocol.should_close and transport.get_write_buffer_size() == 0

    def is_usable(self) -> bool:
        # A readable socket was closed by the server, or the server is about to talk out of turn.
        return self._protocol.is_connected() and self.is_done() and not self._readable.poll(0)

    def close(self) -> asyncio.Future[None]:
        if self._protocol.transport is not None:
            self._protocol.transport.abort()  # close() would first send what is buffered, and wait for TLS's good-bye
        self._lease.close()
        return self._lost

    def _on_lost(self, lost: asyncio.Future[None]) -> None:
        # aiohttp does not wake the reader of a body that turns into nonsense halfway or whose connection we close.
        why = lost.exception()  # always asked for: an error that nobody looks at is logged by asyncio
        error = self._protocol.exception() or why or ClientPayloadError()
        if self._payload is not None and not self._payload.is_eof() and self._payload.exception() is None:
            self._payload.set_exception(error)


class _Ear(asyncio.Protocol):
    """Stands before aiohttp's protocol, which does not tell whether a connection broke before or after its first byte:
    `heard` is set by every byte that comes."""

    def __init__(self, protocol: ResponseHandler) -> None:
        self.heard = False
        self._protocol = protocol
        self._received = protocol.data_received

    def data_received(self, data: bytes) -> None:
        self.heard = True
        self._received(data)

    def eof_received(self) -> None:
        self._protocol.eof_received()

    def connection_lost(self, error: BaseException | None) -> None:
        self._protocol.connection_lost(error)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


class _Answer:
    """See transport.Answer."""

    __slots__ = ("_headers", "_payload", "status")

    def __init__(self, message: RawResponseMessage, payload: StreamReader) -> None:
        self.status = message.code
        self._headers = message.headers
        self._payload = payload

    def header(self, name: str) -> str | None:
        value = self._headers.get(name)
        if value is None or value.isascii():
            return value
        return value.encode("utf-8", "surrogateescape").decode("latin-1")  # one character per byte, as it was sent

    def whole(self) -> bytes | None:
        return None

    def chunks(self) -> AsyncIterator[bytes]:
        return _Chunks(self._payload)


class _Chunks:
    """No generator: the event loop keeps a book of those that are asynchronous, and most answers are one piece."""

    __slots__ = ("_read",)

    def __init__(self, payload: StreamReader) -> None:
        self._read = payload.read

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._read(_READ_BUFFER)
        except _EXCHANGE_ERRORS as error:
            raise _failure(error, answered=True) from None
        if not chunk:
            raise StopAsyncIteration
        return chunk


_CLOSED = "the upstream closed the connection before its answer was complete"


def _unconnected(error: TimeoutError | ClientConnectorError) -> TransportError:
    if not isinstance(error, ClientConnectorError):
        return TransportError("connect_timeout", "the upstream took too long to accept a connection")
    if isinstance(error, ClientSSLError):
        return _tls_failure(error.__cause__)
    if isinstance(error.os_error, ConnectionResetError):  # a connection that is not made yet is refused, not reset
        return _tls_failure(error.os_error)
    why = error.os_error.strerror or "no address answered"
    return TransportError("connect", f"cannot connect to the upstream: {why}")


def _tls_failure(error: BaseException | None) -> TransportError:
    return TransportError("tls", f"TLS with the upstream failed: {tls.reason(error)}")


def _failure(error: Exception, *, answered: bool) -> TransportError:
    # aiohttp's own texts quote what the upstream sent; ours do not.
    if isinstance(error, HttpProcessingError):
        return TransportError("protocol", "the exchange with the upstream is not valid HTTP", answered=answered)
    return TransportError("closed", _CLOSED, answered=answered)
