"""The log by itself: what the stores rely on, and what only it can tell."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.quota import Standing
from proxy.store.sliding import GRAINS, Entry, SlidingLog

NOW = 1_774_738_800_000


def log_of(amounts: Sequence[tuple[int, int]], span: int = 1_000) -> SlidingLog:
    """A log with so much used at so many milliseconds after NOW."""
    log = SlidingLog(span)
    for after, amount in amounts:
        log.settle(taken(log, NOW + after, amount), amount, amount)
    return log


def taken(log: SlidingLog, now: int, amount: int) -> Entry:
    """What is taken as of now; how that leaves it is how it is."""
    log.advance(now)
    entry, standing = log.take(now, amount)
    assert standing == log.standing(0)
    return entry


def test_an_amount_counts_for_exactly_its_span() -> None:
    log = log_of([(0, 5)])
    log.advance(NOW + 999)
    assert log.used == 5
    log.advance(NOW + 1_000)
    assert log.used == 0
    assert log.idle


def test_neighbours_age_together_with_the_last_of_them() -> None:
    log = log_of([(0, 1), (4, 2), (9, 4), (10, 8)])
    log.advance(NOW + 1_008)
    assert log.used == 15
    log.advance(NOW + 1_009)
    assert log.used == 8
    log.advance(NOW + 1_010)
    assert log.used == 0


@pytest.mark.parametrize(
    ("amount", "limit", "wait"),
    [
        (1, 16, 0),
        (1, 15, 1_000),
        (2, 15, 1_000),
        (6, 15, 1_100),
        (7, 15, 1_500),
        (15, 15, 1_500),
        (16, 15, None),
        (0, 15, 0),
        (0, 0, 0),  # nothing always fits
    ],
)
def test_how_long_to_wait(amount: int, limit: int, wait: int | None) -> None:
    log = log_of([(0, 1), (0, 1), (100, 4), (500, 9)])
    asked = NOW + 500
    found = log.wait(asked, amount, limit)
    assert found == (wait and wait - 500)


def test_settling_moves_what_was_reserved_in_its_own_entry() -> None:
    log = SlidingLog(1_000)
    first = taken(log, NOW, 50)
    taken(log, NOW + 500, 30)
    assert (log.used, log.reserved) == (0, 80)
    log.settle(first, 50, 70)
    assert (log.used, log.reserved) == (70, 30)
    log.advance(NOW + 1_000)
    assert (log.used, log.reserved) == (0, 30)
    log.settle(first, 0, 99)  # it counts no more
    assert log.standing(0) == Standing(0, 30, 500, 0)


def test_what_is_given_back_whole_is_no_reason_to_wait() -> None:
    log = SlidingLog(1_000)
    entry = taken(log, NOW, 50)
    log.settle(entry, 50, 0)
    assert log.standing(0) == Standing(0, 0, 0, 0)
    assert not log.idle  # the next amount joins it


def test_a_clock_that_goes_back_stands_still() -> None:
    log = log_of([(0, 5), (900, 5)])
    assert log.wait(NOW + 1_000, 1, 5) == 900
    assert log.wait(NOW - 5_000, 1, 5) == 900
    entry = taken(log, NOW, 1)
    assert (entry.first, entry.last) == (NOW + 1_000, NOW + 1_000)
    assert (log.used, log.reserved, log.now) == (5, 1, NOW + 1_000)


EVENTS = st.lists(st.tuples(st.integers(-50, 300), st.integers(0, 9), st.integers(0, 12)), max_size=80)


@given(EVENTS)
def test_totals_are_those_of_its_entries_and_of_every_amount(events: list[tuple[int, int, int]]) -> None:
    log, clock, latest = SlidingLog(1_000), NOW, NOW
    held: list[tuple[Entry, int, int]] = []
    everything: list[tuple[Entry, int]] = []
    for step, amount, used in events:
        clock += step
        latest = max(latest, clock)
        held.append((taken(log, clock, amount), amount, used))
        if step % 3 == 0:
            entry, reserved, much = held.pop(0)
            log.settle(entry, reserved, much)
            everything.append((entry, much))
    log.advance(clock)
    assert log.reserved == sum(amount for entry, amount, _ in held if entry.last + 1_000 > latest)
    assert log.used == sum(much for entry, much in everything if entry.last + 1_000 > latest)


@given(EVENTS, st.integers(0, 40), st.integers(0, 40))
def test_waiting_as_long_as_told_and_not_a_millisecond_less(
    events: list[tuple[int, int, int]], amount: int, limit: int
) -> None:
    log = SlidingLog(1_000)
    clock = NOW
    for step, much, _ in events:
        clock += step
        taken(log, clock, much)
    wait = log.wait(clock, amount, limit)
    if wait is None:
        assert amount > limit
        return
    begun = log.now
    if wait:
        assert log.wait(begun + wait - 1, amount, limit) == 1
    assert log.wait(begun + wait, amount, limit) == 0


@given(st.lists(st.integers(0, 40), min_size=200, max_size=2_000))
def test_it_never_has_many_entries_and_counts_at_most_a_hundredth_too_long(gaps: list[int]) -> None:
    log, clock = SlidingLog(1_000), NOW
    events = []
    for gap in gaps:
        clock += gap
        taken(log, clock, 1)
        events.append(clock)
        assert len(log._entries) <= GRAINS + 2
    exact = sum(at > clock - 1_000 for at in events)
    lenient = sum(at > clock - 1_000 - 1_000 // GRAINS for at in events)
    assert exact <= log.reserved <= lenient


@given(EVENTS)
def test_nothing_changes_before_the_moment_that_it_names(events: list[tuple[int, int, int]]) -> None:
    log, clock = SlidingLog(1_000), NOW
    for step, amount, used in events:
        clock = max(clock, log.now) + max(step, 0)
        log.settle(taken(log, clock, amount), amount, used)
        assert log.until > log.now
        totals, at = (log.used, log.reserved), int(min(log.until - 1, clock + 2_000))
        log.advance(at)
        assert (log.used, log.reserved) == totals
