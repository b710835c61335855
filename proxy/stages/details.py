"""What only somebody wants to know who looks for a fault: one more line per request, at the level debug."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core import json
from proxy.core.excerpt import Excerpts
from proxy.core.exchange import Exchange
from proxy.core.services import Middleware, Services

_MOST_HEADERS: Final = 3_000
"""Bytes of all headers as JSON: with the most rewrites there can be, the line stays below 8 KiB."""

_SECRETIVE: Final = ("auth", "cookie", "key", "passw", "secret", "session", "token")
"""A header with one of these in its name may well carry a secret that no rule knows by its looks."""


def build(level: str, services: Services) -> Middleware | None:
    """`level` is the least one that is logged."""
    if level != "debug":
        return None

    def middleware(app: ASGIApp) -> ASGIApp:
        return Details(app, services)

    return middleware


class Details:
    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._log = services.log
        self._excerpts = Excerpts(services.redact)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange.of(scope)
        try:
            await self._app(scope, receive, send)
        finally:
            query = scope.get("query_string", b"").decode("latin-1")
            headers, left_out = self._headers(exchange.headers)
            self._log(
                "debug",
                "request_details",
                **exchange.ids,
                query=_visible(self._excerpts.name(query)) if query else None,
                headers=headers,
                headers_left_out=left_out,
                rewrites=", ".join(exchange.rewrites) or None,
            )

    def _headers(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[Any], int]:
        """As many as there is room for, each with its value, and how many there are besides."""
        shown: list[Any] = []
        room, left_out = _MOST_HEADERS, 0
        for name, value in headers:
            pair = self._header(name.decode("latin-1"), value.decode("latin-1")) if room > 0 else None
            room -= len(json.encode(pair)) + 1
            if pair is None or room < 0:
                left_out += 1
            else:
                shown.append(pair)
        return shown, left_out

    def _header(self, name: str, value: str) -> list[str]:
        may_be_secret = any(word in name for word in _SECRETIVE)
        shown = self._excerpts.field(name, "***" if may_be_secret else value)
        return [_visible(one) for one in shown]


def _visible(text: str) -> str:
    """In one byte a character, whatever a client has put in there."""
    return "".join(one if " " <= one <= "~" else "?" for one in text)
