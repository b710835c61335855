"""What was used in the last `span` milliseconds, as a log that never grows.

A fixed window lets twice the limit through at its edge, and an estimate from two windows is wrong both ways. A log of
every amount is exact but as long as the traffic is heavy; so neighbours share an entry, which counts until the last of
them would. Never too little is counted, and nothing for more than a hundredth of the span too long.
"""

from __future__ import annotations

from collections import deque

from proxy.core.quota import Standing

GRAINS = 100
"""An entry takes new amounts for a span divided by this. So at most GRAINS + 2 entries count at a time."""


class Entry:
    """What was reserved from `first` until `last`, in milliseconds: what of it is still `reserved`, what was `used`."""

    __slots__ = ("first", "last", "reserved", "used")

    def __init__(self, now: int) -> None:
        self.first = self.last = now
        self.used = self.reserved = 0


class SlidingLog:
    """`used` and `reserved` are the totals of the `span` milliseconds before `now`, the latest moment that `advance` or
    `wait` was told of: a clock that goes back stands still here."""

    __slots__ = ("_entries", "now", "reserved", "span", "used")

    def __init__(self, span: int) -> None:
        self.span = span
        self.now = self.used = self.reserved = 0
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

    def wait(self, now: int, amount: int, limit: int) -> int | None:
        """Milliseconds from `now` on until `amount` fits if nothing else comes: 0 if it does, None if it never will."""
        if now > self.now:
            self.advance(now)
        over = self.used + self.reserved + amount - limit
        if over <= 0:
            return 0
        for entry in self._entries:
            over -= entry.used + entry.reserved
            if over <= 0:
                return entry.last + self.span - self.now
        return None

    def reserve(self, amount: int) -> Entry:
        """The entry that has it from now on."""
        now, entries = self.now, self._entries
        if not entries or (now - entries[-1].first) * GRAINS >= self.span:
            entries.append(Entry(now))
        entry = entries[-1]
        entry.last = now
        entry.reserved += amount
        self.reserved += amount
        return entry

    def settle(self, entry: Entry, reserved: int, used: int) -> None:
        """Of what was `reserved` in an entry so much was `used`, be it more. One that is too old to count stays so."""
        entry.reserved -= reserved
        entry.used += used
        if entry.last > self.now - self.span:
            self.reserved -= reserved
            self.used += used

    def standing(self, wait: int | None) -> Standing:
        """As of `now`, beside the wait that was found before."""
        for entry in reversed(self._entries):
            if entry.used or entry.reserved:
                return Standing(self.used, self.reserved, entry.last + self.span - self.now, wait)
        return Standing(0, 0, 0, wait)

    @property
    def idle(self) -> bool:
        """It is like a new one."""
        return not self._entries
