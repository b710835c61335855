from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.supervisor.backoff import FIRST, LONG, LONGEST, SOON, Backoff

SERVED = st.one_of(st.none(), st.floats(0, 10 * LONG))


def waits(*served: float | None) -> list[float]:
    backoff = Backoff()
    return [backoff.after(one) for one in served]


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        ([LONG], [0]),
        ([SOON], [0]),
        ([None], [0.1]),
        ([4.9], [0.1]),
        ([None] * 11, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]),
        ([None, None, 30.0, None], [0.1, 0.2, 0.2, 0.4]),  # half a minute proves nothing
        ([None, None, 60.0, None], [0.1, 0.2, 0.0, 0.1]),
    ],
)
def test_how_long_to_wait(served: list[float | None], expected: list[float]) -> None:
    assert waits(*served) == expected


@given(st.lists(SERVED))
def test_never_longer_than_the_longest_and_never_less_than_nothing(served: list[float | None]) -> None:
    assert all(wait == 0 or FIRST <= wait <= LONGEST for wait in waits(*served))


@given(st.lists(SERVED), st.floats(LONG, 10 * LONG))
def test_who_served_well_is_replaced_at_once(before: list[float | None], served: float) -> None:
    assert waits(*before, served)[-1] == 0


def test_a_very_long_loop() -> None:
    backoff = Backoff()
    for _ in range(5_000):
        wait = backoff.after(None)
    assert wait == LONGEST
    assert backoff.looping


def test_a_loop_is_called_one_at_the_third_failure() -> None:
    backoff = Backoff()
    seen = []
    for served in (None, 0.0, None, LONG):
        backoff.after(served)
        seen.append(backoff.looping)
    assert seen == [False, False, True, False]
