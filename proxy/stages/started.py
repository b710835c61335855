"""One line per request that has passed the door: what is under way, should it never come to an end."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core import json
from proxy.core.endpoint import Endpoint
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.services import Lines, Middleware, Services

MOST_KEYS: Final = 10_000
"""Keys of which is remembered what their lines say."""


def build(level: str, endpoint: Endpoint, services: Services) -> Middleware | None:
    """`level` is the least one that is logged."""
    if level not in ("debug", "info"):
        return None

    def middleware(app: ASGIApp) -> ASGIApp:
        return Started(app, endpoint, services.log)

    return middleware


class Started:
    def __init__(self, app: ASGIApp, endpoint: Endpoint, log: Lines) -> None:
        self._app = app
        self._log = log
        self._what = {"operation": endpoint.span, "endpoint": endpoint.path}
        self._whose: dict[str, bytes] = {}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        exchange = exchange_of(scope)
        # Ids are plain: they have been looked at.
        fields = f'{{"request_id":"{exchange.request_id}","trace_id":"{exchange.trace_id}",'.encode()
        self._log.ready("info", "request_started", fields + self._rest(exchange))
        return self._app(scope, receive, send)

    def _rest(self, exchange: Exchange) -> bytes:
        """What is the same for all requests of a key."""
        key_id = exchange.key_id or ""
        rest = self._whose.get(key_id)
        if rest is None:
            assert exchange.team
            if len(self._whose) >= MOST_KEYS:
                self._whose.clear()
            who = {"team": exchange.team.name, "key_id": key_id}
            rest = self._whose[key_id] = json.encode(who | self._what)[1:]
        return rest
