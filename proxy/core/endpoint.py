"""What an endpoint is: one row of facts. The route table is made of these rows and of nothing else.

How a row streams, is metered, cached, retried and bounded has no default, so a row that forgets to decide cannot exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from proxy.core.errors import ProxyError, UpstreamRefusal
from proxy.core.json import Json
from proxy.core.table import Context, Table


class Stream(Enum):
    NEVER = "never"
    OPTIONAL = "when the body says stream: true"


class Meter(Enum):
    NOTHING = "nothing"
    TOKENS = "tokens of the answer's usage"


class Cache(Enum):
    NEVER = "never"
    EXACT = "the same request has the same answer"
    SAMPLED = "the same request has the same answer at temperature 0, and may have another one otherwise"


class Retry(Enum):
    SAFE = "a repeat costs money and changes nothing else"
    UNSAFE = "a repeat may create a second thing"


class ModelFrom(Enum):
    NOWHERE = "the endpoint is not about one model"
    BODY = "the body's `model`"
    PATH = "the path's {id}"


class EventStream(Protocol):
    """The way of one SSE answer to the client: bytes in as they came, bytes out.

    `error` is set when the stream must end with an error frame; `done` when its terminal event has passed, and then
    `surplus` tells whether more has come behind it. Whatever `feed` returned before is still to be sent.

    `delivered` is how many tokens of the answer are in what was returned, and not fewer than the provider will count
    by much: one for each piece of text, or one for every eight bytes of it if that is more. `tier` is the service tier
    that the answer says it had, in OpenAI's word.
    """

    error: ProxyError | None
    done: bool
    surplus: bool
    usage: Json | None
    delivered: int
    tier: str | None

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to send now, perhaps none: an event is held until it is whole."""

    def end(self) -> bytes:
        """The upstream has closed: the last bytes to send. Sets `error` when the answer was not complete."""


@dataclass(frozen=True, slots=True)
class Batch:
    """For requests larger than the provider takes at once: several calls, one answer.

    `split(body)` gives the upstream bodies in order; `halve(refusal, body)` gives smaller ones when the provider says
    that one was too large, or nothing; `merge(parts)` makes the one answer of each body with its answer, and raises
    UpstreamFailed when one does not answer the other.
    """

    split: Callable[[Json], list[Json]]
    halve: Callable[[UpstreamRefusal, Json], list[Json]]
    merge: Callable[[list[tuple[Json, Json]]], Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One row. `path` is what clients call, `upstream` the provider's path; `{id}` stands for one identifier.

    `operation` is what the ledger calls it; `span` what logs, metrics and traces do, before `_stream` where there is
    one (docs/tracing.md).

    `most_values` is how many values (json.exceeds) a large answer may have; a value costs up to 100 bytes of memory.
    `answer(answer, context)` makes the OpenAI answer of the provider's; `events(context)` the stream's way through.

    `inert` are fields of the upstream's body that do not bear on the answer. `beyond` are those that, unless they are
    null or false, ask for more than an answer, or for one of today: no answer that is kept can give it.
    """

    operation: str
    span: str
    method: str
    path: str
    upstream: str
    model: ModelFrom
    stream: Stream
    meter: Meter
    cache: Cache
    retry: Retry
    most_values: int
    answer: Callable[[Any, Context], Any]
    request: Table | None = None
    events: Callable[[Context], EventStream] | None = None
    batch: Batch | None = None
    inert: frozenset[str] = frozenset()
    beyond: frozenset[str] = frozenset()
