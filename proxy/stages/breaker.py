"""Whether the provider is asked at all: not while what is asked of it fails all the time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core import wording
from proxy.core.circuit import Pass, Rules, State, is_open, of_key, of_model, verdict, verdict_on_key
from proxy.core.endpoint import Endpoint
from proxy.core.errors import KEY_REFUSED, SHOULD_RETRY, UpstreamFailed
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.services import Middleware, Services

_CLOSED: Final = State.CLOSED.value


@dataclass(frozen=True, slots=True)
class Config:
    """By the provider's name: its `rules`, and the teams that pay it with `own_keys`."""

    rules: Mapping[str, Rules]
    own_keys: Mapping[str, Collection[str]] = field(default_factory=dict)


def build(config: Config, endpoint: Endpoint, services: Services) -> Middleware:
    def middleware(app: ASGIApp) -> ASGIApp:
        return Breaker(app, config, services)

    return middleware


class Breaker:
    """One circuit for each model of a provider, and one for the keys that it is paid with."""

    def __init__(self, app: ASGIApp, config: Config, services: Services) -> None:
        self._app = app
        self._rules = config.rules
        self._own_keys = config.own_keys
        self._circuits = services.circuits
        self._model = services.catalogue.model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        provider, rules = exchange.provider, self._rules[exchange.provider]
        paid_by = self._key_of(exchange)
        name = of_model(provider, self._model(exchange.model).id) if exchange.model else provider
        key = self._circuits.at_once(paid_by) or await self._circuits.enter(paid_by, rules)
        if not isinstance(key, Pass):
            raise _refused()
        try:
            model: Pass | float | None = exchange.probe or self._circuits.at_once(name)
            exchange.probe = None
            if isinstance(model, Pass) and not model.circuit:
                exchange.circuit = _CLOSED
            else:
                model = model or await self._circuits.enter(name, rules)
                exchange.circuit = self._circuits.state(name).value
            if not isinstance(model, Pass):
                raise is_open(model)
        except BaseException:
            self._circuits.leave(key, rules, None)
            raise
        exchange.attempt_failed = partial(self._circuits.failed, model, rules)
        ended: BaseException | None = None
        try:
            await self._app(scope, receive, send)
        except BaseException as raised:
            ended = raised
            raise
        finally:
            end = ended or exchange.error
            # Whose client has left mostly has not heard the end, and what was never asked has none.
            heard = exchange.attempts and (not exchange.client_gone or exchange.usage is not None)
            self._circuits.leave(model, rules, verdict(end) if heard else None)
            self._circuits.leave(key, rules, verdict_on_key(end) if heard else None)

    def _key_of(self, exchange: Exchange) -> str:
        team = exchange.team.name if exchange.team else None
        return of_key(exchange.provider, team if team in self._own_keys.get(exchange.provider, ()) else None)


def _refused() -> UpstreamFailed:
    return UpstreamFailed(
        wording.KEY_REFUSED,
        code=KEY_REFUSED,
        billed=False,
        headers=[(SHOULD_RETRY, b"false")],
    )
