"""Answers without a call: with what the cache stage has found and, when a call fails, with what was kept from before.

Inside quota and ledger, which count such a request and write it down; outside of the breaker, which has no part in it.
"""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.endpoint import Cache, Endpoint
from proxy.core.errors import ProxyError, forget_frames
from proxy.core.exchange import Exchange, Failed, exchange_of
from proxy.core.services import Log, Middleware, Services


def build(endpoint: Endpoint, services: Services, *, on: bool) -> Middleware | None:
    """`on`: there is a cache."""
    if not on or endpoint.cache is Cache.NEVER or services.answers is None:
        return None

    def middleware(app: ASGIApp) -> ASGIApp:
        return Replayed(app, services.log)

    return middleware


class Replayed:
    def __init__(self, app: ASGIApp, log: Log) -> None:
        self._app = app
        self._log = log

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        exchange = exchange_of(scope)
        if exchange.replay:
            if exchange.rescued:
                self._tell(exchange, exchange.rescued)
            return exchange.replay(exchange, receive, send)
        return self._or_rescue(exchange, scope, receive, send)

    async def _or_rescue(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ProxyError as error:
            # Where there are other models, it is the fallback stage that knows when all has been tried.
            if not exchange.stale or not exchange.is_only or exchange.status is not None or not error.is_the_providers:
                raise
            forget_frames(error)
            exchange.cache, exchange.rescued = "stale", error
            exchange.in_vain += (Failed(exchange.provider, exchange.attempts, error.code or "", "an older answer"),)
        if exchange.stale and exchange.rescued:
            self._tell(exchange, exchange.rescued)
            await exchange.stale.replay(exchange, receive, send)

    def _tell(self, exchange: Exchange, error: ProxyError) -> None:
        """Whoever has decided it, this is where an old answer is given."""
        self._log("warning", "stale_answer", **exchange.ids, model=exchange.model, error_code=error.code)
