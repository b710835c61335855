from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.store.database import Database
from proxy.store.ledger import retention as retentions
from proxy.store.ledger.commit import Committer
from proxy.store.ledger.retention import EVERY, SUMS_KEPT, Retention
from proxy.store.ledger.rows import ended, opened
from proxy.store.tables import DAY, USAGE, USAGE_DAYS
from tests.programs import until
from tests.store.ledgers import NOW, Clock, intent, ledger, outcome, read_calls, read_sums


def numbers(database: Database) -> list[int]:
    return sorted(int(row["call"].split("-")[1]) for row in read_calls(database))


def fill(database: Database, *ages: int) -> None:
    """Calls that ended so many milliseconds ago; the last one has not ended."""
    rows = [ended(intent(n, opened=NOW - age), outcome(n)) for n, age in enumerate(ages[:-1])]
    Committer(database).commit([*rows, opened(intent(len(ages) - 1, opened=NOW - ages[-1]))])


def test_what_is_too_old_goes_and_what_is_open_stays(database: Database) -> None:
    fill(database, 30 * DAY, 30 * DAY + 1, 31 * DAY, 0, 400 * DAY)
    assert not Retention(database, 30 * DAY, Clock()).step()
    assert numbers(database) == [0, 3, 4]
    assert sum(values[0] for values in read_sums(database).values()) == 4


def test_a_few_at_a_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retentions, "MOST_AT_ONCE", 3)
    fill(database, *range(40 * DAY + 7, 40 * DAY, -1), 0)
    retention = Retention(database, 30 * DAY, Clock())
    assert retention.step()
    assert numbers(database) == [3, 4, 5, 6, 7]
    assert retention.step()
    assert not retention.step()
    assert numbers(database) == [7]


def test_it_looks_once_an_hour(database: Database) -> None:
    clock = Clock()
    retention = Retention(database, 30 * DAY, clock)
    assert not retention.step()
    fill(database, 31 * DAY, 0)
    clock.now += EVERY - 1
    assert not retention.step()
    assert numbers(database) == [0, 1]
    clock.now += 1
    assert not retention.step()
    assert numbers(database) == [1]


def test_without_an_end_nothing_goes(database: Database) -> None:
    fill(database, 10_000 * DAY, 0)
    assert not Retention(database, None, Clock()).step()
    assert numbers(database) == [0, 1]


@pytest.mark.parametrize(("kept", "left"), [(30 * DAY, 1), (SUMS_KEPT + 100 * DAY, 2)])
def test_sums_stay_for_two_years_or_as_long_as_calls(kept: int, left: int, database: Database) -> None:
    fill(database, SUMS_KEPT + 50 * DAY, 31 * DAY, 0)
    Retention(database, kept, Clock()).step()
    for table in (USAGE, USAGE_DAYS):
        assert sum(values[0] for values in read_sums(database, table).values()) == left


async def test_the_ledger_sees_to_it(database: Database, tmp_path: Path) -> None:
    await asyncio.to_thread(fill, database, 31 * DAY, 0)
    async with ledger(database, tmp_path / "journal", kept=30 * DAY):
        await asyncio.to_thread(until, lambda: numbers(database) == [1], "the old row is gone")
