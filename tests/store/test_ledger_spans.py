from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.store.ledger.spans import pieces
from proxy.store.tables import DAY, QUARTER, USAGE

QUARTERS = st.integers(0, 96 * 40).map(lambda n: n * QUARTER)


@given(QUARTERS, QUARTERS)
def test_each_quarter_hour_of_a_span_counts_once_and_no_other(one: int, other: int) -> None:
    start, end = sorted((one, other))
    counts: dict[int, int] = {}
    for piece in pieces(start, end):
        step = QUARTER if piece.table is USAGE else DAY
        assert piece.start % step == piece.end % step == 0
        for at in range(piece.start, piece.end, QUARTER):
            counts[at] = counts.get(at, 0) + piece.sign
    assert {at for at, count in counts.items() if count} == set(range(start, end, QUARTER))
    assert set(counts.values()) <= {0, 1}


@given(QUARTERS, QUARTERS)
def test_a_span_of_any_length_needs_few_quarter_hours(one: int, other: int) -> None:
    start, end = sorted((one, other))
    assert sum(piece.end - piece.start for piece in pieces(start, end) if piece.table is USAGE) <= DAY
