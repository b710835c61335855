"""Days, weeks and months of a time zone as spans of Unix time: they begin when the people there say that they do.

A day may have 23 or 25 hours; one that begins in a gap of the clock begins at the end of the gap. The periods of a zone
follow each other without gap or overlap, whatever its clocks did: where they were put back over midnight, what is the
old day once more belongs to the new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo

from proxy.core.quota import Window


@dataclass(frozen=True, slots=True)
class Period:
    """Unix milliseconds: from `start` until before `end`."""

    start: int
    end: int


Neighbours = tuple[Period, Period, Period]


class Calendar:
    """Periods of the day, week (from Monday) and month in one time zone. They are computed once while one lasts."""

    def __init__(self, zone: tzinfo) -> None:
        self.zone = zone
        self._last: dict[str, Neighbours] = {}

    def period(self, window: Window, now: int) -> Period:
        """The one that holds `now`, in Unix milliseconds."""
        return self.neighbours(window, now)[1]

    def neighbours(self, window: Window, now: int) -> Neighbours:
        """The one before, the one that holds `now`, and the next: for a clock that is not quite ours."""
        known = self._last.get(window.name)
        if known is None or not known[1].start <= now < known[1].end:
            middle = self._holding(window, now)
            known = self._holding(window, middle.start - 1), middle, self._holding(window, middle.end)
            self._last[window.name] = known
        return known

    def _holding(self, window: Window, now: int) -> Period:
        period = self._around(window, self._date(now // 1000))
        # It is a date of before once more, as in Newfoundland, which put its clocks back at 0:01.
        return period if now < period.end else self._around(window, self._date(period.end // 1000))

    def _around(self, window: Window, today: date) -> Period:
        first, after = _BOUNDS[window.name](today)
        return Period(self._begin(first) * 1000, self._begin(after) * 1000)

    def _begin(self, day: date) -> int:
        """The first moment of a day, or of the next one that there is. Of a midnight that comes twice the first is
        meant."""
        midnight = datetime.combine(day, time())
        moment = int(midnight.replace(tzinfo=self.zone).timestamp())
        exists = datetime.fromtimestamp(moment, self.zone).replace(tzinfo=None) == midnight
        return moment if exists else self._after_gap(day, moment)

    def _after_gap(self, day: date, inside: int) -> int:
        """A midnight in a gap is told by the clock of before, so it is the end of the gap, or later by less than its
        length."""
        low, high = inside - 86_400, inside
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._date(middle) < day else (low, middle)
        return high

    def _date(self, moment: int) -> date:
        return datetime.fromtimestamp(moment, self.zone).date()


def _day(today: date) -> tuple[date, date]:
    return today, today + timedelta(days=1)


def _week(today: date) -> tuple[date, date]:
    monday = today - timedelta(days=today.weekday())
    return monday, monday + timedelta(days=7)


def _month(today: date) -> tuple[date, date]:
    first = today.replace(day=1)
    return first, (first + timedelta(days=31)).replace(day=1)


_BOUNDS = {"day": _day, "week": _week, "month": _month}
