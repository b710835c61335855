"""What one counter has counted: in a period of the calendar, or of what is under way. For a sliding window see
sliding.py."""

from __future__ import annotations

from math import inf
from typing import Any, Final, Protocol

from proxy.core.calendar import Period
from proxy.core.quota import SLOT_WAIT, Standing, Window

FOREVER: Final = inf


class Tally(Protocol):
    """`used` and `reserved` are its totals, and grow older from the moment `until` on: whoever reads them or takes of
    them then has it `advance` first. Moments are Unix milliseconds, and never go back."""

    used: int
    reserved: int
    until: float

    @property
    def idle(self) -> bool:
        """It counts for nothing any more."""

    def advance(self, now: int) -> None: ...
    def wait(self, now: int, amount: int, limit: int) -> int | None:
        """Milliseconds from `now` on until `amount` fits if nothing else comes: 0 if it does, None if it never will.
        Nothing always fits, also where more is used than there should be."""

    def take(self, now: int, amount: int) -> tuple[Any, Standing]:
        """Reserve it, fit or not: where it lies from now on, for `settle` and nobody else, and how that leaves it."""

    def with_more(self, amount: int, wait: int | None) -> Standing:
        """As `take` would leave it, at the moment of the last `advance`."""

    def settle(self, place: Any, reserved: int, used: int) -> None:
        """Of what was `reserved` in a place so much was `used`, be it more."""

    def standing(self, wait: int | None) -> Standing:
        """As of the last `advance` or `take`, beside a wait that was found before."""


class PeriodTotal:
    """One counter in one period of the calendar. When that is over there is another one: settling this is in vain then,
    as it should be."""

    __slots__ = ("now", "period", "reserved", "until", "used", "window")

    def __init__(self, window: Window, period: Period, used: int) -> None:
        self.window, self.period = window, period
        self.now, self.used, self.reserved = period.start, used, 0
        self.until: float = period.end

    def advance(self, now: int) -> None:
        self.now = now

    def wait(self, now: int, amount: int, limit: int) -> int | None:
        self.now = now
        if self.used + self.reserved + amount <= limit or not amount:
            return 0
        return self.period.end - now if amount <= limit else None

    def take(self, now: int, amount: int) -> tuple[None, Standing]:
        self.now = now
        self.reserved += amount
        reset = self.period.end - now if self.used or self.reserved else 0
        return None, Standing(self.used, self.reserved, reset)

    def with_more(self, amount: int, wait: int | None) -> Standing:
        reserved = self.reserved + amount
        return Standing(self.used, reserved, self.period.end - self.now if self.used or reserved else 0, wait)

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

    __slots__ = ("reserved", "until", "used")

    def __init__(self) -> None:
        self.used = self.reserved = 0
        self.until = FOREVER

    def advance(self, now: int) -> None:
        """A slot does not age."""

    def wait(self, now: int, amount: int, limit: int) -> int | None:
        if self.reserved + amount <= limit or not amount:
            return 0
        return SLOT_WAIT if amount <= limit else None

    def take(self, now: int, amount: int) -> tuple[None, Standing]:
        self.reserved += amount
        return None, Standing(0, self.reserved, 0)

    def with_more(self, amount: int, wait: int | None) -> Standing:
        return Standing(0, self.reserved + amount, 0, wait)

    def settle(self, place: None, reserved: int, used: int) -> None:
        self.reserved -= reserved

    def standing(self, wait: int | None) -> Standing:
        return Standing(0, self.reserved, 0, wait)

    @property
    def idle(self) -> bool:
        return not self.reserved
