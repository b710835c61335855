"""The answer of a call on its way to the client, which a flight is told of. A client that does not read holds up its
own answer, and nobody else's."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from starlette.types import Message, Send

from proxy.core.charge import NOTHING
from proxy.core.entry import Entry, packed
from proxy.core.errors import CircuitOpen, ProviderBusy, ProxyError, UpstreamRefusal, UpstreamUnknown
from proxy.core.exchange import Exchange
from proxy.core.flight import Flight
from proxy.core.sse import KEEP_ALIVE


class Capture:
    """Its `send` takes the place of the client's; when the call is over, it has to be told how that `ended` or
    `failed`. `wall` gives Unix milliseconds."""

    def __init__(self, flight: Flight, exchange: Exchange, send: Send, wall: Callable[[], int]) -> None:
        self._flight = flight
        self._exchange = exchange
        self._send = send
        self._wall = wall
        self._began = wall()
        self._reported = len(exchange.rewrites)
        self._queue: deque[Message] = deque()
        self._queued = 0
        self._cut = False
        self._writing: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> None:
        if self._exchange.cache != "miss":  # a stale answer in place of the call's
            await self._send(message)
            return
        if message["type"] == "http.response.start":
            self._flight.streamed = self._exchange.streamed
            await self._send(message)
            return
        body: bytes = message["body"]
        if not self._flight.streamed:
            self._finish(body)  # before it is sent: nobody else waits for this client to take it
            await self._send(message)
            return
        if body is not KEEP_ALIVE:  # which is ours, and no part of the answer
            if body:
                self._flight.add(body)
            if not message.get("more_body") and self._exchange.error is None:
                self._finish(None)
        await self._pass(message)

    def ended(self) -> None:
        """The call is over, and its client has been answered somehow."""
        exchange = self._exchange
        self._flight.fail(_of_the_provider(exchange.error or exchange.rescued), told=exchange.error is not None)

    def failed(self, error: BaseException) -> None:
        """The call has ended with this."""
        self._flight.fail(_of_the_provider(error))

    @property
    def is_kept(self) -> bool:
        """Whether what has come is as it should be: complete, counted, and not spoiled."""
        context = self._exchange.context
        return self._exchange.usage is not None and context is not None and not context.spoiled

    def _finish(self, body: bytes | None) -> None:
        """All of it is there. None: it came in pieces."""
        exchange, flight, charge = self._exchange, self._flight, self._exchange.alone or NOTHING
        flight.spoiled = not self.is_kept
        entry = None
        if body is not None or flight.whole:
            entry = Entry(
                created=self._wall(),
                stream=body is None,
                body=b"".join(flight.parts) if body is None else body,
                prompt=charge.prompt,
                completion=charge.completion,
                cost=charge.cost,
                rewrites=tuple(exchange.rewrites)[self._reported :],
                cadence=packed(flight.cadence),
                began=self._began,
            )
        flight.finish(entry, charge.cost or 0)

    @property
    def writing(self) -> bool:
        """Whether the client has not taken yet what others have."""
        return self._writing is not None and not self._writing.done()

    async def written(self) -> None:
        """Until the client has taken all of it."""
        if self._writing:
            await self._writing

    def stop(self) -> None:
        """What the client has not taken yet it will not get."""
        if self._writing:
            self._writing.cancel()

    async def _pass(self, message: Message) -> None:
        flight = self._flight
        if self._writing is None and not flight.followers:
            flight.blocked = True  # for as long as this waits, nobody is let in who would have to wait, too
            try:
                await self._send(message)
            finally:
                flight.blocked = False
            return
        if self._cut:
            return
        self._queue.append(message)
        self._queued += len(message["body"])
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write())
        if self._queued <= flight.most:
            return
        if flight.followers:
            self._cut = True  # so much is not kept for anybody who does not read
            self._exchange.client_gone = True
            self.stop()
        else:
            await self._writing

    async def _write(self) -> None:
        while self._queue:
            message = self._queue[0]
            await self._send(message)
            self._queue.popleft()
            self._queued -= len(message["body"])


def _of_the_provider(error: BaseException | None) -> ProxyError | None:
    """What the provider has done to everybody who asked this; None: it was the request that has ended."""
    if isinstance(error, UpstreamRefusal | UpstreamUnknown | CircuitOpen | ProviderBusy):
        return error
    return None
