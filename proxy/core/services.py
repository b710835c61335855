"""What outlives a request and is handed to whatever is built at start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any, Protocol, cast

from starlette.types import ASGIApp

from proxy.core.cache import Answers
from proxy.core.catalogue import Catalogue
from proxy.core.ledger import Ledger
from proxy.core.metrics.board import Part
from proxy.core.notices import Notices
from proxy.core.quota import QuotaStore
from proxy.core.records import Ring
from proxy.core.redact import Redactor
from proxy.core.switches import Switches
from proxy.core.trace import Tracer

Middleware = Callable[[ASGIApp], ASGIApp]
"""What a stage's `build` returns: the stage, waiting for what comes after it."""


def direct(app: ASGIApp) -> ASGIApp:
    """The same, for whoever calls it for every request: Python looks for the `__call__` of an object each time, and
    takes the long way to it."""
    return app if isinstance(app, FunctionType | MethodType) else cast(Any, app).__call__


class Log(Protocol):
    """One structured line per call. Values are numbers, booleans, None or text that is already fit to be seen."""

    def __call__(self, level: str, event: str, **fields: Any) -> None: ...


class Lines(Log, Protocol):
    """The log of requests, of which there are many."""

    def ready(self, level: str, event: str, fields: bytes) -> None:
        """As a call, with fields that are JSON already: an object."""


class Drainable(Protocol):
    """A part of a request that may last: the wait for its body, or for the upstream."""

    def drain(self) -> None:
        """The proxy stops: end now, with the error `draining`."""


class Drainables(set[Drainable]):
    """The parts of all requests under way that can be ended."""

    drained = False

    def add(self, part: Drainable) -> None:
        """What comes when all have been ended, from a request that was waiting for something else, ends at once."""
        super().add(part)
        if self.drained:
            part.drain()

    def drain(self) -> None:
        self.drained = True
        for part in list(self):
            part.drain()


@dataclass(slots=True)
class Traffic:
    """What a worker is doing, health checks apart: `requests` under way, and when the `last` one came, in monotonic
    seconds; `streams` that are being sent."""

    requests: int = 0
    streams: int = 0
    last: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Services:
    """`monotonic` gives seconds for durations, `wall` the time of day in Unix milliseconds, `redact` makes text from
    outside fit for a log. `quotas` holds the counters of all teams, `circuits` what is known of providers that fail;
    `ledger` is None when none is kept, `answers` when no answers are, `tracer` when no spans are. `next_call` makes an
    id that no other request has, in any process; `part` is where this one counts what it does, `ring` where it keeps
    what became of its requests. `generation` is the number of the configuration that all this was made for. Whoever
    lasts is in `drainables` for as long. `notices` are those that have been given today.
    """

    monotonic: Callable[[], float]
    log: Lines
    redact: Redactor
    catalogue: Catalogue
    quotas: QuotaStore
    ledger: Ledger | None
    wall: Callable[[], int]
    circuits: Switches
    next_call: Callable[[], str]
    part: Part
    ring: Ring
    answers: Answers | None = None
    tracer: Tracer | None = None
    simulated: bool = False
    generation: int = 1
    traffic: Traffic = field(default_factory=Traffic)
    notices: Notices = field(default_factory=Notices)
    drainables: Drainables = field(default_factory=Drainables)
