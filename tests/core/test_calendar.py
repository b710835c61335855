"""Periods as people in a place count them, on the days on which their clocks are odd."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.calendar import Calendar
from proxy.core.quota import WINDOWS

HOUR = 3_600_000

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",  # puts its clocks forward at midnight: 0:00 to 1:00, and back from 1:00 to 0:00
    "America/Sao_Paulo",  # did so too, and put them back from 0:00 to 23:00
    "America/St_Johns",  # did so at 0:01: a minute of the new day, an hour of the old one, the new one again
    "America/Toronto",  # went from 23:30 to 0:30 in 1919
    "Australia/Lord_Howe",  # half an hour
    "Asia/Kathmandu",  # a quarter of an hour off the others; changed at a midnight of 1986
    "Pacific/Apia",  # skipped a day
    "Pacific/Kwajalein",  # so did this
]

WINDOW_NAMES = st.sampled_from(["day", "week", "month"])
FIRST, LAST = -2_208_988_800_000, 4_102_444_800_000
"""1900 and 2100, in Unix milliseconds."""


def moment(zone: str, text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def local(zone: str, moment: int) -> datetime:
    return (datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=moment)).astimezone(ZoneInfo(zone))


def changes(zone: str) -> list[int]:
    """The moments at which the clocks of a zone were or will be put forward or back, in Unix milliseconds."""
    found = []
    for week in range(FIRST, LAST, 7 * 24 * HOUR):
        low, high = week, week + 7 * 24 * HOUR
        before = local(zone, low).utcoffset()
        if local(zone, high).utcoffset() == before:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if local(zone, middle).utcoffset() == before else (low, middle)
        found.append(high)
    return found


CHANGES = {zone: changes(zone) or [0] for zone in ZONES}


@st.composite
def moments(draw: st.DrawFn) -> tuple[str, int]:
    """A zone and a moment: any, or one at which its clocks are about to change or just have."""
    zone = draw(st.sampled_from(ZONES))
    near = st.integers(-26 * HOUR, 26 * HOUR) | st.integers(-2 * HOUR, 2 * HOUR) | st.integers(-61_000, 61_000)
    odd = st.builds(int.__add__, st.sampled_from(CHANGES[zone]), near)
    return zone, draw(odd | st.integers(FIRST, LAST))


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("Europe/Berlin", "2026-10-26", 24),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
        ("America/Havana", "2026-03-08", 23),
        ("America/Havana", "2026-11-01", 25),
        ("America/Sao_Paulo", "2018-11-04", 23),
        ("America/Sao_Paulo", "2019-02-16", 25),
        ("America/St_Johns", "2010-11-06", 24),
        ("America/St_Johns", "2010-11-07", 25),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
        ("Australia/Lord_Howe", "2026-10-04", 23.5),
        ("Asia/Kathmandu", "1986-01-01", 23.75),
        ("Asia/Kathmandu", "2026-06-01", 24),
        ("America/Toronto", "1919-03-30", 23.5),
        ("America/Toronto", "1919-03-31", 23.5),
        ("Pacific/Apia", "2011-12-29", 24),
        ("Pacific/Apia", "2011-12-31", 24),
        ("UTC", "2024-02-29", 24),
    ],
)
def test_how_long_a_day_is(zone: str, day: str, hours: float) -> None:
    period = Calendar(ZoneInfo(zone)).period(WINDOWS["day"], moment(zone, f"{day} 12:00"))
    assert local(zone, period.start).date() == date.fromisoformat(day)
    assert (period.end - period.start) / HOUR == hours


@pytest.mark.parametrize(
    ("zone", "day", "begin"),
    [
        ("America/Havana", "2026-03-08", "01:00"),
        ("America/Sao_Paulo", "2018-11-04", "01:00"),
        ("Asia/Kathmandu", "1986-01-01", "00:15"),
        ("America/Toronto", "1919-03-31", "00:30"),
        ("Europe/Berlin", "2026-03-29", "00:00"),
    ],
)
def test_a_day_whose_midnight_is_skipped_begins_at_the_end_of_the_gap(zone: str, day: str, begin: str) -> None:
    period = Calendar(ZoneInfo(zone)).period(WINDOWS["day"], moment(zone, f"{day} 12:00"))
    assert local(zone, period.start).isoformat()[:16] == f"{day}T{begin}"


@pytest.mark.parametrize(
    ("zone", "now", "window", "first", "after"),
    [
        ("Europe/Berlin", "2024-02-29 23:59", "month", "2024-02-01", "2024-03-01"),
        ("Europe/Berlin", "2024-02-29 23:59", "day", "2024-02-29", "2024-03-01"),
        ("Europe/Berlin", "2023-02-28 23:59", "month", "2023-02-01", "2023-03-01"),
        ("Europe/Berlin", "2100-02-28 23:59", "day", "2100-02-28", "2100-03-01"),
        ("Asia/Kathmandu", "2026-12-31 23:59", "month", "2026-12-01", "2027-01-01"),
        ("Asia/Kathmandu", "2026-12-31 23:59", "week", "2026-12-28", "2027-01-04"),
        ("America/New_York", "2026-12-31 23:59", "day", "2026-12-31", "2027-01-01"),
        ("America/New_York", "2026-03-08 12:00", "week", "2026-03-02", "2026-03-09"),
        ("Australia/Lord_Howe", "2026-04-30 00:00", "month", "2026-04-01", "2026-05-01"),
        ("Pacific/Apia", "2011-12-29 12:00", "day", "2011-12-29", "2011-12-31"),
        ("Pacific/Apia", "2011-12-29 12:00", "week", "2011-12-26", "2012-01-02"),
        ("Pacific/Apia", "2011-12-31 12:00", "month", "2011-12-01", "2012-01-01"),
    ],
)
def test_from_when_until_when(zone: str, now: str, window: str, first: str, after: str) -> None:
    period = Calendar(ZoneInfo(zone)).period(WINDOWS[window], moment(zone, now))
    assert period.start == moment(zone, f"{first} 00:00")
    assert period.end == moment(zone, f"{after} 00:00")


def test_the_week_in_which_a_day_was_skipped_has_six() -> None:
    period = Calendar(ZoneInfo("Pacific/Apia")).period(WINDOWS["week"], moment("Pacific/Apia", "2011-12-29 12:00"))
    assert period.end - period.start == 6 * 24 * HOUR


def test_an_hour_of_yesterday_that_comes_once_more_is_part_of_today() -> None:
    zone = "America/St_Johns"
    calendar = Calendar(ZoneInfo(zone))
    midnight = moment(zone, "2010-11-07 00:00")
    again = midnight + 30 * 60_000
    assert local(zone, again).isoformat()[:16] == "2010-11-06T23:30"
    assert calendar.period(WINDOWS["day"], midnight - 1).end == midnight
    assert calendar.period(WINDOWS["day"], again).start == midnight


@given(moments(), WINDOW_NAMES)
@example(("America/St_Johns", moment("America/St_Johns", "2010-11-07 00:00") + 30 * 60_000), "day")
def test_every_moment_is_in_its_own_period_and_that_between_its_neighbours(at: tuple[str, int], name: str) -> None:
    zone, now = at
    before, middle, after = Calendar(ZoneInfo(zone)).neighbours(WINDOWS[name], now)
    assert middle.start <= now < middle.end
    assert before.start < before.end == middle.start
    assert middle.end == after.start < after.end


@given(moments(), WINDOW_NAMES)
def test_periods_are_the_same_from_wherever_they_are_seen(at: tuple[str, int], name: str) -> None:
    """So they tile time, and a counter that is named by the start of its period is found by everyone."""
    zone, now = at
    window = WINDOWS[name]
    before, middle, after = Calendar(ZoneInfo(zone)).neighbours(window, now)
    for period in (before, middle, after):
        for seen in (period.start, period.end - 1, (period.start + period.end) // 2):
            assert Calendar(ZoneInfo(zone)).period(window, seen) == period


@given(moments(), WINDOW_NAMES)
def test_a_period_begins_when_people_say_that_its_first_day_does(at: tuple[str, int], name: str) -> None:
    zone, now = at
    start = Calendar(ZoneInfo(zone)).period(WINDOWS[name], now).start
    today, yesterday = local(zone, start).date(), local(zone, start - 1).date()
    assert yesterday < today
    first = {"day": True, "week": today.weekday() == 0, "month": today.day == 1}
    assert first[name] or (today - yesterday).days > 1  # its first day is one that was skipped


@given(moments(), WINDOW_NAMES)
def test_a_period_that_is_known_is_told_again(at: tuple[str, int], name: str) -> None:
    """What was computed for one moment is never told of another."""
    zone, now = at
    calendar, window = Calendar(ZoneInfo(zone)), WINDOWS[name]
    period = calendar.period(window, now)
    for other in (period.start - 1, period.start, period.end - 1, period.end, now):
        assert calendar.period(window, other) == Calendar(ZoneInfo(zone)).period(window, other)
    assert calendar.period(window, now) is calendar.neighbours(window, now)[1]


def test_each_window_has_periods_of_its_own() -> None:
    calendar = Calendar(ZoneInfo("UTC"))
    lengths = {name: calendar.period(WINDOWS[name], 0) for name in ("day", "week", "month")}
    assert {name: (one.end - one.start) // (24 * HOUR) for name, one in lengths.items()} == {
        "day": 1,
        "week": 7,
        "month": 31,
    }
