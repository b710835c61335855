"""What happens while the shared store is gone: nobody waits for it, and it is noticed when it comes back."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, Protocol

from proxy.core.calendar import Calendar
from proxy.core.quota import Claim, Counter, HistoryGone, QuotaStore, Standing, StoreGone, Unit, Verdict
from proxy.core.services import Log
from proxy.store.share import Share

PROBE_EVERY: Final = 1.0
"""Seconds between two questions whether the store is back."""

PROBE_FOR: Final = 1.0
"""Seconds that it has for an answer."""

TOLD_AT_ONCE: Final = 50
"""Counters that a store that is back is told of in one step."""

Mode = Literal["local", "open", "closed"]
"""`store.on_outage`: each worker grants its share of a limit; or whatever is asked; or nothing. A limit on spend is
granted by the store or not at all."""

_UNCOUNTED: Final = Standing(used=0, reserved=0, reset=0)


class Remote(QuotaStore, Protocol):
    """A store that is asked over a network. It bounds the time of each call by itself."""

    calendar: Calendar

    async def standing(self, claims: Sequence[Claim]) -> tuple[Standing, ...]: ...
    async def recount(self, counter: Counter) -> bool: ...
    async def ping(self) -> None:
        """Raises StoreGone."""


class WithOutage:
    """A QuotaStore that asks `store` while that answers, and goes by `mode` while it does not.

    `peers` is the number of workers that share it, as last heard, this one included. `wall` gives Unix milliseconds,
    `monotonic` seconds.
    """

    def __init__(
        self,
        store: Remote,
        mode: Mode,
        peers: Callable[[], int],
        log: Log,
        monotonic: Callable[[], float],
        *,
        calendar: Calendar,
        wall: Callable[[], int],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.mode = mode
        self._store = store
        self._log = log
        self._monotonic = monotonic
        self._sleep = sleep
        self._share = Share(calendar, wall, peers)
        self._ours: set[str] = set()
        self._missed: dict[str, Counter] = {}
        """Calendar counters of what was let in uncounted."""
        self._gone_since = 0.0
        self._probe: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def calendar(self) -> Calendar:
        return self._share.calendar

    @calendar.setter
    def calendar(self, calendar: Calendar) -> None:
        self._share.calendar = self._store.calendar = calendar

    @property
    def gone(self) -> bool:
        return self._probe is not None

    async def reserve(self, call: str, claims: Sequence[Claim]) -> Verdict:
        if not claims:
            return Verdict(True, ())
        if not self.gone:
            try:
                verdict = await self._store.reserve(call, claims)
            except HistoryGone:
                raise  # which the store itself is not to blame for
            except StoreGone:
                self._lose()
            else:
                self._share.learn(call, claims, verdict)
                return verdict
        verdict = await self._without(call, claims)
        self._ours.add(call)
        return verdict

    async def standing(self, claims: Sequence[Claim]) -> tuple[Standing, ...]:
        """How the counters are, with nothing reserved. Raises StoreGone."""
        if self.gone:
            raise StoreGone
        return await self._store.standing(claims)

    async def recount(self, counter: Counter) -> bool:
        """As the store has it. Raises StoreGone."""
        if self.gone:
            raise StoreGone
        return await self._store.recount(counter)

    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None:
        """To whoever granted it; a remote store keeps it for later if it is gone."""
        self._share.settle(call, claims, used)
        if call in self._ours:
            self._ours.remove(call)
        elif claims:
            self._store.settle(call, claims, used)

    async def close(self) -> None:
        """Look for the store no longer."""
        self._closed = True
        if self._probe:
            self._probe.cancel()
            await asyncio.wait([self._probe])

    async def _without(self, call: str, claims: Sequence[Claim]) -> Verdict:
        """What is granted without the store. Raises StoreGone for all else: it is not the team that is to blame."""
        binding = [claim for claim in claims if not claim.counter.shadow]
        if binding and (self.mode == "closed" or any(claim.counter.unit is Unit.SPEND for claim in binding)):
            raise StoreGone
        if self.mode == "local":
            return await self._share.reserve(call, claims)
        self._missed.update((claim.counter.name, claim.counter) for claim in claims if _is_calendar(claim.counter))
        return Verdict(True, (_UNCOUNTED,) * len(claims))

    def _lose(self) -> None:
        if self.gone or self._closed:
            return
        self._gone_since = self._monotonic()
        self._share.begin()
        self._probe = asyncio.create_task(self._look())
        self._log("error", "store_gone", on_outage=self.mode)

    async def _look(self) -> None:
        """The first look is at once: one answer that was too late is no outage."""
        while not await self._answers():
            await self._sleep(PROBE_EVERY)
        self._probe = None
        self._log("info", "store_back", after=round(self._monotonic() - self._gone_since, 3))

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_FOR):
                await self._store.ping()
            while self._missed:
                name, counter = next(iter(self._missed.items()))
                await self._recounted(counter)
                del self._missed[name]
            while owed := await self._share.owed():
                await self._tell(owed[:TOLD_AT_ONCE])
        except Exception:  # whatever else it may be: no answer, and nobody else would look again
            return False
        return True

    async def _tell(self, owed: Sequence[Claim]) -> None:
        """Have the store count what was granted without it: else a window that is not over could be had twice."""
        known = await asyncio.gather(*(self._recounted(claim.counter) for claim in owed))
        rest = [claim for claim, is_known in zip(owed, known, strict=True) if not is_known]
        if rest:
            call = f"outage-{secrets.token_hex(8)}"
            await self._store.reserve(call, rest)
            self._store.settle(call, rest, [claim.amount for claim in rest])
        self._share.told(owed)

    async def _recounted(self, counter: Counter) -> bool:
        """Whether the store has it from the ledger, which knows what everybody was granted."""
        if not _is_calendar(counter):
            return False
        try:
            return await self._store.recount(counter)
        except HistoryGone:
            return False


def _is_calendar(counter: Counter) -> bool:
    return counter.window is not None and counter.window.span is None
