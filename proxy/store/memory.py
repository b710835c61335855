"""Counters in the memory of one process: for one worker, and for the share of one while a shared store is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from proxy.core.calendar import Calendar, Period
from proxy.core.quota import Claim, Counter, History, Standing, Verdict, Window
from proxy.store.sliding import SlidingLog

SLOT_WAIT: Final = 1_000
"""Milliseconds after which to ask again for a slot: nobody knows when one comes back."""

SWEEP_EVERY: Final = 60_000
"""Milliseconds between two searches for counters that need not be kept. A thousand of them take 0.2 ms."""


class Tally(Protocol):
    """What one counter has counted by the latest moment that `advance` or `wait` was told of; see SlidingLog."""

    @property
    def idle(self) -> bool: ...
    def advance(self, now: int) -> None: ...
    def wait(self, now: int, amount: int, limit: int) -> int | None: ...
    def reserve(self, amount: int) -> Any:
        """Where it lies: for `settle`, and nobody else."""

    def settle(self, place: Any, reserved: int, used: int) -> None: ...
    def standing(self, wait: int | None) -> Standing: ...


class PeriodTotal:
    """One counter in one period of the calendar. When that is over there is another one: settling this is in vain then,
    as it should be."""

    __slots__ = ("now", "period", "reserved", "used", "window")

    def __init__(self, window: Window, period: Period, used: int) -> None:
        self.window, self.period = window, period
        self.now, self.used, self.reserved = period.start, used, 0

    def advance(self, now: int) -> None:
        self.now = now

    def wait(self, now: int, amount: int, limit: int) -> int | None:
        self.now = now
        if self.used + self.reserved + amount <= limit:
            return 0
        return self.period.end - self.now if amount <= limit else None

    def reserve(self, amount: int) -> None:
        self.reserved += amount

    def settle(self, place: None, reserved: int, used: int) -> None:
        self.reserved -= reserved
        self.used += used

    def standing(self, wait: int | None) -> Standing:
        reset = self.period.end - self.now if self.used or self.reserved else 0
        return Standing(self.used, self.reserved, reset, wait)

    @property
    def idle(self) -> bool:
        return self.now >= self.period.end


class Slots:
    """One counter of what is under way. All of it comes back, whatever it is said to have used."""

    __slots__ = ("reserved",)

    def __init__(self) -> None:
        self.reserved = 0

    def advance(self, now: int) -> None:
        """A slot does not age."""

    def wait(self, now: int, amount: int, limit: int) -> int | None:
        if self.reserved + amount <= limit:
            return 0
        return SLOT_WAIT if amount <= limit else None

    def reserve(self, amount: int) -> None:
        self.reserved += amount

    def settle(self, place: None, reserved: int, used: int) -> None:
        self.reserved -= reserved

    def standing(self, wait: int | None) -> Standing:
        return Standing(0, self.reserved, 0, wait)

    @property
    def idle(self) -> bool:
        return not self.reserved


Held = tuple[list[Tally], list[Any], Sequence[Claim]]
"""An open call: what it was counted by, where there, and how much."""

_NOTHING: Final[Held] = ([], [], ())


@dataclass(slots=True)
class Birth:
    """One of those that are `waiting` for a counter asks the ledger; when it has ended, however it did, it is the next
    one's turn."""

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
        self._open: dict[str, Held] = {}

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
        tallies = self._found(claims) or await self._made(claims)
        # From here on nothing is awaited: nobody comes between the check and what it allows.
        granted, waits = self._check(tallies, claims)
        if granted:
            places = [tally.reserve(claim.amount) for tally, claim in zip(tallies, claims, strict=True)]
            self._open[call] = tallies, places, claims
        return Verdict(granted, _standings(tallies, waits))

    def settle(self, call: str, claims: Sequence[Claim], used: Sequence[int]) -> None:
        for tally, place, claim, much in zip(*self._open.pop(call, _NOTHING), used, strict=False):
            tally.settle(place, claim.amount, much)

    async def standing(self, claims: Sequence[Claim]) -> tuple[Standing, ...]:
        """What `reserve` would find. Raises StoreGone."""
        tallies = self._found(claims) or await self._made(claims)
        return _standings(tallies, self._check(tallies, claims)[1])

    async def recount(self, counter: Counter) -> bool:
        """Have a calendar counter count no less than the ledger knows, if there is one: it has missed the time in which
        no rule asked for it. Raises StoreGone."""
        window = counter.window
        assert window
        if not self._history:
            return False
        period = self._calendar.period(window, self._advance())
        used = await self._history.used(counter, period.start, period.end)
        tally = self._tallies.get(counter.name)
        if isinstance(tally, PeriodTotal) and tally.period == period:
            tally.used = max(tally.used, used - tally.reserved)
        return True

    def _check(self, tallies: list[Tally], claims: Sequence[Claim]) -> tuple[bool, list[int | None]]:
        now, granted, waits = self._now, True, []
        for tally, claim in zip(tallies, claims, strict=True):
            wait = tally.wait(now, claim.amount, claim.limit)
            waits.append(wait)
            if wait != 0 and not claim.counter.shadow:
                granted = False
        return granted, waits

    def seed(self, counter: Counter, at: int, amount: int) -> None:
        """Count what was used at a moment of the past (Unix milliseconds) in a sliding window. Oldest first: what comes
        out of turn counts as late as what came before."""
        assert counter.window
        assert counter.window.span
        now = self._advance()  # before there is a log: a new one that is still empty would be swept away
        log = self._tallies.setdefault(counter.name, SlidingLog(counter.window.span))
        log.advance(min(at, now))
        log.settle(log.reserve(amount), amount, amount)

    def _found(self, claims: Sequence[Claim]) -> list[Tally] | None:
        """The tallies of claims as of now, if there are all of them."""
        self._advance()
        known = self._tallies
        try:
            return [known[claim.counter.name] for claim in claims]
        except KeyError:
            return None

    async def _made(self, claims: Sequence[Claim]) -> list[Tally]:
        while True:
            for claim in claims:
                if claim.counter.name not in self._tallies:
                    await self._make(claim.counter)
            # While the ledger was asked, a period may have ended, or the time zone may have become another.
            tallies = self._found(claims)
            if tallies is not None:
                return tallies

    async def _make(self, counter: Counter) -> None:
        window = counter.window
        if window is None:
            self._tallies[counter.name] = Slots()
        elif window.span is not None:
            self._tallies[counter.name] = SlidingLog(window.span)
        else:
            birth = self._births.setdefault(counter.name, Birth())
            birth.waiting += 1
            try:
                async with birth.turn:
                    await self._bear(counter, window)
            finally:
                birth.waiting -= 1
                if not birth.waiting:
                    del self._births[counter.name]

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


def _standings(tallies: list[Tally], waits: list[int | None]) -> tuple[Standing, ...]:
    return tuple([tally.standing(wait) for tally, wait in zip(tallies, waits, strict=True)])
