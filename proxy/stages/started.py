"""One line per request that has passed the door: what is under way, should it never come to an end."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.endpoint import Endpoint
from proxy.core.exchange import Exchange
from proxy.core.services import Log, Middleware, Services


def build(level: str, endpoint: Endpoint, services: Services) -> Middleware | None:
    """`level` is the least one that is logged."""
    if level not in ("debug", "info"):
        return None

    def middleware(app: ASGIApp) -> ASGIApp:
        return Started(app, endpoint, services.log)

    return middleware


class Started:
    def __init__(self, app: ASGIApp, endpoint: Endpoint, log: Log) -> None:
        self._app = app
        self._operation = endpoint.span
        self._path = endpoint.path
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        assert exchange.team
        self._log(
            "info",
            "request_started",
            **exchange.ids,
            team=exchange.team.name,
            key_id=exchange.key_id,
            operation=self._operation,
            endpoint=self._path,
        )
        await self._app(scope, receive, send)
