"""Which sums add up to a span of time: those of whole days, and of the quarter hours at either end.

A day of a time zone is none of UTC. The days are chosen whose bounds are nearest to those of the span, and the quarter
hours in between are added, or subtracted: that are never more than half a day's at either end.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Table

from proxy.store.tables import DAY, USAGE, USAGE_DAYS


@dataclass(frozen=True, slots=True)
class Piece:
    """The sums of `table` from `start` until before `end` count `sign` times."""

    table: Table
    start: int
    end: int
    sign: int = 1


def pieces(start: int, end: int) -> list[Piece]:
    """Of a span of whole quarter hours, in Unix milliseconds."""
    if end - start <= DAY // 2:
        return [Piece(USAGE, start, end)]
    first, last = _nearest(start), _nearest(end)
    candidates = [
        Piece(USAGE_DAYS, first, last),
        Piece(USAGE, start, first) if start <= first else Piece(USAGE, first, start, -1),
        Piece(USAGE, last, end) if last <= end else Piece(USAGE, end, last, -1),
    ]
    return [piece for piece in candidates if piece.start < piece.end]


def _nearest(moment: int) -> int:
    return (moment + DAY // 2) // DAY * DAY
