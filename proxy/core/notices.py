"""What is worth a line of the log now and then, and not one for each request."""

from __future__ import annotations

from collections.abc import Hashable

MILLISECONDS_A_DAY = 86_400_000
MOST = 10_000
"""Notices of one day that are remembered; there are no further ones on that day."""


class Notices:
    """Each is given once a day (UTC). They outlive a configuration, or a reload would repeat them all."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._day = -1
        self._given: set[Hashable] = set()

    def is_due(self, notice: Hashable, now: int) -> bool:
        """Whether it has not been given on this day, which it is from now on. `now` is in Unix milliseconds."""
        day = now // MILLISECONDS_A_DAY
        if day != self._day:
            self._day = day
            self._given.clear()
        if notice in self._given or len(self._given) >= self._most:
            return False
        self._given.add(notice)
        return True
