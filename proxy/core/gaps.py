"""How long the pieces of a stream keep one waiting: a count for each length, since a stream may have thousands."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0)
"""Seconds."""


class Gaps:
    """`counts` are those of BOUNDS, as upper ends, and of what is longer than all of them; `seconds` is the sum."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds
