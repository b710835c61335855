"""What goes to the provider: its own request, made of the client's.

Before anything is reckoned or looked for: a request that the provider could not take is told so here, has cost nothing
and has no row; and the cache knows it by what would be sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.endpoint import Endpoint, ModelFrom
from proxy.core.errors import BadRequest, UnsupportedEndpoint
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.json import Json
from proxy.core.services import Middleware, Services
from proxy.core.table import Context

_NOWHERE: Final = ModelFrom.NOWHERE
_MODES: Final = {b"strict": True, b"lenient": False}


@dataclass(frozen=True, slots=True)
class Config:
    """`rows(endpoint)` is how each provider serves an endpoint, by the provider's name. `defaults` are fields of the
    upstream body for requests that do not set them; `aliases` are those of proxy.yaml, shown in the list of models.
    """

    rows: Callable[[Endpoint], Mapping[str, Endpoint]]
    strict: bool
    defaults: Json
    aliases: Mapping[str, str]


def build(config: Config, endpoint: Endpoint, services: Services) -> Middleware:
    rows = config.rows(endpoint)

    def middleware(app: ASGIApp) -> ASGIApp:
        return Translate(app, rows, config, services)

    return middleware


class Translate:
    def __init__(self, app: ASGIApp, rows: Mapping[str, Endpoint], config: Config, services: Services) -> None:
        self._app = app
        self._rows = rows
        self._strict = config.strict
        self._defaults = config.defaults
        self._aliases = config.aliases
        self._model = services.catalogue.model
        self._redact = services.redact.text

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        exchange = exchange_of(scope)
        row = self._rows.get(exchange.provider)
        if row is None:
            raise UnsupportedEndpoint(
                f"The provider '{exchange.provider}' does not serve this endpoint.", param="model"
            )
        context = exchange.context = self._context(exchange, row)
        if row.request is not None:
            exchange.sending = row.request.translate(context.asked, context)
            exchange.sending["model"] = exchange.sent_as
        return self._app(scope, receive, send)

    def _context(self, exchange: Exchange, row: Endpoint) -> Context:
        notes: Json
        if row.model is _NOWHERE:
            notes = {"visible": exchange.team.allows if exchange.team else None, "aliases": self._aliases}
        else:
            notes = {"asked": exchange.model_asked, "defaults": self._defaults}
        model, strict = self._model(exchange.model or ""), self._is_strict(exchange)
        return Context(model, exchange.body or {}, strict, exchange.rewrites, notes, self._redact)

    def _is_strict(self, exchange: Exchange) -> bool:
        asked = exchange.head.header(b"x-proxy-translation")
        if asked is None:
            return self._strict
        if asked not in _MODES:
            raise BadRequest("x-proxy-translation must be 'strict' or 'lenient'.", param="x-proxy-translation")
        return _MODES[asked]
