"""The transport for HTTP/2 and egress proxies: httpx2, the maintained continuation of httpx.

Every connection is an httpx2 transport of its own, held by one call at a time. So a cancelled call ends at the provider
too (httpx2 sends no RST_STREAM: only closing the connection tells the server), and the decision which connection may
serve another call is ours: HTTP/2 ones may, HTTP/1.1 ones never, because httpx2 gives surplus bytes of one answer to
the next request, which may be another team's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import httpcore2
import httpx2

from proxy.upstream import tls
from proxy.upstream.config import Config
from proxy.upstream.head import check_headers, check_path
from proxy.upstream.pool import Pool
from proxy.upstream.transport import Call, Connections, Headers, TransportError

_MOST_HEADERS = 128
"""As many as the other transports take. The size of a head is bounded by h11 (100 KB) and h2 (64 KB)."""

_RECEIVING = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)]
"""What anyio reads before it can be stopped is all that the kernel holds: with no bound, up to 8 MB per connection."""

_ONE = httpx2.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None)


class HttpxTransport:
    """HTTP/1.1 with a connection per call, HTTP/2 with reused ones; through `proxy_url` if there is one.

    Build it inside the running event loop."""

    def __init__(self, config: Config, ssl_context: ssl.SSLContext | None = None) -> None:
        self._base_url = config.base_url
        self._prefix = httpx2.URL(config.base_url).raw_path.rstrip(b"/")
        self._tls = ssl_context or tls.client_context()
        self._http2 = config.http2
        self._proxy = _proxy(config.proxy_url, self._tls) if config.proxy_url else None
        self._patience = config.timeouts.connect
        loop = asyncio.get_running_loop()
        self._pool: Pool[httpx2.Request] = Pool(config.max_connections, self._patience, self._connect, loop)

    def call(
        self, method: str, path: str, headers: Headers, body: bytes, *, more: Headers = (), fresh: bool = False
    ) -> Call:
        """See Transport. Raises ValueError for what may not stand in the head of a request."""
        headers = [*headers, *more]
        check_path(path)
        check_headers(headers)
        raw = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
        exact = {"target": self._prefix + path.encode("ascii")}  # httpx2 would normalise the URL's path
        url = self._base_url + path
        return self._pool.call(httpx2.Request(method, url, headers=raw, content=body, extensions=exact), fresh=fresh)

    @property
    def connections(self) -> Connections:
        """See Transport."""
        return self._pool.connections

    async def close(self) -> None:
        """See Transport."""
        await self._pool.close()

    async def _connect(self) -> _Connection:
        # Connects when the first request is sent.
        http = httpx2.AsyncHTTPTransport(
            verify=self._tls,
            trust_env=False,
            http2=self._http2,
            limits=_ONE,
            proxy=self._proxy,
            socket_options=_RECEIVING,
        )
        return _Connection(http, self._patience)


class _Connection:
    """An httpx2 transport that makes one connection. See pool.Connection."""

    def __init__(self, http: httpx2.AsyncHTTPTransport, patience: float) -> None:
        self._http, self._patience = http, patience
        self.sent = False
        self._deadline = asyncio.timeout(None)
        self._stream: httpcore2.AsyncNetworkStream | None = None
        self._answer: _Answer | None = None
        self._closing: asyncio.Task[None] | None = None

    async def ask(self, request: httpx2.Request) -> _Answer:
        self._answer, self.sent = None, False
        request.extensions["trace"] = self._on_event
        try:
            async with asyncio.timeout(self._patience) as self._deadline:
                response = await self._http.handle_async_request(request)
        except TimeoutError:
            raise TransportError("connect_timeout", "the upstream took too long to accept a connection") from None
        except Exception as error:  # httpx2 lets some of h2's and anyio's through as they are
            raise _failure(error) from None
        if why := _nonsense(response):
            raise TransportError("protocol", why, answered=True)
        self._answer = _Answer(response)
        return self._answer

    async def _on_event(self, event: str, info: dict[str, Any]) -> None:
        # httpx2 names no moment "connected"; the request's first byte is that moment, once past an egress proxy.
        if event.endswith("connect_tcp.complete"):
            self._stream = info["return_value"]
        elif event.endswith("send_request_headers.started") and info["request"].method != b"CONNECT":
            self._deadline.reschedule(None)
            self.sent = True

    def is_done(self) -> bool:
        return self._answer is not None and self._answer.is_whole and self._answer.version == b"HTTP/2"

    def is_usable(self) -> bool:
        # A readable socket was closed by the server, or carries a frame that nobody waits for.
        return self._stream is not None and not self._stream.get_extra_info("is_readable")

    def close(self) -> asyncio.Future[None]:
        # In a task of its own, because a call that is cancelled twice would cut an await short.
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
            _closing.add(self._closing)
            self._closing.add_done_callback(_closing.discard)
        return self._closing

    async def _close(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()


_closing: set[asyncio.Task[None]] = set()
"""The event loop itself holds its tasks only weakly."""


class _Answer:
    """See transport.Answer. `is_whole` when the body was read to its end."""

    def __init__(self, response: httpx2.Response) -> None:
        self.status = response.status_code
        self.version: bytes | None = response.extensions.get("http_version")
        self.is_whole = False
        self._response = response

    def header(self, name: str) -> str | None:
        wanted = name.encode("ascii")
        found = (value.decode("latin-1") for key, value in self._response.headers.raw if key.lower() == wanted)
        return next(found, None)

    def whole(self) -> bytes | None:
        return None

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.aiter_raw():
                if chunk:  # HTTP/2 ends a body with an empty frame
                    yield chunk
        except Exception as error:
            failed = _failure(error)
            failed.answered = True
            raise failed from None
        self.is_whole = True


def _nonsense(response: httpx2.Response) -> str | None:
    """What makes an answer that httpx2 takes none that can be believed."""
    if response.status_code < 200:  # 101 switches protocols, and nobody has asked for that
        return "the upstream sent no final answer"
    names = [name.lower() for name, _ in response.headers.raw]
    if len(names) > _MOST_HEADERS:
        return "the upstream sent too many headers"
    if b"transfer-encoding" in names and b"content-length" in names:
        return "the upstream gave its answer two lengths"  # each reader would see the end of it elsewhere
    return None


def _proxy(url: str, context: ssl.SSLContext) -> httpx2.Proxy:
    # httpx2 refuses a TLS context for a proxy that is spoken to without TLS.
    return httpx2.Proxy(url, ssl_context=context if httpx2.URL(url).scheme == "https" else None)


def _failure(error: Exception) -> TransportError:
    # httpx2's own texts can quote what the upstream sent; ours do not.
    if isinstance(error, httpx2.ConnectError):
        return _connect_failure(error)
    if isinstance(error, httpx2.ProxyError):
        return TransportError("connect", "the egress proxy did not open a connection to the upstream")
    if isinstance(error, (httpx2.NetworkError, OSError)) or _says_closed(str(error)):
        # A stream that was reset was known to its server, and so is no sign of a stale connection.
        text = "the upstream closed the connection before its answer was complete"
        return TransportError("closed", text, answered="StreamReset" in str(error))
    return TransportError("protocol", "the exchange with the upstream is not valid HTTP")


def _connect_failure(error: httpx2.ConnectError) -> TransportError:
    # httpcore2 wraps what happened as the argument of its own error, and httpx2 chains that one.
    happened = error.__cause__.args[0] if error.__cause__ and error.__cause__.args else None
    if isinstance(happened, OSError) and not isinstance(happened, ssl.SSLError):
        why = happened.strerror or "no address answered"
        return TransportError("connect", f"cannot connect to the upstream: {why}")
    return TransportError("tls", f"TLS with the upstream failed: {tls.reason(happened)}")


def _says_closed(text: str) -> bool:
    # h11, h2 and httpcore2 report an early end as one more protocol error; only the words differ.
    return any(words in text for words in ("isconnected", "peer closed", "StreamReset", "ConnectionTerminated"))
