"""Another model, perhaps at another provider, for a request that one has not answered.

Only before the first byte of an answer. Each model that is asked is checked, reserved, called and charged as if it were
the only one, at its own price; what a failed one held is free again before the next one is asked. All share one time.
"""

from __future__ import annotations

from asyncio import get_running_loop
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.cache import Outcome
from proxy.core.catalogue import Catalogue
from proxy.core.endpoint import Endpoint, ModelFrom
from proxy.core.errors import CircuitOpen, Draining, Elsewhere, ProxyError, forget_frames
from proxy.core.exchange import Exchange, Failed, Stale, Then, exchange_of
from proxy.core.services import Middleware, Services

Chains = Mapping[str, Sequence[str]]
"""The models to turn to, in this order, by the one whose place they take."""


def build(chains: Chains, endpoint: Endpoint, services: Services) -> Middleware | None:
    """`chains` may call their models by any name."""
    if endpoint.model is not ModelFrom.BODY or not chains:
        return None
    known = chains_by_id(chains, services.catalogue)

    def middleware(app: ASGIApp) -> ASGIApp:
        return Fallback(app, known, services)

    return middleware


def chains_by_id(chains: Chains, catalogue: Catalogue) -> Chains:
    """By the catalogue's id of the model whose place the others take; those by the names that the proxy knows."""
    resolve, model = catalogue.resolve, catalogue.model
    return {model(resolve(name)).id: [resolve(other) for other in others] for name, others in chains.items()}


class FirstTry(NamedTuple):
    """What the cache had for a model, and what was done to the body that it got."""

    cache: Outcome | None
    cache_key: str | None
    rewrites: tuple[str, ...]


class Fallback:
    """`chains` by the catalogue's id of the model that is asked for."""

    def __init__(self, app: ASGIApp, chains: Chains, services: Services) -> None:
        self._app = app
        self._chains = chains
        self._catalogue = services.catalogue
        self._quotas = services.quotas
        self._log = services.log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        model = exchange.model or ""
        others = self._chains.get(self._catalogue.model(model).id)
        if not others:
            await self._app(scope, receive, send)
            return
        allows = exchange.team.allows if exchange.team else (lambda name: True)
        await self._try(deque([model, *filter(allows, others)]), scope, receive, send)

    async def _try(self, models: deque[str], scope: Scope, receive: Receive, send: Send) -> None:
        """One after the other, until one answers."""
        exchange = exchange_of(scope)
        body, failed = exchange.body, list[tuple[str, ProxyError]]()
        while models:
            model = models.popleft()
            exchange.others = bool(models)
            try:
                await self._app(scope, receive, send)
                return
            except ProxyError as error:
                if isinstance(error, Draining) or exchange.status is not None or _is_for_nobody(exchange):
                    raise
                forget_frames(error)
                failed.append((model, error))
            if len(failed) == 1:
                first_try = FirstTry(exchange.cache, exchange.cache_key, tuple(exchange.rewrites))
                models = deque(name for name in models if self._may(name, *failed[0]))
            if exchange.end is not None and get_running_loop().time() >= exchange.end:
                models.clear()  # no time is left for anybody
            if models:
                await self._turn(exchange, models[0], failed[-1][1])
                exchange.body = body
        await self._all_failed(failed, first_try, scope, receive, send)

    async def _all_failed(
        self, failed: Sequence[tuple[str, ProxyError]], first_try: FirstTry, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """One may have answered before. Else the first one's error is told, with what came of its `first_try`: the
        others are models that the client has not asked for."""
        exchange, (asked, first), (_, last) = exchange_of(scope), failed[0], failed[-1]
        before, failure = exchange.in_vain, _failed(exchange, last, "nothing")
        if exchange.stale and first.is_the_providers:
            exchange.in_vain = (*before, replace(failure, then="an older answer"))
            try:
                await self._rescue(exchange, exchange.stale, first, scope, receive, send)
                return
            except ProxyError as refused:
                if isinstance(refused, Draining) or exchange.status is not None:
                    raise
                # There was no room for one more, be it for nothing.
                exchange.age = exchange.replay = exchange.rescued = None
        if exchange.turned:
            exchange.in_vain = (*before, failure)
            exchange.upstream = "/".join(self._catalogue.place(asked))
            exchange.cache, exchange.cache_key = first_try.cache, first_try.cache_key
            exchange.rewrites.clear()
            exchange.rewrites.update(dict.fromkeys(first_try.rewrites))
        raise _told(first, [error for _, error in failed])

    async def _rescue(
        self, exchange: Exchange, stale: Stale, error: ProxyError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """All has been tried, and what a model answered before is still there: a call of its own, that calls nobody."""
        exchange.turn_to(stale.model, *self._catalogue.place(stale.model))
        exchange.others = False
        exchange.cache, exchange.rescued, exchange.replay = "stale", error, stale.replay
        await self._quotas.caught_up()
        await self._app(scope, receive, send)

    def _may(self, other: str, model: str, error: ProxyError) -> bool:
        """Whether the other one may do what this model has not done."""
        if error.elsewhere is not Elsewhere.LARGER:
            return error.elsewhere is Elsewhere.YES
        takes, took = self._catalogue.model(other).context, self._catalogue.model(model).context
        return takes is not None and took is not None and takes > took

    async def _turn(self, exchange: Exchange, model: str, error: ProxyError) -> None:
        told = {**exchange.ids, "error_code": error.code}
        self._log("warning", "fallback", model=exchange.model, to=model, **told)
        exchange.in_vain += (_failed(exchange, error, "another model"),)
        exchange.turn_to(model, *self._catalogue.place(model))
        await self._quotas.caught_up()


def _failed(exchange: Exchange, error: ProxyError, then: Then) -> Failed:
    return Failed(exchange.provider, exchange.attempts, error.code or "", then)


def _is_for_nobody(exchange: Exchange) -> bool:
    """Whether its client has left. The call went on for others, who turn to other models themselves."""
    return exchange.departure is not None and exchange.departure.gone


def _told(first: ProxyError, errors: Sequence[ProxyError]) -> ProxyError:
    """Where all are left alone, the time after which the first of them is tried again."""
    waits = [error.wait for error in errors if isinstance(error, CircuitOpen)]
    if isinstance(first, CircuitOpen) and len(waits) == len(errors):
        return CircuitOpen(first.message, wait=min(waits))
    return first
