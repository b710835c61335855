"""Wrong keys by address: when it is told to wait, for how long, and whom that never reaches."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.failures import ALLOWED, FIRST, LONGEST, MOST_ADDRESSES, WITHIN, Failures


def waits(failures: Failures, times: list[float], client: str = "192.0.2.7") -> list[float]:
    return [failures.failed(client, time) for time in times]


def test_twenty_within_a_minute_are_free_and_the_next_one_is_not() -> None:
    failures = Failures()
    assert waits(failures, [float(n) for n in range(20)]) == [0.0] * 20
    assert failures.failed("192.0.2.7", 20.0) == FIRST


def test_a_minute_is_any_minute() -> None:
    """The 20 before need not be of one minute of the clock; a minute later to the instant they no longer count."""
    times = [30.0 + n for n in range(20)]
    assert waits(Failures(), [*times, 89.999])[-1] == FIRST
    assert waits(Failures(), [*times, 90.0, 90.5]) == [0.0] * 21 + [FIRST]


def test_twenty_a_minute_for_ever_are_free() -> None:
    failures = Failures()
    assert set(waits(failures, [3.0 * n for n in range(1000)])) == {0.0}


def test_whoever_goes_on_waits_twice_as_long_up_to_a_quarter_of_an_hour() -> None:
    failures = Failures()
    assert waits(failures, [0.0] * 27)[20:] == [60, 120, 240, 480, 900, 900, 900]


def test_whoever_waits_as_told_is_told_what_a_stranger_is() -> None:
    failures = Failures()
    waits(failures, [float(n) for n in range(20)])
    told = failures.failed("192.0.2.7", 19.0)
    assert failures.failed("192.0.2.7", 19.0 + told) == 0.0


def test_whoever_waits_less_than_told_is_told_more() -> None:
    failures = Failures()
    waits(failures, [0.0] * 20)
    told = failures.failed("192.0.2.7", 0.0)
    assert failures.failed("192.0.2.7", told - 0.001) == 2 * told


def test_the_next_wait_is_longer_even_after_one_was_kept() -> None:
    failures = Failures()
    assert waits(failures, [0.0] * 21)[-1] == 60
    assert waits(failures, [60.0] * 21)[-1] == 120
    assert waits(failures, [180.0] * 21)[-1] == 240


@pytest.mark.parametrize(("quiet", "wait"), [(LONGEST - 1, 120.0), (LONGEST, FIRST)])
def test_a_quarter_of_an_hour_without_a_failure_forgives(quiet: float, wait: float) -> None:
    failures = Failures()
    waits(failures, [0.0] * 21)
    assert waits(failures, [FIRST + quiet] * 21)[-1] == wait


@given(st.lists(st.floats(0, 100), max_size=400))
def test_every_wait_is_in_its_bounds_and_true(steps: list[float]) -> None:
    """Never more than 20 free ones in any minute; a wait is at most 15 minutes, and whoever keeps it is free."""
    failures, now, free = Failures(), 0.0, list[float]()
    until = 0.0
    for step in steps:
        now += step
        wait = failures.failed("192.0.2.7", now)
        assert wait == 0.0 or FIRST <= wait <= LONGEST
        assert wait == int(wait)
        assert wait or now >= until
        if wait:
            until = now + wait
        else:
            free.append(now)
            assert sum(now - one < WITHIN for one in free) <= ALLOWED


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.7", "192.0.2.8", False),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("192.0.2.7", "::ffff:c000:207", True),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.8", False),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:0DB8:0000:0000:1::", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::1", "127.0.0.1", False),
        ("", "192.0.2.7", False),
        ("testclient", "", False),
        ("testclient", "testclient", True),
        ("not an address", "192.0.2.7", False),
    ],
)
def test_c13_who_is_one_client(one: str, other: str, same: bool) -> None:
    failures = Failures()
    waits(failures, [0.0] * 21, one)
    assert (failures.failed(other, 0.0) > 0) == same


def test_c13_a_million_addresses_of_one_provider_are_one_record() -> None:
    failures = Failures()
    for n in range(2000):
        failures.failed(f"2001:db8:7:7:{n:x}::1", 0.0)
    assert failures.addresses == 1


def test_c13_ten_thousand_addresses_are_known_and_more_are_not() -> None:
    failures = Failures()
    for n in range(MOST_ADDRESSES + 5000):
        assert failures.failed(f"10.1.{n >> 8}.{n & 255}", n / 1000) == 0.0
    assert failures.addresses == MOST_ADDRESSES


def test_c13_the_least_recently_failed_goes() -> None:
    failures = Failures(most=3)
    for client in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        waits(failures, [0.0] * 20, client)
    assert failures.failed("10.0.0.1", 1.0) == FIRST  # it has failed last now
    failures.failed("10.0.0.4", 2.0)  # the second one must go for it
    assert failures.failed("10.0.0.3", 3.0) == FIRST
    assert failures.failed("10.0.0.1", 3.0) == 2 * FIRST
    assert failures.failed("10.0.0.2", 3.0) == 0.0
    assert failures.addresses == 3


def test_c13_a_full_table_is_as_large_as_promised() -> None:
    tracemalloc.start()
    try:
        failures = Failures()
        for n in range(MOST_ADDRESSES):
            waits(failures, [0.0] * 25, f"10.1.{n >> 8}.{n & 255}")
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert failures.addresses == MOST_ADDRESSES
    assert size < 600 * MOST_ADDRESSES


def test_the_waits_grow_until_they_are_longest() -> None:
    told = waits(Failures(), [0.0] * 40)[20:]
    assert all(one < other or one == other == LONGEST for one, other in pairwise(told))
