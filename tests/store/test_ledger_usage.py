from __future__ import annotations

from datetime import date, datetime
from itertools import combinations
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from proxy.store.database import Database
from proxy.store.ledger.commit import Committer
from proxy.store.ledger.rows import Row, ended, opened
from proxy.store.ledger.usage import PARTS, Line, Part, report
from tests.store.ledgers import intent, outcome

PARIS = ZoneInfo("Europe/Paris")


def at(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> int:
    return int(datetime(year, month, day, hour, minute, tzinfo=PARIS).timestamp() * 1000)


def call(n: int, opened: int, **fields: Any) -> Row:
    who = {name: fields.pop(name) for name in ("team", "key_id", "priced_as", "model") if name in fields}
    used = {"prompt": 10, "cached": 4, "completion": 5, "cost": 100} | fields
    return ended(intent(n, opened=opened, **who), outcome(n, **used))


@pytest.fixture
def filled(database: Database) -> Database:
    """The clocks of Paris go back at 03:00 on 25 October 2026."""
    rows = [
        call(1, at(2026, 10, 24, 23, 59)),
        call(2, at(2026, 10, 25, 0, 0), team="sales"),
        call(3, at(2026, 10, 25, 12), key_id="k2", status="failed", estimated=True, cost=None),
        call(4, at(2026, 10, 25, 23, 59), priced_as="large"),
        call(5, at(2026, 10, 26, 0, 0), priced_as=None, model="tuned"),
        opened(intent(6, opened=at(2026, 10, 25, 13))),
    ]
    Committer(database).commit(rows)
    return database


def requests(lines: list[Line]) -> dict[tuple[object, ...], int]:
    return {(one.team, one.model, one.key, one.day): one.requests for one in lines}


SPAN = at(2026, 10, 1), at(2026, 11, 1)


def test_everything_in_one_line(filled: Database) -> None:
    assert report(filled, *SPAN, by=()) == [
        Line(
            team=None, model=None, key=None, day=None, requests=5, failed=1, estimated=1, unpriced=1,
            prompt=50, cached=20, completion=25, cost=400, saved=0,
        )
    ]  # fmt: skip


def test_by_team(filled: Database) -> None:
    assert requests(report(filled, *SPAN, by=["team"])) == {
        ("research", None, None, None): 4,
        ("sales", None, None, None): 1,
    }


def test_by_model(filled: Database) -> None:
    by_model = requests(report(filled, *SPAN, by=["model"]))
    assert {model: count for (_, model, _, _), count in by_model.items()} == {
        "large": 1,
        "mistral-small-2506": 3,
        "tuned": 1,
    }


def test_by_day_of_a_zone_whose_day_has_25_hours(filled: Database) -> None:
    days = [(one.day, one.requests) for one in report(filled, *SPAN, by=["day"], zone=PARIS)]
    assert days == [(date(2026, 10, 24), 1), (date(2026, 10, 25), 3), (date(2026, 10, 26), 1)]
    days = [(one.day, one.requests) for one in report(filled, *SPAN, by=["day"])]
    assert days == [(date(2026, 10, 24), 2), (date(2026, 10, 25), 3)]


def test_of_one_team(filled: Database) -> None:
    assert requests(report(filled, *SPAN, by=["key", "team"], team="research")) == {
        ("research", None, "k1", None): 3,
        ("research", None, "k2", None): 1,
    }
    assert report(filled, *SPAN, by=(), team="nobody") == []


@pytest.mark.parametrize("by", [by for size in range(5) for by in combinations(PARTS, size)])
def test_any_division_adds_up_to_the_same(by: tuple[Part, ...], filled: Database) -> None:
    lines = report(filled, *SPAN, by=by, zone=PARIS)
    assert sum(one.requests for one in lines) == 5
    assert sum(one.cost for one in lines) == 400
    for part in PARTS:
        assert all((getattr(one, part) is not None) == (part in by) for one in lines)
    keys = [(one.team or "", one.model or "", one.key or "", one.day or date.min) for one in lines]
    assert keys == sorted(set(keys))


def test_it_begins_and_ends_where_it_is_asked_to(filled: Database) -> None:
    assert report(filled, at(2026, 10, 25), at(2026, 10, 26), by=(), zone=PARIS)[0].requests == 3
    assert report(filled, at(2026, 10, 25, 12, 14), at(2026, 10, 25, 12, 15), by=())[0].requests == 1
    assert report(filled, at(2026, 10, 25, 12, 15), at(2026, 10, 25, 13), by=()) == []
