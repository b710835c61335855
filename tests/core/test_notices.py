from __future__ import annotations

from proxy.core.notices import MILLISECONDS_A_DAY as DAY
from proxy.core.notices import Notices


def test_each_is_given_once_a_day() -> None:
    notices = Notices()
    assert [notices.is_due(notice, now) for notice, now in [("a", 0), ("b", 1), ("a", DAY - 1)]] == [True, True, False]
    assert [notices.is_due(notice, now) for notice, now in [("a", DAY), ("a", DAY), ("b", DAY)]] == [True, False, True]


def test_no_more_are_remembered_than_there_is_room_for_and_those_are_not_given() -> None:
    notices = Notices(most=2)
    assert [notices.is_due(notice, 0) for notice in "abcab"] == [True, True, False, False, False]
    assert notices.is_due("c", DAY)
