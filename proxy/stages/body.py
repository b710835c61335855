"""Reads the request's body once, within its limit and in its time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.core import wording
from proxy.core.arrived import arrived
from proxy.core.endpoint import Endpoint
from proxy.core.errors import (
    BodyTooLarge,
    ClientGone,
    Draining,
    RequestTimeout,
    UnsupportedMediaType,
)
from proxy.core.exchange import exchange_of
from proxy.core.head import LENGTH, Head
from proxy.core.interrupt import Interruptible
from proxy.core.json import Data
from proxy.core.services import Drainable, Middleware, Services

_CLOSE = [(b"connection", b"close")]  # the rest of the body is not read, so the connection cannot be used again


@dataclass(frozen=True, slots=True)
class Pace:
    """What a client must keep up: a byte every `idle` seconds, and `rate` bytes per second beyond the first `idle`
    ones. It is looked at every `tick` seconds."""

    idle: float = 15.0
    rate: float = 1024.0
    tick: float = 1.0


def build(max_body: int, endpoint: Endpoint, services: Services, pace: Pace = Pace()) -> Middleware | None:
    """`max_body` is in bytes."""
    return None if endpoint.request is None else reading(max_body, services, pace)


def reading(max_body: int, services: Services, pace: Pace = Pace()) -> Middleware:
    """The same, of whatever takes a body."""

    def middleware(app: ASGIApp) -> ASGIApp:
        return Body(app, max_body, Arrivals(pace, services.drainables), services.monotonic)

    return middleware


class Body:
    def __init__(self, app: ASGIApp, limit: int, arrivals: Arrivals, monotonic: Callable[[], float]) -> None:
        self._app = app
        self._clock = monotonic
        self._limit = limit
        self._arrivals = arrivals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        exchange.admitted = self._clock()
        head = exchange.head
        head.once(_check_kind)
        if int(head.first.get(LENGTH) or 0) > self._limit:
            raise self._too_large()
        body: Data | None = arrived(scope)
        if body is None:
            try:
                body = await self._read(receive)
            except ClientGone:
                exchange.client_gone = True
                return
        elif len(body) > self._limit:
            raise self._too_large()
        exchange.raw, exchange.received = body, self._clock()
        del body  # it is not needed for long, and may be large
        await self._app(scope, receive, send)

    async def _read(self, receive: Receive) -> bytearray:
        with self._arrivals.arrival() as arrival:
            return await self._read_on(await receive(), arrival, receive)

    async def _read_on(self, message: Message, arrival: Arrival, receive: Receive) -> bytearray:
        data = bytearray()
        while message["type"] == "http.request":
            data += message.get("body", b"")
            if len(data) > self._limit:
                raise self._too_large()
            if not message.get("more_body"):
                return data
            arrival.received(len(data))
            message = await receive()
        raise ClientGone

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than the {self._limit} bytes allowed.", headers=_CLOSE)


# The head.

_PLAIN = frozenset({b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"})


def _check_kind(head: Head) -> None:
    """Raises UnsupportedMediaType unless the body is declared as JSON."""
    for encoding in head.values(b"content-encoding"):
        if encoding.strip().lower() not in (b"", b"identity"):
            raise UnsupportedMediaType("Compressed request bodies are not accepted.", headers=_CLOSE)
    types = head.values(b"content-type")
    if len(types) != 1 or not (types[0] in _PLAIN or _is_json(types[0])):
        raise UnsupportedMediaType("The body must be JSON: send `content-type: application/json`.", headers=_CLOSE)


def _is_json(value: bytes) -> bool:
    """Whether a Content-Type is JSON in UTF-8, which is all that JSON may be in; other parameters mean nothing."""
    media, *parameters = (part.strip() for part in value.lower().split(b";"))
    charsets = {part.partition(b"=")[2].strip(b'"') for part in parameters if part.startswith(b"charset")}
    return media == b"application/json" and charsets <= {b"utf-8"}


# Its arrival.


class Arrivals:
    """The bodies that are on their way. One timer looks after all of them, and only while there are any: most bodies
    come with their head, and a timer of their own would cost more than to read them."""

    def __init__(self, pace: Pace, drainables: set[Drainable]) -> None:
        self.pace = pace
        self._drainables = drainables
        self._waiting: set[Arrival] = set()
        self._watched: asyncio.AbstractEventLoop | None = None

    def arrival(self) -> Arrival:
        return Arrival(self)

    def enter(self, arrival: Arrival) -> None:
        self._waiting.add(arrival)
        self._drainables.add(arrival)
        if self._watched is not arrival.loop:
            self._watched = arrival.loop
            arrival.loop.call_later(self.pace.tick, self._look)

    def leave(self, arrival: Arrival) -> None:
        self._waiting.discard(arrival)
        self._drainables.discard(arrival)

    def _look(self) -> None:
        loop, self._watched = self._watched, None
        if loop is None or not self._waiting:
            return
        now = loop.time()
        for arrival in self._waiting:
            if now >= arrival.due:
                arrival.late()
        self._watched = loop
        loop.call_later(self.pace.tick, self._look)


class Arrival(Interruptible):
    """`with` it the body of one request is read. Raises RequestTimeout or Draining in place of the cancellation by
    which it ended the wait; any other one passes."""

    __slots__ = ("_arrivals", "_started", "due", "loop")

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._started = loop.time()
        self.due = self._started + self._arrivals.pace.idle
        self._arrivals.enter(self)

    def _unwatch(self) -> None:
        self._arrivals.leave(self)

    def received(self, size: int) -> None:
        """So many bytes are there now."""
        pace = self._arrivals.pace
        self.due = min(self.loop.time(), self._started + size / pace.rate) + pace.idle

    def late(self) -> None:
        self.interrupt(RequestTimeout("The request's body did not arrive in time. Send it again.", headers=_CLOSE))

    def drain(self) -> None:
        """The proxy stops: wait no longer."""
        self.interrupt(Draining(wording.SHUTTING_DOWN, headers=_CLOSE))
