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
from proxy.core.charge import NOTHING, both, estimate, whole
from proxy.core.circuit import verdict
from proxy.core.endpoint import Batch, Endpoint, EventStream, Meter, ModelFrom, Retry
from proxy.core.errors import BadRequest, ClientGone, Draining, ProxyError, Repeat, UpstreamFailed, UpstreamRefusal
from proxy.core.exchange import Exchange
from proxy.core.json import Json
from proxy.core.provider import Provider
from proxy.core.services import Services
from proxy.core.table import Context
from proxy.guard import Guard
from proxy.metering import charged, may_be_billed
from proxy.relay import Relay
from proxy.upstream.client import MOST_JSON, MOST_REFUSAL, Upstream, failure, is_encoded, is_json, read
from proxy.upstream.transport import Answer, TransportError

_MODES = {b"strict": True, b"lenient": False}

_ALARMS = {
    "upstream_auth_failed": "the provider refuses the key of this proxy",
    "unknown_parameter": "the provider's schema has changed: a field that the tables let through is unknown to it",
    "usage_anomaly": "an answer came without token counts that can be believed: it is not metered",
}
"""What no client can mend, by an error's code or a word of ours: somebody who runs the proxy must know."""

_CONFLICT = 409
"""SDKs repeat it by themselves."""

_LARGE = 1 << 20
"""Bytes of an answer above which its values are counted before it is decoded."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Dispatch:
    """`defaults` are fields of the upstream body for requests that do not set them; `aliases` are those of proxy.yaml,
    shown in the list of models.
    """

    endpoint: Endpoint
    provider: Provider
    upstream: Upstream
    services: Services
    strict: bool
    defaults: Json
    aliases: dict[str, str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        context = self._context(exchange)
        body = self._body(context)
        guard = Guard(receive, self.upstream.timeouts, self.services.drainables)
        responder = Responder(self, exchange, context, guard)
        exchange.upstream = f"{self.provider.name}/{exchange.model}" if exchange.model else self.provider.name
        try:
            if self.endpoint.events and body and body.get("stream"):
                exchange.streamed = True
                await responder.stream(body, self.endpoint.events(context), send)
            else:
                await responder.answer(body, send)
        except ProxyError as error:
            self.clean(error)
            raise
        except ClientGone as gone:
            _forget_frames(gone)
            exchange.client_gone = True

    def clean(self, error: ProxyError) -> None:
        """What ends an exchange: without the provider's key, and without the bodies in its frames. It is no reason for
        an SDK to begin again: all that may help has been tried."""
        _forget_frames(error)
        if self.upstream.retries.on and (error.repeat is not Repeat.NEVER or error.status == _CONFLICT):
            error.forbid_retry()
        scrub = self.upstream.scrub
        error.message = scrub(error.message.encode()).decode()
        error.param = error.param and scrub(error.param.encode()).decode()
        error.detail = json.decode(scrub(json.encode(error.detail)))

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
        answered: list[tuple[Json, Json]] = []
        try:
            async with self.guard:
                if batch and body:
                    for part in batch.split(body):
                        await self._answer_parts(batch, part, answered)
                    answer = batch.merge(answered)
                else:
                    answer = await self._read(body)
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
        await _send_json(send, self.dispatch.upstream.scrub(json.encode(answer)))

    async def stream(self, body: Json, events: EventStream, send: Send) -> None:
        relay = Relay(events, self.guard, send, self.dispatch.upstream.scrub)
        ended: BaseException | None = None
        stuck = False
        try:
            async with self.guard:
                await self._call(body, relay.run)
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
            self.dispatch.clean(error)
            self.exchange.error = error
            await relay.fail(error)
        except BaseException as error:
            ended, stuck = error, bool(relay.unsent)
            raise
        finally:
            if events.done:
                self._metered(events.usage, tier=events.tier, delivered=events.delivered)
            else:
                # While a client does not read, its provider goes on into the buffers between: nobody knows how far.
                delivered = None if stuck else events.delivered
                self._charge(events.usage, tier=events.tier, delivered=delivered, ended=ended)

    async def _answer_parts(self, batch: Batch, body: Json, answered: list[tuple[Json, Json]]) -> None:
        """One part of a batch, and its answer, are added; it is halved for as long as the provider says that it is too
        large."""
        try:
            answered.append((body, await self._read(body)))
            return
        except UpstreamRefusal as refusal:
            halves = batch.halve(refusal, body)
            if not halves:
                raise
        for half in halves:
            await self._answer_parts(batch, half, answered)

    async def _read(self, body: Json | None) -> Any:
        raw = await self._call(body, self._whole)
        try:
            answer = json.decode(raw)
        except json.Malformed:
            raise UpstreamFailed("The upstream's answer was not valid JSON.") from None
        return self.dispatch.endpoint.answer(answer, self.context)

    async def _whole(self, answer: Answer) -> bytes:
        if not is_json(answer):
            raise UpstreamFailed("The upstream answered a request for JSON with something else.")
        raw = await read(answer, self.guard.heard, MOST_JSON)
        if raw is None or (len(raw) > _LARGE and _is_costly(raw, self.dispatch.endpoint.most_values)):
            raise UpstreamFailed("The upstream's answer is too large.")
        # Before anything is made of it: a key that is cut, or put into a report, would not be found any more.
        return self.dispatch.upstream.scrub(raw)

    async def _call(self, body: Json | None, use: Callable[[Answer], Awaitable[T]]) -> T:
        """What `use` makes of the successful answer. A body that the provider refuses is mended and sent once more
        where its error table knows how: a refusal costs nothing, and nothing has reached the client."""
        try:
            return await self._persistently(body, use)
        except UpstreamRefusal as refusal:
            mended = self.dispatch.provider.mend(refusal, body) if body else None
            if mended is None:
                raise
        body, what = mended
        self.exchange.rewrites[what] = None
        self.exchange.sent = False
        return await self._persistently(body, use)

    async def _persistently(self, body: Json | None, use: Callable[[Answer], Awaitable[T]]) -> T:
        """A call, made again after a while for as long as that may help."""
        data = None if body is None else json.encode(body)
        retries, attempts = self.dispatch.upstream.retries, 1
        retries.request()
        while True:
            try:
                return await self._once(data, use)
            except ProxyError as error:
                repeat = self._repeat(error)
                pause = retries.wait(attempts, repeat, error.asked, self.guard.left)
                if pause is None or not self._is_worth_it(error):
                    raise
                self._again(error, body, attempts, pause, unsafe=repeat is Repeat.UNSAFE)
            await self.guard.rest(pause)
            attempts += 1

    def _repeat(self, error: ProxyError) -> Repeat:
        """What may be billed is what is sent and no question; whoever may have a part of an answer has no other one."""
        endpoint = self.dispatch.endpoint
        if error.repeat is Repeat.NEVER or (self.exchange.streamed and self.exchange.answered):
            return Repeat.NEVER
        if endpoint.method == "GET":
            return Repeat.SAFE
        if endpoint.retry is Retry.UNSAFE and self.exchange.sent:
            return Repeat.UNSAFE
        return error.repeat

    def _is_worth_it(self, error: ProxyError) -> bool:
        """Not once the provider is known to fail all the time."""
        tell = self.exchange.attempt_failed
        return verdict(error) is not False or tell is None or tell()

    def _again(self, error: ProxyError, body: Json | None, attempts: int, pause: float, *, unsafe: bool) -> None:
        """One more attempt. What this one may have cost is not forgotten."""
        exchange, log = self.exchange, self.dispatch.services.log
        if unsafe and exchange.estimate and may_be_billed(error):
            # Of a batch, this part.
            batch = self.dispatch.endpoint.batch
            most = estimate(body, self.context.model, 0) if batch and body else exchange.estimate
            exchange.lost = both(exchange.lost or NOTHING, whole(most))
        exchange.sent = exchange.answered = False
        log(
            "warning",
            "possible_double_bill" if unsafe else "retry",
            request_id=exchange.request_id,
            attempts=attempts,
            status_code=error.status,
            error_code=error.code,
            wait_s=round(pause, 3),
        )

    async def _once(self, data: bytes | None, use: Callable[[Answer], Awaitable[T]]) -> T:
        """One request, which is sent again if it met a connection that the upstream was just about to close."""
        try:
            try:
                return await self._attempt(data, use)
            except TransportError as error:
                if not error.stale or self.dispatch.endpoint.retry is not Retry.SAFE:
                    raise
            return await self._attempt(data, use, fresh=True)
        except TransportError as error:
            raise failure(error, self.dispatch.upstream.timeouts, sent=self.exchange.sent) from None

    async def _attempt(self, data: bytes | None, use: Callable[[Answer], Awaitable[T]], *, fresh: bool = False) -> T:
        endpoint, upstream = self.dispatch.endpoint, self.dispatch.upstream
        path = endpoint.upstream
        if endpoint.model is ModelFrom.PATH:
            path = path.replace("{id}", quote(self.exchange.model or "", safe=""))
        self.exchange.attempts += 1
        self.guard.calling()
        call = upstream.call(endpoint.method, path, data, stream=self.exchange.streamed, fresh=fresh)
        try:
            async with call as answer:
                named = self.dispatch.provider.answer_headers(answer.header)
                self.exchange.answer_headers = [(name, upstream.scrub(value)) for name, value in named]
                encoded = is_encoded(answer)
                if 200 <= answer.status < 300:
                    if encoded:
                        raise UpstreamFailed("The upstream compressed its answer, which it was not asked to do.")
                    self.exchange.answered = True
                    return await use(answer)
                refused = (None if encoded else await read(answer, self.guard.heard, MOST_REFUSAL)) or b""
        except TransportError as error:
            if error.kind == "pool":
                self.exchange.attempts -= 1  # nothing was sent
            raise
        finally:
            self.exchange.sent = self.exchange.sent or call.sent
        raise self._refusal(answer, upstream.scrub(refused))

    def _refusal(self, answer: Answer, body: bytes) -> ProxyError:
        error = self.dispatch.provider.refusal(answer.status, answer.header, body, self.context)
        if error.code in _ALARMS:
            self._alarm(error.code)
        return error

    def _metered(self, usage: Json | None, *, tier: str | None, delivered: int) -> None:
        """The whole answer is there."""
        self._charge(usage, tier=tier, delivered=delivered)
        if usage is None and self.dispatch.endpoint.meter is Meter.TOKENS:
            self._alarm("usage_anomaly")

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
        exchange.charge = both(charge, exchange.lost) if exchange.lost else charge

    def _alarm(self, code: str) -> None:
        self.dispatch.services.log("error", "alarm", request_id=self.exchange.request_id, code=code, what=_ALARMS[code])


def _forget_frames(error: ProxyError | ClientGone) -> None:
    """What ended an exchange is kept with it, and would keep the bodies in the frames it came through: 32 MiB each,
    until it is the garbage collector's turn."""
    error.__traceback__ = error.__context__ = None


def _tokens_of(answer: Json) -> int:
    """What an answer without usable counts is taken for; the estimate bounds it."""
    return len(json.encode(answer.get("choices"))) // 4 if "choices" in answer else 0


def _is_costly(raw: bytes, most: int) -> bool:
    """An escape that may be one of the key's costs as much as a value: both are counted."""
    return raw.count(b"\\u00") > most or json.exceeds(raw, most)


async def _send_json(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
