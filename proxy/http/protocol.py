"""uvicorn's HTTP protocol behind a guard: a request runs when its head is right, in time and in bounds, or not at all.

- What framing.py refuses, and what is no HTTP, is answered in the shape of every other error, in its turn; then
  the connection ends, and nothing behind it is parsed. uvicorn serves requests without a Host, with `gzip, chunked`, or
  with a head of any size, and it waits for ever for a head that does not come.
- What stands between chunks is counted: all bytes that came, less all that the parser made something of.
- Headers are complete when the request begins: what a chunked body brings as trailers is not added to them. In uvicorn
  a trailer that comes in the same segment is there before the application runs, an Authorization header too.
- A client's leaving is reported to the request that is under way, whatever waits behind it on the connection. In
  uvicorn only the last one is told, or none once reading has paused, and an upstream would go on working for nobody.
- An answer that begins before the request's body is here closes the connection: the rest of that body is no request.
- An offer to upgrade is ignored, as it may be. In uvicorn the body is lost with it; the HTTP client of Java's own
  library makes that offer with every request.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.core.errors import BadFraming, Overloaded, ProxyError, RequestTimeout
from proxy.http.framing import Limits, block_size, check, headers_too_large, line_size, refusal, uri_too_long
from proxy.http.outgoing import Outgoing

Refused = Callable[[int, str | None, str, str], None]
"""Told of every request that is refused here: the status, the error code, the request id of the answer, the client."""

_PIECE = 24 << 10
"""Bytes that the parser is given at once: with the limits of a head, which may be kept already, 64 KiB."""

_OFFER = (b"upgrade", b"http2-settings", b"connection")
_CHUNK = len("123456789abcdef0\r\n\r\n")
_QUIET, _HEAD, _BODY, _ENDED = range(4)
"""Where the parser is: between requests, in the head or the body of one, or past its end with bytes yet to explain."""

_HEALTH = b"/health"
_MAPPED = "::ffff:"
"""How IPv4 addresses look to a socket that listens for IPv6."""


class _NoMore(Exception):
    """The parser has come to a request that will not be read."""


class Protocol(HttpToolsProtocol):
    limits = Limits()
    strangers: ClassVar[dict[Protocol, None]] = {}
    """The connections that have not sent a whole head yet, or only send what nobody reads; the oldest first."""

    _out: Outgoing
    _running: RequestResponseCycle | None = None
    _ready: tuple[RequestResponseCycle, Any] | None = None  # starts when the bytes that it came in hold no fault
    _refusal: ProxyError | None = None  # waits until the requests before it are answered
    _deadline: asyncio.TimerHandle | None = None
    _phase = _QUIET
    _parsing = _deaf = _above = _chunked = False
    _reusable = True
    _unexplained = 0

    @classmethod
    def bounded(cls, limits: Limits, refused: Refused) -> type[Protocol]:
        """A protocol with these limits, which tells of its refusals."""
        return type(cls.__name__, (cls,), {"limits": limits, "refused": staticmethod(refused), "strangers": {}})

    @staticmethod
    def refused(status: int, code: str | None, request_id: str, client: str) -> None:
        """Nobody wants to know."""

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = self._out = Outgoing(transport, self.loop, self.limits, self._ignore_the_rest)
        open_now = len(self.connections)
        self._above = open_now > self.limits.connections
        self.strangers[self] = None
        if open_now > self.limits.most_connections:
            next(iter(self.strangers))._give_way()
            if self._deaf:
                return
        if self.client and self.client[0].startswith(_MAPPED):
            self.client = self.client[0].removeprefix(_MAPPED), self.client[1]
        if sock := transport.get_extra_info("socket"):
            with suppress(OSError):  # the client is gone already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.limits.send_buffer)
        self._deadline = self.loop.call_later(self.limits.head, self._head_is_late)

    def _give_way(self) -> None:
        """Somebody newer may have something to say; a probe of our health, for one."""
        self._deaf = True
        self._stop_waiting()
        del self.strangers[self]
        self._out.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = True
        self._stop_waiting()
        self.strangers.pop(self, None)
        self._unset_keepalive_if_required()
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)
        self._out.lost()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._out.pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._out.resume_writing()

    def shutdown(self) -> None:
        self._reusable = False
        super().shutdown()

    def _head_is_late(self) -> None:
        self._deadline = None
        if self._phase == _HEAD:
            self._refuse(RequestTimeout("The request line and the headers did not come in time."))
        else:
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _ignore_the_rest(self) -> bool:
        """Whether the client may still be sending; what it sends is for nobody."""
        sending = self._deaf or self._phase != _QUIET
        self._deaf = True
        self._stop_waiting()
        if sending:
            self.strangers[self] = None
        return sending

    # What comes.

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._parsing = True
        if len(data) <= _PIECE:
            self._feed(data)
        else:
            for start in range(0, len(data), _PIECE):
                if not self._deaf:
                    self._feed(data[start : start + _PIECE])
        self._parsing = False
        if self._ready is not None:
            (cycle, app), self._ready = self._ready, None
            super()._start_asgi_task(cycle, app)

    def _feed(self, piece: bytes) -> None:
        try:
            while piece:
                self._unexplained += len(piece)
                try:
                    self.parser.feed_data(piece)
                    break
                except httptools.HttpParserUpgrade as offer:
                    rest = piece[offer.args[0] :]
                    self._unexplained -= len(rest)
                    piece = self._declined(rest)
            self._look_at_the_rest()
        except ProxyError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            self._stopped(error.__context__)

    def _stopped(self, reason: BaseException | None) -> None:
        """The parser was stopped, by one of our checks or by one of its own."""
        if isinstance(reason, _NoMore):
            self._deaf = True
            self.cycle.keep_alive = False
        elif isinstance(reason, ProxyError):
            self._refuse(reason)
        else:
            self._refuse(BadFraming("This is not a valid HTTP request."))

    def _look_at_the_rest(self) -> None:
        """What the parser keeps and has not told us of yet."""
        limits = self.limits
        if self._phase == _HEAD:
            if self._unexplained > limits.request_line + limits.header_block or len(self.headers) > limits.headers:
                raise headers_too_large(limits)
            if self._deadline is None:
                self._deadline = self.loop.call_later(limits.head, self._head_is_late)
        elif self._chunked and self._unexplained > limits.padding:
            raise BadFraming("There is too much between the chunks of this request: extensions, zeros or trailers.")
        else:
            if self._phase == _ENDED:
                self._phase, self._chunked = _QUIET, False
            if not self._chunked:
                self._unexplained = 0

    # What the parser finds.

    def on_message_begin(self) -> None:
        if not self._reusable or len(self.pipeline) >= self.limits.waiting:
            raise _NoMore
        self._phase = _HEAD
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.limits.request_line:
            raise uri_too_long(self.limits)

    def on_headers_complete(self) -> None:
        parser, url, headers = self.parser, self.url, self.headers
        method = parser.get_method()
        self._chunked = check(method, url, parser.get_http_version(), headers, self.limits, self._unexplained)
        if self._chunked:
            self._unexplained -= line_size(method, url) + block_size(headers)
        if parser.should_upgrade():
            return  # the request begins when it is read again without the offer
        crowded = self._above and len(self.connections) > self.limits.connections
        if crowded and not url.startswith(_HEALTH):
            raise Overloaded("There are too many connections to this proxy.")
        if self._deadline is not None:
            self._stop_waiting()
            self.strangers.pop(self, None)
        super().on_headers_complete()
        self._phase = _BODY
        self.headers = []  # trailers go here, and are forgotten
        self._reusable, self.cycle.keep_alive = self.cycle.keep_alive and not crowded, False
        if self.pipeline:
            self.flow.resume_reading()  # only who reads learns that the client has left

    def on_body(self, body: bytes) -> None:
        self._unexplained -= len(body)
        if self.pipeline and len(self.cycle.body) + len(body) > HIGH_WATER_LIMIT:
            self._withdraw()
            raise _NoMore
        super().on_body(body)

    def on_chunk_header(self) -> None:
        self._unexplained -= _CHUNK

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._phase = _ENDED
        super().on_message_complete()
        if self._chunked and not self.parser.should_keep_alive():
            self._reusable = False  # a trailer said so, and the parser heeds it
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._reusable

    def _declined(self, rest: bytes) -> bytes:
        """The request once more, without its offer, and what came after it."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in _OFFER]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            lines.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does; we do not read it
        return b"\r\n".join(lines) + b"\r\n\r\n" + rest

    # What is answered.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        if self._parsing:
            self._ready = cycle, app
        else:
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        if self._refusal is not None and not self.pipeline and not self.transport.is_closing():
            self.server_state.total_requests += 1
            self._answer(self._refusal)
        else:
            super().on_response_complete()

    def _refuse(self, error: ProxyError) -> None:
        """Answer with this error when all before it is answered, and read no more."""
        self._deaf = True
        self._stop_waiting()
        self._unset_keepalive_if_required()
        if self._phase in (_BODY, _ENDED) and not self._withdraw():
            self.transport.close()  # its answer has begun: an end without an end is all that can still be said
        elif self._running is None or self._running.response_complete:
            self._answer(error)
        else:
            self._refusal = error

    def _withdraw(self) -> bool:
        """Take back the request whose body is being read. Not if its answer has begun, which is then cut off."""
        cycle = self.cycle
        if self.pipeline:
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running  # type: ignore[assignment]
            return True
        self._running = self._ready = None
        cycle.disconnected = True
        cycle.message_event.set()
        return not cycle.response_started

    def _answer(self, error: ProxyError) -> None:
        request_id = secrets.token_hex(16)
        head, body = refusal(error, request_id, self.server_state.default_headers)
        if self._phase == _HEAD and self.url and self.parser.get_method() == b"HEAD":
            body = b""
        self.transport.write(head + body)
        self.refused(error.status, error.code, request_id, self.client[0] if self.client else "")
        self.transport.close()
