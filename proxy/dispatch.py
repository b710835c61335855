"""The end of the pipe: the exchange is translated, sent to the provider, and its answer brought back.

Two classes, as in Starlette's own middleware: `Dispatch` is made once per endpoint, a `Responder` once per request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.types import Receive, Scope, Send

from proxy.core import json
from proxy.core.endpoint import Batch, Endpoint, EventStream, ModelFrom
from proxy.core.errors import BadRequest, ClientGone, InvalidJson, ProxyError, UpstreamFailed, UpstreamRefusal
from proxy.core.exchange import Exchange
from proxy.core.json import Json
from proxy.core.provider import Provider
from proxy.core.services import Services
from proxy.core.table import Context
from proxy.guard import Guard
from proxy.relay import Relay
from proxy.upstream.client import Upstream, failure, read
from proxy.upstream.transport import Answer, TransportError

_MODES = {b"strict": True, b"lenient": False}

_ALARMS = {
    "upstream_auth_failed": "the provider refuses the key of this proxy",
    "unknown_parameter": "the provider's schema has changed: a field that the tables let through is unknown to it",
}
"""Refusals that no client can mend: somebody who runs the proxy must know."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Dispatch:
    """`defaults` are fields of the upstream body for requests that do not set them; `aliases` are those of proxy.yaml,
    shown in the list of models; `open_guards` holds the guards of all requests under way, for the drain.
    """

    endpoint: Endpoint
    provider: Provider
    upstream: Upstream
    services: Services
    strict: bool
    defaults: Json
    aliases: dict[str, str]
    open_guards: set[Guard]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        context = self._context(exchange)
        body = self._body(context)
        guard = Guard(receive, self.upstream.timeouts, self.open_guards)
        responder = Responder(self, exchange, context, guard)
        exchange.upstream = f"{self.provider.name}/{exchange.model}" if exchange.model else self.provider.name
        try:
            if self.endpoint.events and body and body.get("stream"):
                exchange.streamed = True
                await responder.stream(body, self.endpoint.events(context), send)
            else:
                await responder.answer(body, send)
        except ClientGone:
            exchange.client_gone = True

    def _context(self, exchange: Exchange) -> Context:
        notes: Json
        if self.endpoint.model is ModelFrom.NOWHERE:
            notes = {"visible": exchange.team.allows if exchange.team else None, "aliases": self.aliases}
        else:
            notes = {"model": exchange.model, "asked": exchange.model_asked, "defaults": self.defaults}
        return Context(
            model=self.services.catalogue.model(exchange.model or ""),
            asked=exchange.body or {},
            strict=self._is_strict(exchange),
            rewrites=exchange.rewrites,
            notes=notes,
            redact=self.services.redact.text,
        )

    def _is_strict(self, exchange: Exchange) -> bool:
        asked = exchange.header(b"x-proxy-translation")
        if asked is None:
            return self.strict
        if asked not in _MODES:
            raise BadRequest("x-proxy-translation must be 'strict' or 'lenient'.", param="x-proxy-translation")
        return _MODES[asked]

    def _body(self, context: Context) -> Json | None:
        if self.endpoint.request is None:
            return None
        body = self.endpoint.request.translate(context.asked, context)
        body["model"] = context.notes["model"]
        return body


@dataclass(frozen=True, slots=True)
class Responder:
    """The upstream calls of one exchange, and its answer."""

    dispatch: Dispatch
    exchange: Exchange
    context: Context
    guard: Guard

    async def answer(self, body: Json | None, send: Send) -> None:
        batch = self.dispatch.endpoint.batch
        async with self.guard:
            if batch and body:
                answer = batch.merge([one for part in batch.split(body) for one in await self._parts(batch, part)])
            else:
                answer = await self._read(body)
        self.exchange.usage = answer.get("usage")
        await _send_json(send, self.dispatch.upstream.scrub(json.encode(answer)))

    async def stream(self, body: Json, events: EventStream, send: Send) -> None:
        relay = Relay(events, self.guard, send, self.dispatch.upstream.scrub)
        try:
            async with self.guard:
                await self._call(body, relay.run)
        except ProxyError as error:
            if events.done:  # the client has its whole answer; the upstream was only slow to end its own
                return
            last = events.end()
            if events.done:  # nothing was missing but the end mark
                await relay.finish(last)
                return
            if not relay.started:
                raise
            self.exchange.error = error
            await relay.fail(error)
        finally:
            self.exchange.usage = events.usage

    async def _parts(self, batch: Batch, body: Json) -> list[tuple[Json, Json]]:
        """One part of a batch with its answer; it is halved for as long as the provider says that it is too large."""
        try:
            return [(body, await self._read(body))]
        except UpstreamRefusal as refusal:
            halves = batch.halve(refusal, body)
            if not halves:
                raise
        return [one for half in halves for one in await self._parts(batch, half)]

    async def _read(self, body: Json | None) -> Any:
        raw = await self._call(body, lambda answer: read(answer, self.guard.heard))
        try:
            answer = json.decode(raw)
        except json.Malformed:
            raise UpstreamFailed("The upstream's answer was not valid JSON.") from None
        return self.dispatch.endpoint.answer(answer, self.context)

    async def _call(self, body: Json | None, use: Callable[[Answer], Awaitable[T]]) -> T:
        """What `use` makes of the successful answer. A body that the provider refuses is mended and sent once more
        where its error table knows how: a refusal costs nothing, and nothing has reached the client."""
        try:
            return await self._once(body, use)
        except UpstreamRefusal as refusal:
            mended = self.dispatch.provider.mend(refusal, body) if body else None
            if mended is None:
                raise
        body, what = mended
        self.exchange.rewrites[what] = None
        return await self._once(body, use)

    async def _once(self, body: Json | None, use: Callable[[Answer], Awaitable[T]]) -> T:
        endpoint, upstream = self.dispatch.endpoint, self.dispatch.upstream
        path = endpoint.upstream.replace("{id}", quote(self.exchange.model or "", safe=""))
        data = None if body is None else _encode(body)
        self.exchange.attempts += 1
        self.guard.calling()
        try:
            async with upstream.call(endpoint.method, path, data, stream=self.exchange.streamed) as answer:
                named = self.dispatch.provider.answer_headers(answer.header)
                self.exchange.answer_headers = [(name, upstream.scrub(value)) for name, value in named]
                if 200 <= answer.status < 300:
                    return await use(answer)
                refused = await read(answer, self.guard.heard)
        except TransportError as error:
            if error.kind == "pool":
                self.exchange.attempts -= 1  # nothing was sent
            raise failure(error, upstream.timeouts) from None
        raise self._refusal(answer, refused)

    def _refusal(self, answer: Answer, body: bytes) -> ProxyError:
        error = self.dispatch.provider.refusal(answer.status, answer.header, body, self.context)
        scrub = self.dispatch.upstream.scrub
        error.message = scrub(error.message.encode()).decode()
        error.detail = json.decode(scrub(json.encode(error.detail)))
        if error.code in _ALARMS:
            self.dispatch.services.log(
                "error", "alarm", request_id=self.exchange.request_id, code=error.code, what=_ALARMS[error.code]
            )
        return error


def _encode(body: Json) -> bytes:
    try:
        return json.encode(body)
    except RecursionError:
        raise InvalidJson("The body is nested too deeply.") from None


async def _send_json(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
