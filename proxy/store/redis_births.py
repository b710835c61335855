"""How a calendar counter comes into being: with what the ledger knows of its period.

While one is born, all who need it wait for the same birth. Requests that others have let in may be on their way to the
ledger still, so it is asked a moment later, unless the period itself is younger than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from proxy.core.quota import Counter, History, HistoryGone
from proxy.store.redis_clock import StoreClock
from proxy.store.redis_link import CREATE, Link


@dataclass(frozen=True, slots=True)
class Birth:
    """Of the total of one period, in one life (`root`) of the data. A `recount` is nobody else's: it asks
    the ledger after it was called for."""

    root: str
    counter: Counter
    start: int
    end: int
    recount: int = 0


class Births:
    """`settle_in` in seconds."""

    def __init__(
        self,
        link: Link,
        history: History | None,
        clock: StoreClock,
        settle_in: float,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._link = link
        self._history = history
        self._clock = clock
        self._settle_in = settle_in
        self._sleep = sleep
        self._under_way: dict[Birth, asyncio.Task[None]] = {}

    async def make(self, births: Iterable[Birth], end: float) -> None:
        """All of them, until `end` of the loop's time; what takes longer goes on. Raises StoreGone and
        HistoryGone."""
        tasks = [self._task(birth) for birth in births]
        try:
            async with asyncio.timeout_at(end):
                for task in tasks:
                    await asyncio.shield(task)
        except TimeoutError:
            raise HistoryGone("SlowLedger") from None

    async def close(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _task(self, birth: Birth) -> asyncio.Task[None]:
        task = self._under_way.get(birth)
        if task is None:
            task = self._under_way[birth] = asyncio.create_task(self._make(birth))
            task.add_done_callback(lambda done: self._done(birth, done))
        return task

    def _done(self, birth: Birth, task: asyncio.Task[None]) -> None:
        del self._under_way[birth]
        if not task.cancelled():
            task.exception()  # whoever waited has it; if nobody does any more, it is nobody's

    async def _make(self, birth: Birth) -> None:
        used = 0
        if self._history:
            if self._clock.now() - birth.start > self._settle_in * 1000:
                await self._sleep(self._settle_in)
            used = await self._history.used(birth.counter, birth.start, birth.end)
        await self._link.run_script(CREATE, (birth.root, birth.counter.name, birth.start, birth.end, used))
