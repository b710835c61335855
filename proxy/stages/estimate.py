"""What a request may cost at most, before anything of it is spent."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.charge import FREE, estimate
from proxy.core.endpoint import Endpoint, Meter
from proxy.core.exchange import exchange_of
from proxy.core.services import Middleware, Services

UNLIMITED: Final = 4096
"""Tokens that an answer without a limit of its own counts for until it is there."""


def build(default_max_tokens: int | None, endpoint: Endpoint, services: Services) -> Middleware:
    """`default_max_tokens` is sent with requests that set no limit (models.default_max_tokens)."""

    def middleware(app: ASGIApp) -> ASGIApp:
        return Estimated(app, endpoint.meter is not Meter.NOTHING, default_max_tokens or UNLIMITED, services)

    return middleware


class Estimated:
    """Gives the request the id under which it is counted and accounted for, ours and not the client's."""

    def __init__(self, app: ASGIApp, metered: bool, completion: int, services: Services) -> None:
        self._app = app
        self._metered = metered
        self._completion = completion
        self._next_call = services.next_call
        self._clock = services.monotonic
        self._model = services.catalogue.model

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        exchange = exchange_of(scope)
        if exchange.looked_up is None:
            exchange.looked_up = self._clock()
        exchange.call = self._next_call()
        if exchange.replay:
            exchange.estimate = FREE
        elif self._metered and exchange.body is not None:
            exchange.estimate = estimate(exchange.body, self._model(exchange.model or ""), self._completion)
        return self._app(scope, receive, send)
