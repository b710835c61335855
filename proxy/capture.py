"""The answer of a call on its way to the client, which a flight is told of. A client that does not read holds up its
own answer, and nobody else's for longer than GRACE."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from typing import Final

from starlette.types import Message, Send

from proxy.core.charge import NOTHING
from proxy.core.entry import Entry, packed
from proxy.core.errors import CircuitOpen, Overloaded, ProviderBusy, ProxyError, UpstreamRefusal, UpstreamUnknown
from proxy.core.exchange import Exchange
from proxy.core.flight import Flight
from proxy.core.sse import KEEP_ALIVE

GRACE: Final = 0.05
"""Seconds, all in all, for which everybody waits for a client that has fallen too far behind: it may only be slow."""

TURNS: Final = 4
"""Of the event loop, until all who wait for a piece have taken it, if they can."""


class Capture:
    """Its `send` takes the place of the client's; when the call is over, it has to be told how that `ended` or
    `failed`. `inert` are fields that others who follow need not have sent; `wall` gives Unix milliseconds."""

    def __init__(
        self,
        flight: Flight,
        exchange: Exchange,
        send: Send,
        wall: Callable[[], int],
        inert: Collection[str],
    ) -> None:
        self._flight = flight
        self._exchange = exchange
        self._send = send
        self._wall = wall
        self._inert = inert
        self._began = wall()
        self._reported = len(exchange.rewrites)
        self._queue: deque[Message] = deque()
        self._queued = 0
        self._start: Message | None = None
        self._told = self._passed = 0
        """Of a piece whose sending was cancelled, which comes once more with what follows it: how much of it the flight
        has, and how much the queue."""
        self._grace = GRACE
        self._cut = False
        self.writing: asyncio.Task[None] | None = None
        """Sends what others have already to the client, if that does not take it as they do."""

    async def send(self, message: Message) -> None:
        flight = self._flight
        if self._exchange.cache != "miss":  # a stale answer in place of the call's, which is over
            self.ended()
            await self._send(message)
            return
        if message["type"] == "http.response.start":
            if self._exchange.streamed:
                flight.streamed = True
                flight.rewrites = self._new_rewrites()
            self._start = message  # goes with what follows it at once: nobody waits until this client takes it
            return
        body: bytes = message["body"]
        if not flight.streamed:
            self._finish(body)
        elif body is not KEEP_ALIVE:  # which is ours, and no part of the answer
            new = body[self._told :] if self._told else body
            if new:
                if flight.followers and flight.size + len(new) > flight.most:
                    await _turns()  # for those who follow, before anything is forgotten that they might lack
                self._told = len(body)
                flight.add(new)
            if not message.get("more_body") and self._exchange.error is None:
                self._finish(None)
        if self.writing is not None or flight.followers:
            await self._pass_behind(message)
            return
        flight.blocked = not flight.over  # as long as this waits, nobody is let in who would have to wait, too
        try:
            if self._start:
                await self._send(dict(self._start))  # others put headers of theirs into it
                self._start = None
            await self._send(message)
        finally:
            flight.blocked = False
        if self._told and body is not KEEP_ALIVE:
            self._told = 0

    def ended(self) -> None:
        """The call is over, and its client has been answered somehow."""
        exchange, flight = self._exchange, self._flight
        if flight.over:
            return
        if exchange.error:
            flight.fail(exchange.error, told=True)
        else:
            flight.fail(_of_the_provider(exchange.rescued), unasked=not exchange.attempts)

    def failed(self, error: BaseException) -> None:
        """The call has ended with this."""
        self._flight.fail(_of_the_provider(error), unasked=not self._exchange.attempts)

    def _finish(self, body: bytes | None) -> None:
        """All of it is there. None: it came in pieces."""
        exchange, flight, charge = self._exchange, self._flight, self._exchange.alone or NOTHING
        if exchange.usage is None or exchange.context is None or exchange.context.spoiled:
            flight.spoiled = True  # it is not counted, or not as the next one may be
        entry = None
        if body is not None or flight.whole:
            entry = Entry(
                created=self._wall(),
                stream=body is None,
                body=b"".join(flight.parts) if body is None else body,
                prompt=charge.prompt,
                completion=charge.completion,
                cost=charge.cost,
                rewrites=self._new_rewrites() if len(exchange.rewrites) != self._reported else (),
                cadence=packed(flight.cadence),
                began=self._began,
            )
        flight.finish(entry, charge.cost or 0)

    def _new_rewrites(self) -> tuple[str, ...]:
        """Those since the call began, without what was done to fields that this request alone has sent."""
        new = tuple(self._exchange.rewrites)[self._reported :]
        return tuple([one for one in new if one.partition(":")[2].partition(".")[0] not in self._inert])

    async def written(self) -> None:
        """Until the client has taken all of it, or was cut."""
        if self.writing:
            await asyncio.wait([self.writing])

    def result(self) -> None:
        """Raises what the sending of it has raised."""
        if self.writing and self.writing.done() and not self.writing.cancelled():
            self.writing.result()

    def stop(self) -> None:
        """What the client has not taken yet it will not get. That it was cut is said only now: the call went on for
        others, and how it has ended was heard."""
        if self._cut:
            self._exchange.client_gone = True
        writing, self.writing = self.writing, None  # which, once cancelled, holds what holds it
        if writing:
            writing.cancel()

    async def _pass_behind(self, message: Message) -> None:
        """By a task of its own, for which nobody waits but its client."""
        writing = self.writing
        if self._cut or (writing and writing.done() and writing.exception()):  # it will not get any more
            self._told = 0
            return
        if self._start:
            self._exchange.status = self._start["status"]  # it has its answer, whenever it takes it
            self._queue.append(self._start)
            self._start = None
        body: bytes = message["body"]
        comes_again = body is not KEEP_ALIVE
        if comes_again:
            body = body[self._passed :]
            self._passed = len(message["body"])
        self._queue.append({**message, "body": body})
        self._queued += len(body)
        if writing is None or writing.done():
            self.writing = writing = asyncio.get_running_loop().create_task(self._write())
        if self._queued > self._flight.most:
            await self._catch_up(writing)
        if comes_again:
            self._told = self._passed = 0

    async def _catch_up(self, writing: asyncio.Task[None]) -> None:
        """So much is kept for nobody who does not read. It may be that its task has had no turn yet."""
        flight, loop = self._flight, asyncio.get_running_loop()
        if flight.followers:
            began = loop.time()
            await asyncio.wait([writing], timeout=self._grace)
            self._grace = max(0.0, self._grace - (loop.time() - began))
        if not flight.followers:
            await asyncio.wait([writing])
        elif self._queued > flight.most:
            self._cut = True
            writing.cancel()
            if self._exchange.departure:
                self._exchange.departure.cut()

    async def _write(self) -> None:
        while self._queue:
            message = self._queue[0]
            await self._send(message)
            self._queue.popleft()
            self._queued -= len(message.get("body", b""))


async def _turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


def _of_the_provider(error: BaseException | None) -> ProxyError | None:
    """What the provider has done, or that there is no way to it; None: it was the request that has ended."""
    everybodys = UpstreamRefusal | UpstreamUnknown | CircuitOpen | ProviderBusy | Overloaded
    return error if isinstance(error, everybodys) else None
