"""A model that is not asked at the moment has nothing reserved for it, where there is another one to turn to.

The breaker stage, which is inside quota and ledger, would find out too late. So whoever is to find out whether the
model is well again takes its place among those few here: while it is seen what the request may use, nobody else does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.circuit import Pass, Rules, is_open, of_model
from proxy.core.endpoint import Endpoint, ModelFrom
from proxy.core.exchange import exchange_of
from proxy.core.services import Middleware, Services


def build(
    chains: Mapping[str, Sequence[str]], rules: Mapping[str, Rules], endpoint: Endpoint, services: Services
) -> Middleware | None:
    """`chains` are the models to turn to; without any there is nothing to look for. `rules` by the provider's name."""
    if endpoint.model is not ModelFrom.BODY or not chains:
        return None

    def middleware(app: ASGIApp) -> ASGIApp:
        return PassOver(app, rules, services)

    return middleware


class PassOver:
    def __init__(self, app: ASGIApp, rules: Mapping[str, Rules], services: Services) -> None:
        self._app = app
        self._rules = rules
        self._circuits = services.circuits
        self._model = services.catalogue.model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        if exchange.others and exchange.replay is None:
            name = of_model(exchange.provider, self._model(exchange.model or "").id)
            rules = self._rules[exchange.provider]
            let_in = self._circuits.at_once(name) or await self._circuits.enter(name, rules)
            if not isinstance(let_in, Pass):
                raise is_open(let_in)
            if let_in.circuit:
                exchange.probe = let_in
                try:
                    await self._app(scope, receive, send)
                finally:
                    if exchange.probe is let_in:  # it did not get as far as the breaker stage
                        exchange.probe = None
                        self._circuits.leave(let_in, rules, None)
                return
        await self._app(scope, receive, send)
