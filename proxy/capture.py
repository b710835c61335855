"""The answer of a call on its way to the client, which a flight is told of. A client that does not read holds up its
own answer, and nobody else's."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from starlette.types import Message, Send

from proxy.core.exchange import Exchange
from proxy.core.flight import Flight
from proxy.core.sse import KEEP_ALIVE


class Capture:
    """Its `send` takes the place of the client's. `whole(body)` is called with an answer that comes in one piece,
    before that is sent."""

    def __init__(self, flight: Flight, exchange: Exchange, send: Send, whole: Callable[[bytes], object]) -> None:
        self._flight = flight
        self._exchange = exchange
        self._send = send
        self._whole = whole
        self._queue: deque[Message] = deque()
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
            self._whole(body)
            await self._send(message)
            return
        if body is KEEP_ALIVE:  # ours, and no part of the answer
            await self._send(message)
            return
        if body:
            self._flight.add(body)
        await self._pass(message)

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
        self._queue.append(message)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write())
        if not flight.whole:
            await self._writing  # so much is not kept for anybody

    async def _write(self) -> None:
        while self._queue:
            await self._send(self._queue.popleft())
