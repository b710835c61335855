"""One row for each request that was let in, and model that it asked: begun before the provider is called, ended when
that has answered or failed."""

from __future__ import annotations

import asyncio
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.charge import NOTHING
from proxy.core.endpoint import Endpoint
from proxy.core.errors import ProxyError, StoreUnavailable
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.ledger import Intent, Ledger, LedgerFull, Outcome, Status
from proxy.core.services import Middleware, Services

_NAMES = 1024
"""Of models, whose redacted forms are remembered: the same ones come again and again."""


def build(endpoint: Endpoint, services: Services) -> Middleware | None:
    """None when no ledger is kept."""
    ledger = services.ledger
    if ledger is None:
        return None

    def middleware(app: ASGIApp) -> ASGIApp:
        return Rows(app, ledger, endpoint, services)

    return middleware


class Rows:
    """Stands inside the quota stage: what a request has used counts as free again only when its row is written."""

    def __init__(self, app: ASGIApp, ledger: Ledger, endpoint: Endpoint, services: Services) -> None:
        self._app = app
        self._ledger = ledger
        self._operation = endpoint.operation
        self._model = services.catalogue.model
        self._redact = services.redact.text
        self._names = lru_cache(_NAMES)(self._fit)
        self._prices = services.catalogue.price_version
        self._clock = services.monotonic
        self._wall = services.wall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        try:
            self._ledger.open(self._intent(exchange))
        except LedgerFull:
            exchange.forgo()
            raise StoreUnavailable(
                "No usage can be written down at the moment. Send the request again later."
            ) from None
        ended: BaseException | None = None
        try:
            await self._app(scope, receive, send)
        except BaseException as error:
            ended = error
            raise
        finally:
            self._ledger.close(self._outcome(exchange, ended or exchange.error))

    def _intent(self, exchange: Exchange) -> Intent:
        assert exchange.team
        assert exchange.key_id
        estimate = exchange.estimate
        model_asked, model, priced_as = self._names(exchange.model_asked, exchange.model)
        return Intent(
            call=exchange.call,
            request_id=exchange.request_id,
            opened=self._wall(),
            team=exchange.team.name,
            key_id=exchange.key_id,
            operation=self._operation,
            provider=exchange.provider,
            model_asked=model_asked,
            model=model,
            priced_as=priced_as,
            price_version=self._prices,
            stream=exchange.streamed or bool(exchange.body and exchange.body.get("stream")),
            prompt=estimate.prompt if estimate else 0,
            tokens=estimate.tokens if estimate else 0,
            cost=(estimate.cost or 0) if estimate else 0,
        )

    def _fit(self, asked: str | None, model: str | None) -> tuple[str | None, str | None, str | None]:
        """The name that was asked for, the model's, and that of its price. A client can put anything in their place, a
        key too; rows are kept, and shown by `usage`."""
        priced_as = self._model(model).id if model else None
        return asked and self._redact(asked), model and self._redact(model), priced_as and self._redact(priced_as)

    def _outcome(self, exchange: Exchange, ended: BaseException | None) -> Outcome:
        charge, began, first_byte = exchange.charge or NOTHING, exchange.started, exchange.first_byte
        status, http_status, code = _end(exchange, ended)
        return Outcome(
            call=exchange.call,
            closed=self._wall(),
            status=status,
            http_status=http_status,
            error=code,
            attempts=exchange.attempts,
            latency=_microseconds(self._clock() - began),
            first_byte=None if first_byte is None else _microseconds(first_byte - began),
            prompt=charge.prompt,
            cached=charge.cached,
            completion=charge.completion,
            reasoning=charge.reasoning,
            audio_seconds=charge.audio_seconds,
            pages=charge.pages,
            cost=charge.cost,
            estimated=charge.estimated,
            cache=exchange.cache,
            saved=exchange.saved,
        )


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _end(exchange: Exchange, ended: BaseException | None) -> tuple[Status, int | None, str | None]:
    """How it ended, the HTTP status of the answer, and the error's code."""
    if exchange.client_gone or isinstance(ended, asyncio.CancelledError):
        return "cancelled", exchange.status, "client_gone" if exchange.client_gone else "draining"
    if ended is None:
        return "settled", exchange.status, None
    if isinstance(ended, ProxyError):
        return "failed", exchange.status or ended.status, ended.code
    return "failed", exchange.status or 500, "internal_error"
