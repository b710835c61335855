"""Where every request begins: its id, its Exchange, and the headers that every answer carries."""

from __future__ import annotations

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.core.exchange import Exchange
from proxy.core.services import Middleware, Services

_VALID_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def build(services: Services) -> Middleware:
    def middleware(app: ASGIApp) -> ASGIApp:
        return Begin(app, services)

    return middleware


class Begin:
    """Keeps a valid `x-request-id` of the client, else makes one, so that one id leads through all logs."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._clock = services.monotonic
        self._redact = services.redact
        self._always = [(b"x-proxy-simulated", b"true")] if services.simulated else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        exchange = Exchange(
            request_id=secrets.token_hex(16),
            method=scope["method"],
            path=scope["path"],
            headers=tuple(scope["headers"]),
            client=client[0] if client else "",
            started=self._clock(),
        )
        asked = exchange.header(b"x-request-id")
        if asked and _VALID_ID.fullmatch(asked) and self._is_harmless(asked.decode()):
            exchange.request_id = asked.decode()
        exchange.keep_in(scope)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.body":
                now = exchange.last_byte = self._clock()
                if exchange.first_byte is None:
                    exchange.first_byte = now
                exchange.bytes_out += len(message.get("body", b""))
            elif message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._always, *_headers(exchange)]
            await send(message)

        await self._app(scope, receive, watched)

    def _is_harmless(self, text: str) -> bool:
        """Whether it may be logged: a key sent as an id must not be."""
        return self._redact.text(text) == text


def _headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    headers = [(b"x-request-id", exchange.request_id.encode())]
    if exchange.upstream:
        headers.append((b"x-proxy-upstream", exchange.upstream.encode()))
        headers.append((b"x-proxy-attempts", b"%d" % exchange.attempts))
    if exchange.rewrites:
        headers.append((b"x-proxy-rewrites", ", ".join(exchange.rewrites).encode()))
    return headers + exchange.answer_headers
