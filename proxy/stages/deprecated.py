"""Who still asks a model that is about to end, or has ended, is worth a line a day."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.endpoint import Endpoint, ModelFrom
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.model import Model
from proxy.core.services import Middleware, Services


def build(level: str, endpoint: Endpoint, services: Services) -> Middleware | None:
    """`level` is the least one that is logged."""
    if level == "error" or endpoint.model is ModelFrom.NOWHERE:
        return None
    ending = [model for model in services.catalogue.models if model.is_deprecated]
    by_name = {name: model for model in ending for name in (model.id, *model.names)}

    def middleware(app: ASGIApp) -> ASGIApp:
        return Deprecated(app, by_name, services)

    return middleware


class Deprecated:
    def __init__(self, app: ASGIApp, by_name: Mapping[str, Model], services: Services) -> None:
        self._app = app
        self._by_name = by_name
        self._log = services.log
        self._wall = services.wall
        self._is_due = services.notices.is_due

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        exchange = exchange_of(scope)
        model = self._by_name.get(exchange.model or "")
        if model:
            self._tell(exchange, model)
        return self._app(scope, receive, send)

    def _tell(self, exchange: Exchange, model: Model) -> None:
        team = exchange.team.name if exchange.team else None
        if self._is_due((team, model.id), self._wall()):
            self._log(
                "warning",
                "model_deprecated",
                **exchange.ids,
                team=team,
                model=exchange.model,
                retirement=model.retirement,
                replacement=model.replacement,
            )
