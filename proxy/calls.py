"""The upstream calls of one exchange: how often one is made, and what a failure of it is.

call           once more with a body that is mended, where the provider's error table knows how
_persistently  again after a while, where that may help (upstream/retry.py)
_paid          again at once with another key, where it is the key that is refused (upstream/keys.py)
_once          again at once, on a connection that the upstream was just about to close
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar
from urllib.parse import quote

import msgspec

from proxy.core import json
from proxy.core.charge import NOTHING, both, estimate, whole
from proxy.core.circuit import verdict
from proxy.core.endpoint import Endpoint, ModelFrom, Retry
from proxy.core.errors import ProxyError, Repeat, UpstreamFailed, UpstreamRefusal
from proxy.core.exchange import Exchange, Failed
from proxy.core.json import Json
from proxy.core.provider import Provider
from proxy.core.services import Log
from proxy.core.table import Context
from proxy.guard import Guard
from proxy.metering import may_be_billed
from proxy.upstream.client import MOST_REFUSAL, Upstream, failure, is_encoded, read
from proxy.upstream.keys import Payment
from proxy.upstream.transport import Answer, Call, TransportError

_ALARMS = {
    "upstream_auth_failed": "the provider refuses the key of this proxy",
    "unknown_parameter": "the provider's schema has changed: a field that the tables let through is unknown to it",
    "usage_anomaly": "an answer came without token counts that can be believed: it is not metered",
}
"""What no client can mend, by an error's code or a word of ours: somebody who runs the proxy must know."""

_IN_THE_PATH: Final = ModelFrom.PATH

T = TypeVar("T")


class Calls(msgspec.Struct, eq=False):
    """`exchange` counts the attempts, and knows of the latest what may be billed."""

    endpoint: Endpoint
    provider: Provider
    upstream: Upstream
    log: Log
    exchange: Exchange
    context: Context
    guard: Guard

    async def call(self, body: Json | None, use: Callable[[Answer], Awaitable[T]]) -> T:
        """What `use` makes of the successful answer. A body that the provider refuses is mended and sent once more
        where its error table knows how: a refusal costs nothing, and nothing has reached the client."""
        try:
            return await self._persistently(body, use)
        except UpstreamRefusal as refusal:
            mended = self.provider.mend(refusal, body) if body else None
            if mended is None:
                raise
        body, what = mended
        self.exchange.rewrites[what] = None
        return await self._persistently(body, use)

    async def _persistently(self, body: Json | None, use: Callable[[Answer], Awaitable[T]]) -> T:
        """A call, made again after a while for as long as that may help."""
        data = None if body is None else json.encode(body)
        retries, attempts = self.upstream.retries, 1
        retries.request()
        while True:
            try:
                return await self._paid(data, use)
            except ProxyError as error:
                repeat = self._repeat(error)
                patient = not self.exchange.others
                pause = retries.wait(attempts, repeat, error.asked, self.guard.left, patient=patient)
                if pause is None or not self._is_worth_it(error):
                    raise
                self._again(error, body, attempts, pause, unsafe=repeat is Repeat.UNSAFE)
            await self._rest(pause)
            attempts += 1

    async def _rest(self, seconds: float) -> None:
        exchange = self.exchange
        try:
            await self.guard.rest(seconds)
        except BaseException:  # nobody waits for it any more
            *before, last = exchange.in_vain
            exchange.in_vain = (*before, replace(last, then="nothing"))
            raise

    def _repeat(self, error: ProxyError) -> Repeat:
        """What the error says of it, for this endpoint. Of a stream that has begun the client may have a part."""
        if error.repeat is Repeat.NEVER or (self.exchange.streamed and self.exchange.answered):
            return Repeat.NEVER
        if self.endpoint.method == "GET":
            return Repeat.SAFE
        if self.endpoint.retry is Retry.UNSAFE and self.exchange.sent:
            return Repeat.UNSAFE
        return error.repeat

    def _is_worth_it(self, error: ProxyError) -> bool:
        """Not once the provider is known to fail all the time."""
        tell = self.exchange.attempt_failed
        return verdict(error) is not False or tell is None or tell()

    def _again(self, error: ProxyError, body: Json | None, attempts: int, pause: float, *, unsafe: bool) -> None:
        """One more attempt. What this one may have cost is not forgotten."""
        exchange = self.exchange
        exchange.in_vain += (Failed(exchange.provider, attempts, error.code or ""),)
        if unsafe and exchange.estimate and may_be_billed(error):
            is_part = self.endpoint.batch is not None and body is not None
            most = estimate(body or {}, self.context.model, 0) if is_part else exchange.estimate
            exchange.lost = both(exchange.lost or NOTHING, whole(most))
        exchange.sent = exchange.answered = False  # nothing is under way until the next one
        self.log(
            "warning",
            "possible_double_bill" if unsafe else "retry",
            **exchange.ids,
            attempts=attempts,
            status_code=error.status,
            error_code=error.code,
            wait_s=round(pause, 3),
        )

    async def _paid(self, data: bytes | None, use: Callable[[Answer], Awaitable[T]]) -> T:
        """One request, with the keys that may pay for it."""
        exchange = self.exchange
        pool = self.upstream.keys(exchange.team.name if exchange.team else None)
        payment = pool.payment(exchange.sent_as or "", exchange.estimate.prompt if exchange.estimate else 0)
        while True:
            # What was sent before is of no account here: it was refused, or is in `lost`, or has been answered.
            exchange.sent = exchange.answered = False
            payment.take()
            try:
                if not payment.goes_at_once():
                    await payment.turn(self.guard.rest)
                return await self._once(data, use, payment)
            except ProxyError as error:
                if not payment.refused(error):
                    raise
            finally:
                payment.give()

    async def _once(self, data: bytes | None, use: Callable[[Answer], Awaitable[T]], payment: Payment) -> T:
        """One request, and its answer; sent again if it met a connection that the upstream was just about to close."""
        exchange, fresh = self.exchange, False
        while True:
            call = self._call(data, payment, fresh=fresh)
            try:
                async with call as answer:
                    if self._head(answer, payment):
                        return await use(answer)
                    refused = None if is_encoded(answer) else await read(answer, self.guard.heard, MOST_REFUSAL)
                raise self._refusal(answer, self.upstream.scrub(refused or b""))
            except TransportError as error:
                if error.kind == "pool":
                    exchange.attempts -= 1  # nothing was sent
                if fresh or not error.stale or self.endpoint.retry is not Retry.SAFE:
                    raise failure(error, self.upstream.timeouts, sent=exchange.sent or call.sent) from None
                fresh = True
            finally:
                exchange.sent = exchange.sent or call.sent

    def _call(self, data: bytes | None, payment: Payment, *, fresh: bool) -> Call:
        endpoint, exchange = self.endpoint, self.exchange
        path = endpoint.upstream
        if endpoint.model is _IN_THE_PATH:
            path = path.replace("{id}", quote(exchange.sent_as or "", safe=""))
        exchange.attempts += 1
        self.guard.calling()
        return self.upstream.call(
            endpoint.method,
            path,
            data,
            payment.key,
            stream=exchange.streamed,
            traceparent=exchange.traceparent(),
            fresh=fresh,
        )

    def _head(self, answer: Answer, payment: Payment) -> bool:
        """What the head of an answer tells, and whether that is a success. Raises UpstreamFailed."""
        provider, header, upstream = self.provider, answer.header, self.upstream
        payment.heard(provider.left(header), refused=answer.status == 429)
        named = provider.answer_headers(header)
        self.exchange.answer_headers = [(name, upstream.scrub(value)) for name, value in named]
        if not 200 <= answer.status < 300:
            return False
        if is_encoded(answer):
            raise UpstreamFailed("The upstream compressed its answer, which it was not asked to do.")
        self.exchange.answered = True
        payment.accepted()
        return True

    def _refusal(self, answer: Answer, body: bytes) -> ProxyError:
        error = self.provider.refusal(answer.status, answer.header, body, self.context)
        if error.code in _ALARMS:
            self.alarm(error.code)
        return error

    def alarm(self, code: str) -> None:
        self.log("error", "alarm", **self.exchange.ids, code=code, what=_ALARMS[code])
