"""What is noted while a request goes through its stages and is only looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.core.cache import Outcome
from proxy.core.charge import Estimate
from proxy.core.circuit import Sight
from proxy.core.endpoint import Endpoint
from proxy.core.entry import Entry
from proxy.core.errors import ProxyError
from proxy.core.exchange import Exchange, exchange_of
from proxy.core.json import Json
from proxy.core.quota import Claim, Verdict


@dataclass(slots=True)
class Notes:
    """Of one model that would be asked. What the stages have written into the exchange is as there; `claims` were seen
    to end in `verdict`, `circuits` were looked at by their names, and `kept` is what the cache has, fresh or not.
    `calls` would be made, of which each of a batch is one. `error` is why it would not be."""

    model: str | None
    provider: str
    sent_as: str | None
    others: bool = False
    rewrites: tuple[str, ...] = ()
    estimate: Estimate | None = None
    claims: Sequence[Claim] = ()
    verdict: Verdict | None = None
    cache: Outcome | None = None
    cache_key: str | None = None
    age: int | None = None
    saved: int = 0
    kept: Entry | None = None
    circuits: dict[str, Sight] = field(default_factory=dict)
    sending: Json | None = None
    calls: int = 0
    error: ProxyError | None = None

    def take(self, exchange: Exchange) -> None:
        self.rewrites, self.estimate, self.sending = tuple(exchange.rewrites), exchange.estimate, exchange.sending
        self.cache, self.cache_key = exchange.cache, exchange.cache_key
        self.age, self.saved = exchange.age, exchange.saved


RECORD: ContextVar[list[Notes]] = ContextVar("explained")
"""Of the request that is explained: one for each model, in the order in which they would be asked."""


def noted() -> Notes:
    """Of the model that it is about now."""
    return RECORD.get()[-1]


class Each:
    """Stands around all that is done for one model."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        notes = Notes(exchange.model, exchange.provider, exchange.sent_as, exchange.others)
        RECORD.get().append(notes)
        try:
            await self._app(scope, receive, send)
        except ProxyError as error:
            notes.error = error
            raise
        finally:
            notes.take(exchange)


class End:
    """Where the provider would be called. `rows` is how each serves the endpoint."""

    def __init__(self, rows: Mapping[str, Endpoint]) -> None:
        self._rows = rows

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        batch = self._rows[exchange.provider].batch
        noted().calls = len(batch.split(exchange.sending)) if batch and exchange.sending else 1
