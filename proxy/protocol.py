"""uvicorn's HTTP protocol, with what a proxy needs beyond it.

- Headers are complete when the request begins: what a chunked body brings as trailers is not added to them. In uvicorn
  a trailer that comes in the same segment is there before the application runs, an Authorization header too.
- A client's leaving is reported to the request that is under way, though another waits behind it on the connection. In
  uvicorn only the last one is told, and an upstream would go on working for nobody.
- An offer to upgrade is ignored, as it may be. In uvicorn the body is lost with it; the HTTP client of Java's own
  library makes that offer with every request.
- What is no HTTP at all is answered in the shape of every other error.
"""

from __future__ import annotations

import secrets
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.core.errors import BadFraming, render

_MOST_WAITING = 4
"""Requests that may wait behind one on a connection. Beyond them nothing is read, nor a client's leaving noticed."""

_OFFER = (b"upgrade", b"http2-settings", b"connection")


class Protocol(HttpToolsProtocol):
    _running: RequestResponseCycle | None = None

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = self._declined(data[offer.args[0] :])
            except httptools.HttpParserError:
                self.send_400_response("")
                return

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the request begins when it is read again without the offer
        super().on_headers_complete()
        self.headers = []  # trailers go here, and are forgotten
        if 0 < len(self.pipeline) <= _MOST_WAITING:
            self.flow.resume_reading()  # only who reads learns that the client has left

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _declined(self, rest: bytes) -> bytes:
        """The request once more, without its offer, and what came after it."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("")
            return b""
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in _OFFER]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            lines.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        return b"\r\n".join(lines) + b"\r\n\r\n" + rest

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        running = self._running
        if running is not None and running.response_started and not running.response_complete:
            self.transport.close()  # what came behind a request under way must not be answered into its answer
            return
        body = render(BadFraming("This is not a valid HTTP request."))
        head = (
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n"
            "content-type: application/json\r\ncache-control: no-store\r\n"
            f"x-request-id: {secrets.token_hex(16)}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
