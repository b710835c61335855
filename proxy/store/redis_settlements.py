"""What requests have used, on its way to Redis: at once if it can be, and after an outage if it must.

Whoever settles never waits. Each settlement is applied once by its script, so one whose answer was lost is sent again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, ResponseError

from proxy.core.quota import StoreGone
from proxy.store.redis_link import Link, Log

MOST: Final = 100_000
"""Settlements that wait, about half a kilobyte each. Beyond, the oldest that touch neither a calendar nor a slot are
lost first: their windows pass by themselves."""

_BATCH: Final = 128


class _Queue(deque[bytes]):
    """How many `came` and `left` since the start is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.came = self.left = 0

    def add(self, packet: bytes) -> None:
        self.append(packet)
        self.came += 1

    def drop(self) -> None:
        """The oldest one."""
        self.popleft()
        self.left += 1


class Settlements:
    """`run` is the task that takes them there; it waits `retry` seconds until its next attempt."""

    def __init__(
        self, link: Link, log: Log, sleep: Callable[[float], Awaitable[None]], retry: float, most: int = MOST
    ) -> None:
        self._link = link
        self._log = log
        self._sleep = sleep
        self._retry = retry
        self._most = most
        self._lasting = _Queue()
        self._passing = _Queue()
        self._lost = 0
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()
        self._fewer = asyncio.Event()

    def __len__(self) -> int:
        return len(self._lasting) + len(self._passing)

    def add(self, packet: bytes, lasting: bool) -> None:
        """`lasting`: what it gives back would not come back by itself."""
        if len(self) >= self._most:
            (self._passing or self._lasting).drop()
            self._lost += 1
        (self._lasting if lasting else self._passing).add(packet)
        self._some.set()
        self._none.clear()

    async def drained(self, within: float) -> bool:
        """Whether all are settled, after at most `within` seconds."""
        try:
            async with asyncio.timeout(within):
                await self._none.wait()
        except TimeoutError:
            return False
        return True

    async def passed(self, within: float) -> None:
        """Return when the lasting ones that wait now are settled, whatever comes after them; or after `within` seconds
        at most."""
        await self._pass(within, self._lasting)

    async def all_passed(self, within: float) -> None:
        """The same of all that wait now."""
        await self._pass(within, self._lasting, self._passing)

    async def _pass(self, within: float, *queues: _Queue) -> None:
        last = [queue.came for queue in queues]
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while any(queue.left < came for queue, came in zip(queues, last, strict=True)):
                    await self._fewer.wait()

    async def run(self) -> None:
        while True:
            await self._some.wait()
            try:
                await self._link.use(self._batch, apart=True)
            except StoreGone:
                await self._sleep(self._retry)
            if self._lost:
                self._log("error", "settlement_lost", kind="QueueFull", count=self._lost)
                self._lost = 0
            if not len(self):
                self._some.clear()
                self._none.set()

    async def _batch(self, connection: AbstractConnection) -> None:
        """The oldest of one kind. They leave the queue when they have been answered."""
        queue = self._lasting or self._passing
        batch = [queue[i] for i in range(min(_BATCH, len(queue)))]
        errors = await self._link.ask_all(connection, batch)
        if any(isinstance(error, NoScriptError) for error in errors):
            await self._link.teach(connection)
            errors = await self._link.ask_all(connection, batch)
        self._judge(errors)
        for done in batch:
            if queue and queue[0] is done:  # else it was lost meanwhile
                queue.drop()
        self._fewer.set()
        self._fewer = asyncio.Event()

    def _judge(self, errors: list[ResponseError | None]) -> None:
        """Where others went well, an error is about that one alone, which would stop all behind it for ever."""
        failed = [error for error in errors if error]
        if failed and len(failed) == len(errors):
            raise failed[0]
        if failed:
            self._log("error", "settlement_lost", kind=type(failed[0]).__name__, count=len(failed))
