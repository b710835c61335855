"""Whether the provider is asked at all: not while what is asked of it fails all the time."""

from __future__ import annotations

from functools import partial
from math import ceil

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.circuit import REFUSED, Pass, Rules, verdict, verdict_on_key
from proxy.core.endpoint import Endpoint
from proxy.core.errors import CircuitOpen, UpstreamFailed
from proxy.core.exchange import Exchange
from proxy.core.services import Middleware, Services


def build(rules: Rules, provider: str, endpoint: Endpoint, services: Services) -> Middleware:
    def middleware(app: ASGIApp) -> ASGIApp:
        return Breaker(app, rules, provider, services)

    return middleware


class Breaker:
    """One circuit for each model of the provider, and one for the key that it is paid with."""

    def __init__(self, app: ASGIApp, rules: Rules, provider: str, services: Services) -> None:
        self._app = app
        self._rules = rules
        self._provider = provider
        self._key = f"{provider} key"
        self._circuits = services.circuits
        self._model = services.catalogue.model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        name = f"{self._provider}/{self._model(exchange.model).id}" if exchange.model else self._provider
        key = await self._enter(self._key)
        try:
            model = await self._enter(name)
        except BaseException:
            self._circuits.leave(key, self._rules, None)
            raise
        exchange.attempt_failed = partial(self._circuits.failed, model, self._rules)
        ended: BaseException | None = None
        try:
            await self._app(scope, receive, send)
        except BaseException as raised:
            ended = raised
            raise
        finally:
            end = ended or exchange.error
            # Who has left has not heard the end, and what was never asked has none.
            heard = exchange.attempts and not exchange.client_gone
            self._circuits.leave(model, self._rules, verdict(end) if heard else None)
            self._circuits.leave(key, self._rules, verdict_on_key(end) if heard else None)

    async def _enter(self, name: str) -> Pass:
        found = await self._circuits.enter(name, self._rules)
        if isinstance(found, Pass):
            return found
        if name == self._key:
            raise UpstreamFailed(
                "The proxy's own key was refused by the provider; its operator must act.",
                code=REFUSED,
                billed=False,
                headers=[(b"x-should-retry", b"false")],
            )
        raise CircuitOpen(
            "The provider keeps failing, so it is not asked at the moment. Try again later.", wait=ceil(found * 1000)
        )
