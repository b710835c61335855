"""What was used in the last `span` milliseconds, as a log that never grows.

A fixed window lets twice the limit through at its edge, and an estimate from two windows is wrong both ways. A log of
every amount is exact but as long as the traffic is heavy; so neighbours share an entry, which counts until the last of
them would. Never too little is counted, and nothing for more than a hundredth of the span too long.
"""

from __future__ import annotations

from collections import deque

from proxy.core.quota import Standing
from proxy.store.tally import FOREVER

GRAINS = 100
"""An entry takes new amounts for a span divided by this. So at most GRAINS + 2 entries count at a time."""


class Entry:
    """What was reserved from `first` until `last`, in milliseconds: what of it is still `reserved`, what was `used`."""

    __slots__ = ("first", "last", "reserved", "used")

    def __init__(self, now: int) -> None:
        self.first = self.last = now
        self.used = self.reserved = 0


class SlidingLog:
    """A Tally. `used` and `reserved` are the totals of the `span` milliseconds before `now`, the latest moment that it
    was told of: a clock that goes back stands still here."""

    __slots__ = ("_entries", "now", "reserved", "span", "until", "used")

    def __init__(self, span: int) -> None:
        self.span = span
        self.now = self.used = self.reserved = 0
        self.until: float = FOREVER
        self._entries: deque[Entry] = deque()

    def advance(self, now: int) -> None:
        """It is `now`: forget what is too old to count."""
        if now > self.now:
            self.now = now
            entries, oldest = self._entries, now - self.span
            while entries and entries[0].last <= oldest:
                gone = entries.popleft()
                self.used -= gone.used
                self.reserved -= gone.reserved
            self.until = entries[0].last + self.span if entries else FOREVER

    def wait(self, now: int, amount: int, limit: int) -> int | None:
        self.advance(now)
        over = self.used + self.reserved + amount - limit
        if over <= 0 or not amount:
            return 0
        for entry in self._entries:
            over -= entry.used + entry.reserved
            if over <= 0:
                return entry.last + self.span - self.now
        return None

    def take(self, now: int, amount: int) -> tuple[Entry, Standing]:
        """The place is the entry that has it from now on."""
        if now > self.now:
            self.now = now
        else:
            now = self.now
        entries = self._entries
        if entries and (now - entries[-1].first) * GRAINS < self.span:
            entry = entries[-1]
            entry.last = now
        else:
            entry = Entry(now)
            if not entries:
                self.until = now + self.span
            entries.append(entry)
        entry.reserved += amount
        self.reserved += amount
        if entry.reserved or entry.used:
            return entry, Standing(self.used, self.reserved, self.span)
        return entry, self.standing(0)

    def with_more(self, amount: int, wait: int | None) -> Standing:
        newest = self._entries[-1] if self._entries else None
        joins = newest is not None and (self.now - newest.first) * GRAINS < self.span
        if amount or (newest and joins and (newest.used or newest.reserved)):
            return Standing(self.used, self.reserved + amount, self.span, wait)
        return self.standing(wait)

    def settle(self, place: Entry, reserved: int, used: int) -> None:
        """An entry that is too old to count stays so."""
        place.reserved -= reserved
        place.used += used
        if place.last > self.now - self.span:
            self.reserved -= reserved
            self.used += used

    def standing(self, wait: int | None) -> Standing:
        for entry in reversed(self._entries):
            if entry.used or entry.reserved:
                return Standing(self.used, self.reserved, entry.last + self.span - self.now, wait)
        return Standing(0, 0, 0, wait)

    @property
    def idle(self) -> bool:
        """It is like a new one."""
        return not self._entries
