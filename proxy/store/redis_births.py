"""How a calendar counter comes into being, and how it is counted anew: with what the ledger knows of its period.

While one is born, all who need it wait for the same birth. Requests that others have let in may be on their way to the
ledger still, so it is asked a moment later, unless the period itself is younger than that.

One that has missed something cannot be told what: of those whom it has let in a moment ago nobody knows whether they
are in the ledger's number. So while that is asked again nobody is let in by this counter (lua/hold.lua).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, Literal

from proxy.core.quota import Counter, History, HistoryGone, StoreGone
from proxy.store.redis_clock import StoreClock
from proxy.store.redis_link import CREATE, HOLD, Link

HOLD_FOR: Final = 2_500
"""Milliseconds after which a hold ends by itself. A ledger that takes longer to answer has not been asked."""

LOOK: Final = 0.025
"""Seconds between two looks whether a hold has ended."""

_OK: Final = 0


@dataclass(frozen=True, slots=True)
class Birth:
    """Of the total of one period, in one life (`root`) of the data. `held`: it is there, and somebody counts it anew,
    which is waited for."""

    root: str
    counter: Counter
    start: int
    end: int
    held: bool = False


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

    async def recount(self, birth: Birth, hold: str | None) -> bool:
        """Have it count no less than the ledger knows; whether it did count less. With the name of a `hold` nobody is
        let in meanwhile, and it is exact. Raises StoreGone and HistoryGone."""
        if hold is None:
            return await self._create(birth, await self._used(birth), None)
        if self._history:  # nobody is kept waiting for a ledger that does not answer
            await self._history.used(birth.counter, birth.start, birth.end)
        async with self._hold(birth, hold):
            return await self._create(birth, await self._used(birth), hold)

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
        if not birth.held:
            await self._create(birth, await self._used(birth), None)
            return
        while await self._holds(birth, False):
            await self._sleep(LOOK)

    async def _used(self, birth: Birth) -> int:
        if not self._history:
            return 0
        if self._clock.now() - birth.start > self._settle_in * 1000:
            await self._sleep(self._settle_in)
        return await self._history.used(birth.counter, birth.start, birth.end)

    async def _create(self, birth: Birth, used: int, hold: str | None) -> bool:
        """Whether it was there already, and had missed something."""
        argument = (birth.root, birth.counter.name, birth.start, birth.end, used, hold or False)
        status, _, missed = await self._link.run_script(CREATE, argument)
        if status != _OK:
            raise HistoryGone("SlowLedger")
        return bool(missed)

    @asynccontextmanager
    async def _hold(self, birth: Birth, name: str) -> AsyncIterator[None]:
        await self._holds(birth, name, HOLD_FOR)
        try:
            yield
        except BaseException:
            with suppress(StoreGone):  # then it ends by itself
                await self._holds(birth, name)
            raise

    async def _holds(self, birth: Birth, name: str | Literal[False], last: int = 0) -> int:
        """How many there are, when this one lasts for so many milliseconds from now on."""
        argument = (birth.root, birth.counter.name, birth.start, birth.end, name, last)
        return int((await self._link.run_script(HOLD, argument))[2])
