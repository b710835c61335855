"""How long the pieces of a stream keep one waiting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.gaps import BOUNDS, Gaps


@pytest.mark.parametrize(
    ("seconds", "place"),
    [(0.0, 0), (0.01, 0), (0.010001, 1), (1.0, 6), (14.9, 8), (15.0, 8), (15.1, 9), (3600.0, 9)],
)
def test_a_bound_is_the_upper_end_of_its_bucket(seconds: float, place: int) -> None:
    gaps = Gaps()
    gaps.add(seconds)
    assert [at for at, count in enumerate(gaps.counts) if count] == [place]


@given(st.lists(st.floats(0, 100)))
def test_each_counts_once_and_none_is_forgotten(seconds: list[float]) -> None:
    gaps = Gaps()
    for one in seconds:
        gaps.add(one)
    assert len(gaps.counts) == len(BOUNDS) + 1
    assert sum(gaps.counts) == len(seconds)
    assert gaps.seconds == pytest.approx(sum(seconds))
    for end, bound in enumerate(BOUNDS, 1):
        assert sum(gaps.counts[:end]) == sum(one <= bound for one in seconds)
