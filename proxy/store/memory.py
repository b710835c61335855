"""Counters in the memory of one process: for one worker, and for the share of one while a shared store is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.core.calendar import Calendar
from proxy.core.quota import Claim, Counter, History, Standing, Verdict, Window
from proxy.store.sliding import SlidingLog
from proxy.store.tally import PeriodTotal, Slots, Tally

SWEEP_EVERY: Final = 60_000
"""Milliseconds between two searches for counters that need not be kept. A thousand of them take 0.2 ms."""

ASKED_AGAIN: Final = 3
"""Questions to the ledger about one counter that calls change meanwhile."""

Held = tuple[Tally, Any, int]
"""Of an open call: what it was counted by, where there, and how much."""


@dataclass(slots=True)
class Birth:
    """One of those that are `waiting` for a counter asks the ledger, for a new one or of one that may have missed
    something; when it has ended, however it did, it is the next one's turn."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class MemoryStore:
    """A QuotaStore. `wall` gives Unix milliseconds; where it goes back, time stands still until it has caught up.

    A call must not make two claims on one counter, nor reserve twice. A counter is kept while it counts for something,
    and for SWEEP_EVERY more; a call while it is open.
    """

    def __init__(self, calendar: Calendar, wall: Callable[[], int], history: History | None = None) -> None:
        self._calendar = calendar
        self._wall = wall
        self._history = history
        self._now = self._sweep_at = 0
        self._tallies: dict[str, Tally] = {}
        self._births: dict[str, Birth] = {}
        self._open: dict[str, list[Held]] = {}

    @property
    def calendar(self) -> Calendar:
        return self._calendar

    @calendar.setter
    def calendar(self, calendar: Calendar) -> None:
        """Periods that the new one has too go on; for the others, counters are born from the ledger again."""
        self._calendar = calendar
        for name, tally in list(self._tallies.items()):
            if isinstance(tally, PeriodTotal) and calendar.period(tally.window, tally.period.start) != tally.period:
                del self._tallies[name]

    async def reserve(self, call: str, claims: Sequence[Claim]) -> Verdict:
        found = self._found(claims) or await self._made(claims)
        # From here on nothing is awaited: nobody comes between the check and what it allows.
        tallies, fit = found
        waits = None if fit else self._waits(tallies, claims)
        if waits and _refused(waits, claims):
            return Verdict(False, _standings(tallies, waits))
        now, held, standings = self._now, [], []
        for tally, claim in zip(tallies, claims):  # noqa: B905 (half of the loop's cost)
            amount = claim.amount
            place, standing = tally.take(now, amount)
            held.append((tally, place, amount))
            standings.append(standing)
        self._open[call] = held
        return Verdict(True, tuple(standings) if waits is None else _standings(tallies, waits))

    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None:
        for (tally, place, amount), much in zip(self._open.pop(call, ()), used):  # noqa: B905 (as above)
            if amount or much:
                tally.settle(place, amount, much)

    async def caught_up(self) -> None:
        """It always is."""

    async def look(self, claims: Sequence[Claim]) -> Verdict:
        """Raises StoreGone. Of what is counted it changes nothing; a calendar's counter is kept, though, once the
        ledger had to be asked for it."""
        tallies = await self._seen(claims)
        waits = self._waits(tallies, claims)
        if _refused(waits, claims):
            return Verdict(False, _standings(tallies, waits))
        each = zip(tallies, claims, waits, strict=True)
        return Verdict(True, tuple([tally.with_more(claim.amount, wait) for tally, claim, wait in each]))

    async def standing(self, claims: Sequence[Claim]) -> tuple[Standing, ...]:
        """How the counters are, without the claims. Raises StoreGone."""
        tallies = await self._seen(claims)
        return _standings(tallies, self._waits(tallies, claims))

    async def recount(self, counter: Counter, *, missed: bool) -> bool:
        """Have a calendar counter count no less than the ledger knows, if there is one: it may have missed the time in
        which no rule asked for it. Raises StoreGone."""
        window = counter.window
        assert window
        if not self._history:
            return False
        period = self._calendar.period(window, self._advance())
        await self._history.used(counter, period.start, period.end)  # nobody waits for one that does not answer
        async with self._held(counter):
            tally = self._tallies.pop(counter.name, None)
            try:
                if isinstance(tally, PeriodTotal):
                    await self._count(counter, tally, self._history)
            finally:
                self._put_back(counter, window, tally)
        return True

    async def _count(self, counter: Counter, total: PeriodTotal, history: History) -> None:
        """Nobody is let in meanwhile. A call that ends while the ledger is asked may be in its answer with all that it
        could use: then it is asked once more, and what it says at last is no less than the truth."""
        for _ in range(ASKED_AGAIN):
            before = total.used, total.reserved
            used = await history.used(counter, total.period.start, total.period.end)
            if (total.used, total.reserved) == before:
                break
        total.used = max(total.used, used - total.reserved)

    def _put_back(self, counter: Counter, window: Window, tally: Tally | None) -> None:
        """Unless its period is over, or another one in the time zone of now: then it is born again."""
        if isinstance(tally, PeriodTotal) and self._calendar.period(window, self._advance()) == tally.period:
            self._tallies[counter.name] = tally
            self._sweep_at = min(self._sweep_at, tally.period.end)

    @asynccontextmanager
    async def _held(self, counter: Counter) -> AsyncIterator[None]:
        """Whoever needs a counter that is not there waits until this ends."""
        birth = self._births.setdefault(counter.name, Birth())
        birth.waiting += 1
        try:
            async with birth.turn:
                yield
        finally:
            birth.waiting -= 1
            if not birth.waiting:
                del self._births[counter.name]

    def _waits(self, tallies: list[Tally], claims: Sequence[Claim]) -> list[int | None]:
        now = self._now
        return [tally.wait(now, claim.amount, claim.limit) for tally, claim in zip(tallies, claims, strict=True)]

    def seed(self, counter: Counter, at: int, amount: int) -> None:
        """Count what was used at a moment of the past (Unix milliseconds) in a sliding window. Oldest first: what comes
        out of turn counts as late as what came before."""
        assert counter.window
        assert counter.window.span
        now = self._advance()  # before there is a log: a new one that is still empty would be swept away
        log = self._tallies.setdefault(counter.name, SlidingLog(counter.window.span))
        at = min(at, now)
        log.advance(at)
        log.settle(log.take(at, amount)[0], amount, amount)

    def _found(self, claims: Sequence[Claim]) -> tuple[list[Tally], bool] | None:
        """The tallies of claims as of now, if there are all of them; and whether all fit. Mostly they do, and then
        nobody needs to know how long to wait."""
        now, known, tallies, fit = self._advance(), self._tallies, [], True
        for claim in claims:
            tally = known.get(claim.counter.name)
            if tally is None:
                return None
            if tally.until <= now:
                tally.advance(now)
            if tally.used + tally.reserved + claim.amount > claim.limit and claim.amount:
                fit = False
            tallies.append(tally)
        return tallies, fit

    async def _seen(self, claims: Sequence[Claim]) -> list[Tally]:
        """The tallies of claims as of now. What nobody has counted yet is as a new one, and need not be kept."""
        while True:
            now, known, tallies = self._advance(), self._tallies, list[Tally]()
            for claim in claims:
                tally = known.get(claim.counter.name) or _empty(claim.counter)
                if tally is None:
                    await self._make(claim.counter)
                    break
                tally.advance(now)
                tallies.append(tally)
            else:
                return tallies

    async def _made(self, claims: Sequence[Claim]) -> tuple[list[Tally], bool]:
        while True:
            for claim in claims:
                if claim.counter.name not in self._tallies:
                    await self._make(claim.counter)
            # While the ledger was asked, a period may have ended, or the time zone may have become another.
            found = self._found(claims)
            if found is not None:
                return found

    async def _make(self, counter: Counter) -> None:
        empty = _empty(counter)
        if empty is not None:
            self._tallies[counter.name] = empty
            return
        assert counter.window
        async with self._held(counter):
            await self._bear(counter, counter.window)

    async def _bear(self, counter: Counter, window: Window) -> None:
        if counter.name in self._tallies:
            return
        calendar = self._calendar
        period = calendar.period(window, self._now)
        used = await self._history.used(counter, period.start, period.end) if self._history else 0
        if calendar is self._calendar:
            self._tallies[counter.name] = PeriodTotal(window, period, used)
            self._sweep_at = min(self._sweep_at, period.end)

    def _advance(self) -> int:
        now = self._wall()
        if now > self._now:
            self._now = now
            if now >= self._sweep_at:
                self._sweep(now)
        return self._now

    def _sweep(self, now: int) -> None:
        """Forget what counts for nothing any more; the total of a period is gone with its last moment."""
        self._sweep_at = now + SWEEP_EVERY
        for name, tally in list(self._tallies.items()):
            tally.advance(now)
            if tally.idle:
                del self._tallies[name]
            elif isinstance(tally, PeriodTotal):
                self._sweep_at = min(self._sweep_at, tally.period.end)


def _empty(counter: Counter) -> Tally | None:
    """A new one; None: the ledger knows how it begins."""
    if counter.window is None:
        return Slots()
    return None if counter.window.span is None else SlidingLog(counter.window.span)


def _refused(waits: list[int | None], claims: Sequence[Claim]) -> bool:
    return any(wait != 0 and not claim.counter.shadow for wait, claim in zip(waits, claims, strict=True))


def _standings(tallies: list[Tally], waits: list[int | None]) -> tuple[Standing, ...]:
    return tuple([tally.standing(wait) for tally, wait in zip(tallies, waits, strict=True)])
