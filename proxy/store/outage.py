"""What happens while the shared store is gone: nobody waits for it, and it is noticed when it comes back."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, Literal, Protocol

from proxy.core.calendar import Calendar
from proxy.core.quota import Claim, Counter, HistoryGone, QuotaStore, Standing, StoreGone, Unit, Verdict
from proxy.core.services import Log
from proxy.store.share import Grants, Share

PROBE_EVERY: Final = 1.0
"""Seconds between two questions whether the store is back."""

PROBE_FOR: Final = 1.0
"""Seconds that it has for an answer."""

TOLD_AT_ONCE: Final = 50
"""Counters that a store that is back is told of in one step."""

STEPS_AT_ONCE: Final = 30
"""Such steps that are under way: less than a store has connections."""

Mode = Literal["local", "open", "closed"]
"""`store.on_outage`: each worker grants its share of a limit; or whatever is asked; or nothing. A limit on spend is
granted by the store or not at all."""

Step = Callable[[], Awaitable[None]]

_UNCOUNTED: Final = Standing(used=0, reserved=0, reset=0)


class Remote(QuotaStore, Protocol):
    """A store that is asked over a network. It bounds the time of each call by itself."""

    calendar: Calendar

    async def recount(self, counter: Counter, *, missed: bool) -> bool: ...
    async def hold(self, calls: Mapping[str, Sequence[Claim]]) -> None:
        """Take the slots of calls that were let in without it; they are given back as they are settled. May be said
        again. Raises StoreGone."""

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
        self._ours: dict[str, list[Claim]] = {}
        """Calls that were let in without the store, and the slots of each."""
        self._held: set[str] = set()
        """Those of them whose slots the store has been told of."""
        self._missed: dict[str, Counter] = {}
        """Calendar counters of what was let in uncounted."""
        self._gone_since = 0.0
        self._gone = False
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
        return self._gone

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
        self._ours[call] = [claim for claim in claims if claim.counter.window is None and claim.amount]
        return verdict

    async def look(self, claims: Sequence[Claim]) -> Verdict:
        """That the store is gone is noticed here too: what a request would be told depends on it."""
        if not claims:
            return Verdict(True, ())
        if not self.gone:
            try:
                return await self._store.look(claims)
            except HistoryGone:
                raise  # as above
            except StoreGone:
                self._lose()
        self._check_mode(claims)
        return await self._share.look(claims) if self.mode == "local" else _uncounted(claims)

    async def recount(self, counter: Counter, *, missed: bool) -> bool:
        """As the store has it. Raises StoreGone."""
        if self.gone:
            raise StoreGone
        return await self._store.recount(counter, missed=missed)

    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None:
        """To whoever granted it; a remote store keeps it for later if it is gone."""
        self._share.settle(call, claims, used)
        slots = self._ours.pop(call, None)
        if slots is None:
            if claims:
                self._store.settle(call, claims, used)
        elif call in self._held:
            self._held.remove(call)
            self._store.settle(call, slots, [0] * len(slots))

    async def caught_up(self) -> None:
        if not self.gone:
            await self._store.caught_up()

    async def close(self) -> None:
        """Look for the store no longer, and tell it nothing more."""
        self._closed = True
        if self._probe:
            self._probe.cancel()
            await asyncio.wait([self._probe])

    async def _without(self, call: str, claims: Sequence[Claim]) -> Verdict:
        """What is granted without the store. Raises StoreGone for all else: it is not the team that is to blame."""
        self._check_mode(claims)
        if self.mode == "local":
            return await self._share.reserve(call, claims)
        self._missed.update((claim.counter.name, claim.counter) for claim in claims if _is_calendar(claim.counter))
        return _uncounted(claims)

    def _check_mode(self, claims: Sequence[Claim]) -> None:
        """Raises StoreGone for what is never granted without the store."""
        binding = [claim for claim in claims if not claim.counter.shadow]
        if binding and (self.mode == "closed" or any(claim.counter.unit is Unit.SPEND for claim in binding)):
            raise StoreGone

    def _lose(self) -> None:
        if self.gone or self._closed:
            return
        self._gone, self._gone_since = True, self._monotonic()
        self._share.begin()
        self._probe = asyncio.create_task(self._look(self._probe))
        self._log("error", "store_gone", on_outage=self.mode)

    async def _look(self, before: asyncio.Task[None] | None) -> None:
        """The first look is at once: one answer that was too late is no outage.

        Requests are let in while the store is told what it has missed. So that this comes to an end, it is told once,
        and of the rest when it is asked again. `before` is the task of the last outage, which may be telling still.
        """
        if before:
            before.cancel()
            await asyncio.wait([before])
        while not await self._answers():
            await self._sleep(PROBE_EVERY)
        self._gone = False
        self._log("info", "store_back", after=round(self._monotonic() - self._gone_since, 3))
        while not await self._knows_all():
            await self._sleep(PROBE_EVERY)

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_FOR):
                await self._store.ping()
            await self._catch_up()
        except Exception:  # whatever else it may be: no answer, and nobody else would look again
            return False
        return True

    async def _knows_all(self) -> bool:
        try:
            await self._catch_up()
        except Exception:  # as above
            return False
        return not self._missed and not await self._share.owed()

    async def _catch_up(self) -> None:
        """Tell the store what was let in without it until now. What only the ledger could say stays for the next time
        if that does not answer."""
        slots = {call: slots for call, slots in self._ours.items() if slots}
        if slots:
            self._held.update(slots)
            await self._store.hold(slots)
        steps: list[Step] = [partial(self._look_up, counter) for counter in self._missed.values()]
        for grants, owed in await self._share.owed():
            steps += [partial(self._tell, grants, claims) for claims in _in_steps(owed)]
        await _together(steps)

    async def _look_up(self, counter: Counter) -> None:
        """Who is let in while the ledger is asked is not in its answer."""
        del self._missed[counter.name]
        try:
            await self._store.recount(counter, missed=True)
        except BaseException as error:
            self._missed[counter.name] = counter
            if not isinstance(error, HistoryGone):
                raise

    async def _tell(self, grants: Grants, owed: Sequence[Claim]) -> None:
        """Have the store count what was granted without it: else a window that is not over could be had twice."""
        if not await self._recounted(owed):
            call = f"outage-{secrets.token_hex(8)}"
            try:
                verdict = await self._store.reserve(call, owed)
            except HistoryGone:
                return
            self._share.learn(call, owed, verdict)
            self._store.settle(call, owed, [claim.amount for claim in owed])
        grants.told(owed)

    async def _recounted(self, owed: Sequence[Claim]) -> bool:
        """Whether the store has it from the ledger, which knows what everybody was granted."""
        if not _is_calendar(owed[0].counter):
            return False
        try:
            return await self._store.recount(owed[0].counter, missed=True)
        except HistoryGone:
            return False


async def _together(steps: Sequence[Step]) -> None:
    """All of them, some at a time; none goes on alone when one has failed."""
    places = asyncio.Semaphore(STEPS_AT_ONCE)

    async def one(step: Step) -> None:
        async with places:
            await step()

    async with asyncio.TaskGroup() as group:
        for step in steps:
            group.create_task(one(step))


def _uncounted(claims: Sequence[Claim]) -> Verdict:
    return Verdict(True, (_UNCOUNTED,) * len(claims))


def _in_steps(owed: Sequence[Claim]) -> list[Sequence[Claim]]:
    """A calendar's counter by itself: the ledger is asked for it first, and keeps no other waiting."""
    sliding = [claim for claim in owed if not _is_calendar(claim.counter)]
    alone: list[Sequence[Claim]] = [[claim] for claim in owed if _is_calendar(claim.counter)]
    return alone + [sliding[i : i + TOLD_AT_ONCE] for i in range(0, len(sliding), TOLD_AT_ONCE)]


def _is_calendar(counter: Counter) -> bool:
    return counter.window is not None and counter.window.span is None
