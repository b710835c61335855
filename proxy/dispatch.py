"""The end of the pipe: the translated request is sent to the provider, and its answer brought back.

Three classes: a `Way` is how one provider serves the endpoint, `Dispatch` is made once per endpoint, a `Responder` once
per request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from proxy.calls import Calls
from proxy.core import json
from proxy.core.charge import both
from proxy.core.endpoint import Batch, Endpoint, EventStream, Meter
from proxy.core.errors import (
    ClientGone,
    Draining,
    ProxyError,
    Repeat,
    UpstreamFailed,
    UpstreamRefusal,
    forget_frames,
)
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.gaps import Gaps
from proxy.core.json import Json
from proxy.core.provider import Provider
from proxy.core.services import Services
from proxy.core.success import send_json
from proxy.core.table import Context
from proxy.guard import Deadlines, Guard
from proxy.metering import charged
from proxy.relay import Relay
from proxy.upstream.client import MOST_JSON, Upstream, is_json, read
from proxy.upstream.transport import Answer

_CONFLICT = 409
"""SDKs repeat it by themselves."""

_LARGE = 1 << 20
"""Bytes of an answer above which its values are counted before it is decoded."""


@dataclass(slots=True)
class Way:
    """How one provider serves an endpoint: by this row of its own."""

    endpoint: Endpoint
    provider: Provider
    upstream: Upstream
    deadlines: Deadlines = field(init=False)

    def __post_init__(self) -> None:
        timeouts = self.upstream.timeouts
        self.deadlines = Deadlines(timeouts.first_byte, timeouts.idle, timeouts.total)

    def clean(self, error: ProxyError) -> None:
        """What ends an exchange: without the provider's key, and without the bodies in its frames. It is no reason for
        an SDK to begin again: all that may help has been tried."""
        forget_frames(error)
        if self.upstream.retries.on and (error.repeat is not Repeat.NEVER or error.status == _CONFLICT):
            error.forbid_retry()
        scrub = self.upstream.scrub
        error.message = scrub(error.message.encode()).decode()
        error.param = error.param and scrub(error.param.encode()).decode()
        error.detail = json.decode(scrub(json.encode(error.detail)))


@dataclass(frozen=True, slots=True)
class Dispatch:
    """`ways` by the provider's name."""

    ways: Mapping[str, Way]
    services: Services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        way, context, body = self.ways[exchange.provider], exchange.context, exchange.sending
        assert context
        endpoint, upstream = way.endpoint, way.upstream
        guard = Guard(
            receive, way.deadlines, self.services.drainables, exchange.end, exchange.stays, exchange.departure
        )
        calls = Calls(endpoint, way.provider, upstream, self.services.log, exchange, context, guard)
        responder = Responder(way, exchange, context, guard, calls, self.services.monotonic)
        if exchange.called is None:
            exchange.called = self.services.monotonic()
        exchange.returned = None  # what a model asked before this one has said
        exchange.upstream = f"{exchange.provider}/{exchange.sent_as}" if exchange.model else exchange.provider
        try:
            if endpoint.events and body and body.get("stream"):
                exchange.streamed = True
                exchange.gaps = guard.gaps = Gaps()
                await responder.stream(body, endpoint.events(context), send)
            else:
                await responder.answer(body, send)
        except ProxyError as error:
            exchange.returned = self.services.monotonic()
            way.clean(error)
            raise
        except ClientGone as gone:
            forget_frames(gone)
            exchange.client_gone = True
            exchange.cancelled = exchange.attempts > 0
        finally:
            exchange.end = guard.ends


class Responder(msgspec.Struct, eq=False):
    """The answer of one exchange, and what it is charged."""

    way: Way
    exchange: Exchange
    context: Context
    guard: Guard
    calls: Calls
    clock: Callable[[], float]

    async def answer(self, body: Json | None, send: Send) -> None:
        batch = self.way.endpoint.batch
        answered: list[tuple[Json, Json]] = []
        try:
            with self.guard:
                if batch and body:
                    for part in batch.split(body):
                        await self._answer_parts(batch, part, answered)
                    answer = batch.merge(answered)
                else:
                    answer = self._understood(await self.calls.call(body, self._whole))
        except BaseException as error:
            # What several calls have cost is not lost with the one that failed.
            self.exchange.sent = self.exchange.sent or bool(answered)
            self._charge(None, delivered=None, ended=None if answered else error)
            raise
        usage = answer.get("usage")
        delivered = _tokens_of(answer) if usage is None else 0
        self._metered(usage, tier=answer.get("service_tier"), delivered=delivered)
        # Nothing of ours is held any longer: a client that does not read keeps only its own connection. Looked through
        # once more: the parts of a text, put together, may spell the key that none of them did.
        await send_json(send, self.way.upstream.scrub(json.encode(answer)))

    async def stream(self, body: Json, events: EventStream, send: Send) -> None:
        charged = False
        ended: BaseException | None = None
        stuck = False

        def charge() -> None:
            """Once, and before the client has the last of it."""
            nonlocal charged
            if charged:
                return
            charged = True
            if events.done:
                self._metered(events.usage, tier=events.tier, delivered=events.delivered)
            else:
                # While a client does not read, its provider goes on into the buffers between: nobody knows how far.
                delivered = None if stuck else events.delivered
                self._charge(events.usage, tier=events.tier, delivered=delivered, ended=ended)

        relay = Relay(events, self.guard, send, self.way.upstream.scrub, charge)
        try:
            with self.guard:
                await self.calls.call(body, relay.run)
        except ProxyError as error:
            ended, stuck = error, isinstance(error, Draining) and bool(relay.unsent)
            if events.done and not relay.unsent:
                return  # the client has its whole answer; the upstream was only slow to end its own
            last = events.end()
            if events.done:  # nothing was missing but the end mark, or the client's patience to take it
                await relay.finish(last)
                return
            if not relay.started:
                raise
            self.way.clean(error)
            self.exchange.error = error
            charge()
            await relay.fail(error)
        except BaseException as error:
            ended, stuck = error, bool(relay.unsent)
            raise
        finally:
            charge()

    async def _answer_parts(self, batch: Batch, body: Json, answered: list[tuple[Json, Json]]) -> None:
        """One part of a batch, and its answer, are added; it is halved for as long as the provider says that it is too
        large."""
        try:
            answered.append((body, self._understood(await self.calls.call(body, self._whole))))
            return
        except UpstreamRefusal as refusal:
            halves = batch.halve(refusal, body)
            if not halves:
                raise
        for half in halves:
            await self._answer_parts(batch, half, answered)

    def _understood(self, raw: bytes) -> Any:
        self.exchange.returned = self.clock()
        try:
            answer = json.decode(raw)
        except json.Malformed:
            raise UpstreamFailed("The upstream's answer was not valid JSON.") from None
        return self.way.endpoint.answer(answer, self.context)

    async def _whole(self, answer: Answer) -> bytes:
        if not is_json(answer):
            raise UpstreamFailed("The upstream answered a request for JSON with something else.")
        raw = answer.whole() or await read(answer, self.guard.heard, MOST_JSON)
        if raw is None or (len(raw) > _LARGE and _is_costly(raw, self.way.endpoint.most_values)):
            raise UpstreamFailed("The upstream's answer is too large.")
        # Before anything is made of it: a key that is cut, or put into a report, would not be found any more.
        return self.way.upstream.scrub(raw)

    def _metered(self, usage: Json | None, *, tier: str | None, delivered: int) -> None:
        """The whole answer is there."""
        self._charge(usage, tier=tier, delivered=delivered)
        if usage is None and self.way.endpoint.meter is Meter.TOKENS:
            self.calls.alarm("usage_anomaly")

    def _charge(
        self,
        usage: Json | None,
        *,
        tier: str | None = None,
        delivered: int | None,
        ended: BaseException | None = None,
    ) -> None:
        exchange = self.exchange
        exchange.usage = usage
        charge = charged(
            exchange.estimate,
            self.context.model,
            usage,
            tier=tier,
            sent=exchange.sent,
            delivered=delivered,
            ended=ended,
        )
        exchange.alone = charge
        exchange.charge = both(charge, exchange.lost) if exchange.lost else charge


def _tokens_of(answer: Json) -> int:
    """What an answer without usable counts is taken for; the estimate bounds it."""
    return len(json.encode(answer.get("choices"))) // 4 if "choices" in answer else 0


def _is_costly(raw: bytes, most: int) -> bool:
    """An escape that may be one of the key's costs as much as a value: both are counted."""
    return raw.count(b"\\u00") > most or json.exceeds(raw, most)
