"""Redis's clock as a worker knows it from the answers, and the periods of the calendar around it.

Only Redis decides in which period a request falls; it is told the three that may come into question. The machine's own
wall clock is a first guess: a replica whose clock is wrong by days counts in the same periods as the others.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.core.calendar import Calendar
from proxy.core.quota import Window

_LEAST, _MOST = 86_400_000 * 60, 86_400_000 * 365 * 1000
"""Unix milliseconds between which a calendar works."""


class StoreClock:
    """`wall` gives Unix milliseconds, `monotonic` seconds since whenever."""

    def __init__(self, wall: Callable[[], int], monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._offset = wall() - monotonic() * 1000

    def now(self) -> int:
        """Unix milliseconds."""
        return int(self._monotonic() * 1000 + self._offset)

    def learn(self, now: int) -> None:
        """What Redis has just said. Raises ValueError if that is no time."""
        if not _LEAST < now < _MOST:
            raise ValueError("no time")
        self._offset = now - self._monotonic() * 1000


class Periods:
    """Those around now."""

    def __init__(self, calendar: Calendar, clock: StoreClock) -> None:
        self.calendar = calendar
        self._clock = clock
        self._last: dict[str, tuple[int, int, int, int]] = {}

    def edges(self, window: Window) -> tuple[int, int, int, int]:
        """Where the period before, the one that holds now and the one after it begin, and where that ends."""
        known, now = self._last.get(window.name), self._clock.now()
        if known is None or not known[1] <= now < known[2]:
            before, middle, after = self.calendar.neighbours(window, now)
            known = self._last[window.name] = (before.start, middle.start, after.start, after.end)
        return known

    def start(self, window: Window, now: int) -> int:
        """Of the period that held `now`."""
        known = self._last.get(window.name)
        return known[1] if known and known[1] <= now < known[2] else self.calendar.period(window, now).start

    def end(self, window: Window, start: int) -> int:
        return self.calendar.period(window, start).end
