"""Whether a conversation that is too long is cut to what its model takes: only for those who want it."""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping
from typing import Final, Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.context_window import ANSWER, fit
from proxy.core.endpoint import Endpoint, ModelFrom
from proxy.core.errors import BadRequest
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.services import Middleware, Services

SLIDING: Final = "sliding-window"

WhenTooLong = Literal["sliding-window"]
"""`models.context.<name>` of proxy.yaml."""

_ASKED: Final = {SLIDING.encode(): True, b"off": False}


def build(
    chosen: Mapping[str, WhenTooLong], default_max_tokens: int | None, endpoint: Endpoint, services: Services
) -> Middleware | None:
    """`chosen` is what models have by themselves, by any of their names; `default_max_tokens` is sent with requests
    that set no limit."""
    if endpoint.model is not ModelFrom.BODY:
        return None
    catalogue = services.catalogue
    sliding = {catalogue.model(catalogue.resolve(name)).id for name in chosen}

    def middleware(app: ASGIApp) -> ASGIApp:
        return Context(app, sliding, default_max_tokens or ANSWER, services)

    return middleware


class Context:
    """Stands before what a request may cost is reckoned: what is cut is not reserved."""

    def __init__(self, app: ASGIApp, sliding: Collection[str], answer: int, services: Services) -> None:
        self._app = app
        self._answer = answer
        self._sliding = sliding
        self._model = services.catalogue.model

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        exchange = exchange_of(scope)
        if self._is_wanted(exchange):
            self._cut(exchange)
        return self._app(scope, receive, send)

    def _is_wanted(self, exchange: Exchange) -> bool:
        asked = exchange.head.header(b"x-proxy-context")
        if asked is None:
            return bool(self._sliding) and self._model(exchange.model or "").id in self._sliding
        if asked not in _ASKED:
            raise BadRequest(f"x-proxy-context must be '{SLIDING}' or 'off'.", param="x-proxy-context")
        return _ASKED[asked]

    def _cut(self, exchange: Exchange) -> None:
        body, context = exchange.body or {}, self._model(exchange.model or "").context
        found = fit(body, context, self._answer) if context else None
        if found:
            kept, gone = found
            exchange.body = {**body, "messages": kept}
            exchange.rewrites[f"cut:messages:{gone}"] = None
