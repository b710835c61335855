"""What a trace tells of a request: one span, and one more for each model that was asked in vain before another.

A span is made when all is over, of what the exchange knows then: a request carries nothing for it but its ids. It has
no text of the client's or the provider's, but for the ids of the request and its trace.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.endpoint import Endpoint, Meter, ModelFrom
from proxy.core.errors import ProxyError
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.services import Middleware, Services
from proxy.core.trace import Span, Tracer

OTHER: Final = "other"
"""Stands for every model that neither the catalogue nor the configuration knows: its name is the client's text."""

_PROVIDERS: Final = {"mistral": "mistral_ai", "openai": "openai"}
"""OpenTelemetry's word for who speaks each type of API."""

_PORTS: Final = {"https": 443, "http": 80}

_COUNTS: Final = (
    ("prompt_tokens", "mistral.prompt_tokens", "gen_ai.usage.input_tokens"),
    ("completion_tokens", "mistral.completion_tokens", "gen_ai.usage.output_tokens"),
    ("total_tokens", "mistral.total_tokens", None),
)
"""A count of the answer's usage, and what it is called in a span: by us, and by OpenTelemetry."""


@dataclass(frozen=True, slots=True)
class Config:
    """`providers` are the type and the base URL of each, by its name. `sample` is the part of the traces that begin
    here of which spans are kept."""

    endpoints: Sequence[Endpoint]
    providers: Mapping[str, tuple[str, str]]
    sample: float


def build(config: Config, services: Services) -> Middleware | None:
    """For all requests; None when nobody keeps spans."""
    tracer = services.tracer
    if tracer is None:
        return None
    author = Author(config, services)

    def middleware(app: ASGIApp) -> ASGIApp:
        return Trace(app, tracer, author)

    return middleware


def asked(
    config: Config, chains: Mapping[str, Sequence[str]], endpoint: Endpoint, services: Services
) -> Middleware | None:
    """For each model that is asked; None where there is only one. `chains` are those of the fallback stage."""
    tracer = services.tracer
    if tracer is None or endpoint.model is not ModelFrom.BODY or not chains:
        return None
    author = Author(config, services)

    def middleware(app: ASGIApp) -> ASGIApp:
        return Asked(app, endpoint, tracer, author)

    return middleware


class Trace:
    """Tells of a request to an endpoint. Health, what is for admins and what is not there are no part of a trace."""

    def __init__(self, app: ASGIApp, tracer: Tracer, author: Author) -> None:
        self._app = app
        self._tracer = tracer
        self._author = author

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        try:
            await self._app(scope, receive, send)
        finally:
            if exchange.sampled and (endpoint := self._author.endpoint(scope)):
                self._tracer.record(self._author.whole(exchange, endpoint))


class Asked:
    """Keeps the span of a model that has failed until another one is asked: that of the last one is the request's."""

    def __init__(self, app: ASGIApp, endpoint: Endpoint, tracer: Tracer, author: Author) -> None:
        self._app = app
        self._endpoint = endpoint
        self._tracer = tracer
        self._author = author

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        if exchange.span_before:
            self._tracer.record(exchange.span_before)
        if not exchange.sampled:
            await self._app(scope, receive, send)
            return
        begun = self._author.now()
        try:
            await self._app(scope, receive, send)
        except ProxyError as error:
            exchange.span_before = self._author.part(exchange, self._endpoint, begun, error)
            raise


class Author:
    """Writes spans."""

    def __init__(self, config: Config, services: Services) -> None:
        self.now = services.monotonic
        self._is_known = services.catalogue.has
        self._endpoints = {(row.method, row.path): row for row in config.endpoints}
        self._providers = {name: _PROVIDERS[kind] for name, (kind, _) in config.providers.items()}
        self._servers = {name: _server(url) for name, (_, url) in config.providers.items()}

    def endpoint(self, scope: Scope) -> Endpoint | None:
        route = scope.get("route")
        return self._endpoints.get((scope["method"], route.path)) if route else None

    def whole(self, exchange: Exchange, endpoint: Endpoint) -> Span:
        """The request's."""
        return self._span(exchange, endpoint, exchange.started, exchange.error, exchange.span_id, exchange.parent_id)

    def part(self, exchange: Exchange, endpoint: Endpoint, begun: float, error: ProxyError) -> Span:
        """Of the model that is asked now, within the request's."""
        return self._span(exchange, endpoint, begun, error, secrets.token_hex(8), exchange.span_id)

    def _span(
        self,
        exchange: Exchange,
        endpoint: Endpoint,
        begun: float,
        error: ProxyError | None,
        span_id: str,
        parent_id: str | None,
    ) -> Span:
        operation = endpoint.span + "_stream" * _is_stream(exchange)
        return Span(
            name=f"mistral.client.{operation}",
            trace_id=exchange.trace_id,
            span_id=span_id,
            parent_id=parent_id,
            is_remote=span_id == exchange.span_id,
            flags=exchange.trace_flags,
            start=begun,
            end=self.now(),
            attributes=self._attributes(exchange, endpoint, operation, error),
            failed=error is not None,
        )

    def _attributes(
        self, exchange: Exchange, endpoint: Endpoint, operation: str, error: ProxyError | None
    ) -> dict[str, Any]:
        told: dict[str, Any] = {
            "http.request.method": endpoint.method,
            "http.route": endpoint.path,
            "mistral.operation": operation,
            "mistral.request_id": exchange.request_id,
        }
        if exchange.status is not None:
            told["http.response.status_code"] = exchange.status
        if exchange.team:
            told["mistral_proxy.team"] = exchange.team.name
        if exchange.cache:
            told["mistral_proxy.cache"] = exchange.cache
        if exchange.client_gone:
            told["mistral_proxy.client_gone"] = True
        if error:
            told["error.type"] = error.code or error.type
        if exchange.attempts:
            told |= self._servers[exchange.provider]
            if exchange.attempts > 1:
                told["http.request.resend_count"] = exchange.attempts - 1
        if exchange.model:
            told["mistral.model"] = model = exchange.model if self._is_known(exchange.model) else OTHER
            if endpoint.meter is Meter.TOKENS:
                told["gen_ai.operation.name"] = endpoint.span.partition(".")[0]
                told["gen_ai.provider.name"] = self._providers.get(exchange.provider, OTHER)
                told["gen_ai.request.model"] = model
        if exchange.usage:
            told |= _counts(exchange.usage)
        if exchange.context and exchange.context.ends:
            told["mistral.finish_reason"] = exchange.context.ends[0]
            told["gen_ai.response.finish_reasons"] = tuple(exchange.context.ends)
        return told


def _is_stream(exchange: Exchange) -> bool:
    """Also of one that was refused before it began."""
    return exchange.streamed or (isinstance(exchange.body, dict) and exchange.body.get("stream") is True)


def _counts(usage: Mapping[str, Any]) -> dict[str, int]:
    told: dict[str, int] = {}
    for count, ours, theirs in _COUNTS:
        value = usage.get(count)
        if type(value) is int and 0 <= value < 1 << 53:  # it comes from the provider
            told[ours] = value
            if theirs:
                told[theirs] = value
    return told


def _server(url: str) -> dict[str, str | int]:
    parts = urlsplit(url)
    return {"server.address": parts.hostname or "", "server.port": parts.port or _PORTS[parts.scheme]}
