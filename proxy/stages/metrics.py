"""Counts every request when its last byte is on its way: whoever has an answer finds it in the next scrape."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from math import floor
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.charge import NOTHING
from proxy.core.errors import ProxyError
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.metrics import families
from proxy.core.metrics.board import Part
from proxy.core.metrics.families import Family
from proxy.core.money import NANO
from proxy.core.overhead import STAGES
from proxy.core.services import Middleware, Services

MOST_KNOWN: Final = 10_000
"""Kinds of requests whose series are remembered. There are fewer of them, but for a very large configuration."""

_CLASSES: Final = {None: "none"} | {status: f"{status // 100}xx" for status in range(100, 600)}
_LAST_NUMBER: Final = 10
"""Attempts from this one on are counted together."""


def build(services: Services) -> Middleware:
    def middleware(app: ASGIApp) -> ASGIApp:
        return Metrics(app, services)

    return middleware


def count_at_the_door(part: Part, error: ProxyError) -> None:
    """A request that was refused before it was one: how long it took, and who asked what, nobody knows."""
    status = _CLASSES[error.status]
    part.add(families.REQUESTS, "proxy", _OTHER, status, "")
    part.add(families.TEAM_REQUESTS, "", _OTHER, status)
    part.add(families.ERRORS, "proxy", error.code or "", "true" if error.retryable else "false")
    part.add(families.FAULTS, "", error.fault.value)


class Metrics:
    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._part = services.part
        self._clock = services.monotonic
        self._catalogue = services.catalogue
        self._known: dict[tuple[Any, ...], _Kind] = {}
        self._overhead = [self._part.at(families.OVERHEAD, stage) for stage in STAGES]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        exchange.ending = partial(self._count, exchange, scope, True)
        try:
            await self._app(scope, receive, send)
        finally:
            if exchange.ending:
                exchange.ending = None
                self._count(exchange, scope, False)

    def _count(self, exchange: Exchange, scope: Scope, whole: bool) -> None:
        """`whole`: the last piece of the answer is about to go. It may be the first one, too."""
        now = self._clock()
        kind = self._kind(exchange, scope)
        cells = self._part.cells
        for at in kind.ones:
            cells[at] += 1
        kind.duration.add(now - exchange.started)
        charge = exchange.charge
        if charge is not None and charge is not NOTHING:
            cells[kind.input] += charge.prompt
            cells[kind.output] += charge.completion
            cells[kind.cost] += charge.cost or 0
        for at, seconds in zip(self._overhead, exchange.took):  # noqa: B905 (a refused one has none)
            if seconds is not None:  # as _Histogram.add, which five calls would be too much of
                cells[at] += floor(seconds * NANO)
                cells[at + 1 + bisect_left(_OVERHEAD, seconds)] += 1
        first_byte = exchange.first_byte or (now if whole else None)
        if kind.first_token and exchange.attempts and first_byte:
            kind.first_token.add(first_byte - exchange.started)
        if exchange.saved:
            cells[kind.saved] += exchange.saved
        if kind.gaps and exchange.gaps:
            kind.gaps.add_all(exchange.gaps.counts, exchange.gaps.seconds)
        if exchange.error or exchange.in_vain or exchange.client_gone or exchange.shadow_refusals:
            self._count_trouble(exchange, kind)
        if exchange.before.each:
            self._count_others(exchange)

    def _count_trouble(self, exchange: Exchange, kind: _Kind) -> None:
        part, error = self._part, exchange.error
        team = exchange.team.name if exchange.team else ""
        if error:
            part.add(families.ERRORS, kind.service, error.code or "", "true" if error.retryable else "false")
            part.add(families.FAULTS, team, error.fault.value)
            rule = error.detail.get("rule")
            if rule is not None:
                part.add(families.REFUSALS, team, rule, "enforce")
        elif exchange.client_gone:
            part.add(families.FAULTS, team, "caller")
        for rule in exchange.shadow_refusals:
            part.add(families.REFUSALS, team, rule, "shadow")
        for failed in exchange.in_vain:
            if failed.then == "again":
                number = failed.number + 1
                told = str(number) if number < _LAST_NUMBER else f"{_LAST_NUMBER}+"
                part.add(families.RETRIES, failed.provider, told)
        if exchange.cancelled:
            part.add(families.CANCELS, kind.service)

    def _count_others(self, exchange: Exchange) -> None:
        """What other models have cost before this one was asked."""
        team = exchange.team.name if exchange.team else ""
        for model, provider, charge in exchange.before.each:
            name = self._named(model)
            self._part.add(families.TOKENS, provider, "input", name, amount=charge.prompt)
            self._part.add(families.TOKENS, provider, "output", name, amount=charge.completion)
            self._part.add(families.COST, team, name, amount=charge.cost or 0)

    def _kind(self, exchange: Exchange, scope: Scope) -> _Kind:
        route = scope.get("route")
        status = exchange.status_told()
        team = exchange.team.name if exchange.team else ""
        key = (
            id(route), team, exchange.provider, exchange.model, status, exchange.streamed, exchange.cache,
            exchange.charge is None,
        )  # fmt: skip
        kind = self._known.get(key)
        if kind is None:
            model = self._named(exchange.model)
            path, method = (route.path, route.operation) if route else (_OTHER, _OTHER)
            kind = _Kind(self._part, exchange, path, method, model, _CLASSES[status])
            # A name that a client has made up is not remembered.
            if model != _OTHER and len(self._known) < MOST_KNOWN:
                self._known[key] = kind
        return kind

    def _named(self, model: str | None) -> str:
        if model is None:
            return ""
        return self._catalogue.model(model).id if self._catalogue.has(model) else _OTHER


_OVERHEAD: Final = families.OVERHEAD.bounds
_OTHER: Final = "other"
_NOWHERE: Final = 0


class _Kind:
    """The series of one kind of request. What it cannot add to has none: `_NOWHERE`, where nobody looks."""

    __slots__ = ("cost", "duration", "first_token", "gaps", "input", "ones", "output", "saved", "service")

    def __init__(self, part: Part, exchange: Exchange, path: str, method: str, model: str, status: str) -> None:
        team = exchange.team.name if exchange.team else ""
        self.service = service = exchange.provider if exchange.team else "proxy"
        if exchange.streamed:
            method += "_stream"
        self.ones = [
            part.at(families.REQUESTS, service, method, status, model),
            part.at(families.TEAM_REQUESTS, team, path, status),
        ]
        if exchange.cache:
            self.ones.append(part.at(families.CACHE, team, exchange.cache))
        self.duration = _Histogram(part, families.DURATION, service, method, status)
        self.input = self.output = self.cost = self.saved = _NOWHERE
        if exchange.charge and model:
            self.input = part.at(families.TOKENS, service, "input", model)
            self.output = part.at(families.TOKENS, service, "output", model)
            self.cost = part.at(families.COST, team, model)
            self.saved = part.at(families.SAVED, team, model)
        self.first_token: _Histogram | None = None
        self.gaps: _Histogram | None = None
        if exchange.streamed:
            if status == "2xx" and exchange.cache != "stale":  # an error in its place is no stream
                self.first_token = _Histogram(part, families.FIRST_TOKEN, model)
            self.gaps = _Histogram(part, families.GAPS, service)


class _Histogram:
    """One series of a histogram."""

    __slots__ = ("_at", "_bounds", "_cells")

    def __init__(self, part: Part, family: Family, *labels: str) -> None:
        self._cells, self._at, self._bounds = part.cells, part.at(family, *labels), family.bounds

    def add(self, seconds: float) -> None:
        cells, at = self._cells, self._at
        cells[at] += floor(seconds * NANO)
        cells[at + 1 + bisect_left(self._bounds, seconds)] += 1

    def add_all(self, counts: Sequence[int], seconds: float) -> None:
        cells, at = self._cells, self._at
        cells[at] += floor(seconds * NANO)
        for place, count in enumerate(counts, at + 1):
            cells[place] += count
