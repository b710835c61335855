from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.core.ledger import LedgerFull
from proxy.core.quota import StoreGone
from proxy.store.database import Database
from proxy.store.ledger.commit import Committer
from proxy.store.ledger.rows import MOST_NUMBER, ended, opened, usage
from tests.programs import PATIENCE, until
from tests.store.ledgers import NOW, Lines, calls, consistent, intent, ledger, locked, outcome, read_sums


async def test_a_call_is_a_row_that_is_open_until_it_ends(database: Database, tmp_path: Path) -> None:
    async with ledger(database, tmp_path / "journal") as store:
        store.open(intent(1))
        await store.flush(PATIENCE)
        row = (await calls(database))[0]
        assert row["status"] == "open"
        assert (row["request_id"], row["team"], row["most_tokens"], row["most_cost"]) == (
            "req_1",
            "research",
            1100,
            330_000,
        )
        assert row["cost"] is row["closed"] is row["estimated"] is None
        store.close(outcome(1))
        await store.flush(PATIENCE)
    row = (await calls(database))[0]
    assert (row["status"], row["closed"], row["cost"], row["completion"]) == ("settled", NOW + 1_500, 21_801, 41)
    assert row["stream"] in (True, 1)
    assert row["most_cost"] == 330_000
    await consistent(database)


async def test_rows_are_written_without_being_asked_for(database: Database, tmp_path: Path) -> None:
    async with ledger(database, tmp_path / "journal") as store:
        store.open(intent(1))
        store.close(outcome(1))
        await asyncio.to_thread(until, lambda: not store.backlog.rows, "the rows are written")
        assert [row["status"] for row in await calls(database)] == ["settled"]


async def test_many_in_any_order(database: Database, tmp_path: Path) -> None:
    async with ledger(database, tmp_path / "journal") as store:
        for n in range(3_000):
            store.open(intent(n, team=f"team-{n % 3}", opened=NOW + n * 1_000))
            if n >= 500:
                store.close(
                    outcome(n - 500, status=("settled", "failed", "cancelled")[n % 3], cost=None if n % 7 else n)
                )
            if n % 400 == 0:
                await store.flush(PATIENCE)
        for n in range(2_500, 3_000):
            store.close(outcome(n))
        await store.flush(PATIENCE)
        assert store.backlog.rows == 0
        assert store.backlog.segments == 1
    rows = await calls(database)
    assert len(rows) == 3_000
    assert not [row for row in rows if row["status"] == "open"]
    await consistent(database)


async def test_a_second_outcome_changes_nothing(database: Database, tmp_path: Path) -> None:
    async with ledger(database, tmp_path / "journal") as store:
        store.open(intent(1))
        store.close(outcome(1))
        store.close(outcome(1, cost=5))
        await store.flush(PATIENCE)
        store.close(outcome(1, status="failed", cost=6))
        store.close(outcome(999))
        await store.flush(PATIENCE)
    (row,) = await calls(database)
    assert (row["status"], row["cost"]) == ("settled", 21_801)
    await consistent(database)


async def test_rows_that_are_there_already_are_counted_once(database: Database) -> None:
    """As after a commit whose reply was lost, and after a journal that was replayed by half."""
    committer = Committer(database)
    rows = [ended(intent(n), outcome(n)) for n in range(5)] + [opened(intent(n)) for n in range(5, 8)]
    more = [ended(intent(n), outcome(n)) for n in range(3, 12)]
    for some in (rows, rows, more, rows, more):
        await asyncio.to_thread(committer.commit, some)
    assert [row["status"] for row in await calls(database)] == ["settled"] * 12
    await consistent(database)


async def test_what_is_closed_at_the_end_is_written(database: Database, tmp_path: Path) -> None:
    async with ledger(database, tmp_path / "journal") as store:
        for n in range(100):
            store.open(intent(n))
            store.close(outcome(n))
        assert await store.close_down()
        store.close(outcome(100))  # of whoever was slow to leave
    assert len(await calls(database)) == 100
    assert list((tmp_path / "journal").iterdir()) == []


@pytest.mark.parametrize("name", ["a\x00b", "\ud800", "n" * 1_000_000, "'; DROP TABLE calls; --", "{[\"'\\%s?:"])
async def test_whatever_a_client_calls_its_model(name: str, database: Database, tmp_path: Path) -> None:
    async with ledger(database, tmp_path / "journal", log=(log := Lines())) as store:
        store.open(intent(1, model_asked=name, model=name, priced_as=None, request_id=name[:300]))
        store.open(intent(2))
        store.close(outcome(1, error=name[:300]))
        store.close(outcome(2))
        await store.flush(PATIENCE)
    rows = await calls(database)
    assert [row["status"] for row in rows] == ["settled", "settled"]
    assert len(rows[0]["model_asked"]) <= 256
    assert log.events() == []
    await consistent(database)


@pytest.mark.parametrize("number", [2**63, 2**64, 10**40, -(10**40), MOST_NUMBER * 10])
async def test_numbers_that_no_database_takes(number: int, database: Database, tmp_path: Path) -> None:
    async with ledger(database, tmp_path / "journal", log=(log := Lines())) as store:
        store.open(intent(1, tokens=number, cost=number))
        store.open(intent(2))
        await store.flush(PATIENCE)
        store.close(outcome(1, completion=number, cost=number))
        store.close(outcome(2))
        await store.flush(PATIENCE)
    assert [row["status"] for row in await calls(database)] == ["settled", "settled"]
    assert log.events() == []
    await consistent(database)


async def test_a_row_that_no_database_takes_is_lost_alone(database: Database) -> None:
    committer = Committer(database)
    bad = [*ended(intent(1), outcome(1))]
    bad[1] = None  # request_id
    lost = await asyncio.to_thread(committer.commit, [ended(intent(0), outcome(0)), tuple(bad), opened(intent(2))])
    assert lost == 1
    assert [row["status"] for row in await calls(database)] == ["settled", "open"]
    await consistent(database)


async def test_sums_of_calls_are_by_the_quarter_hour_they_began_in(database: Database, tmp_path: Path) -> None:
    quarter = 900_000
    start = NOW // quarter * quarter
    async with ledger(database, tmp_path / "journal") as store:
        for n, at in enumerate((start - 1, start, start + quarter - 1, start + quarter)):
            store.open(intent(n, opened=at))
            store.close(outcome(n, closed=start + 10 * quarter, cost=n))
        await store.flush(PATIENCE)
    sums = await asyncio.to_thread(read_sums, database)
    assert {key[1]: (values[0], values[7]) for key, values in sums.items()} == {
        start - quarter: (1, 0),
        start: (2, 3),
        start + quarter: (1, 3),
    }


def test_what_a_call_adds_to_the_sums() -> None:
    rows = [
        ended(intent(1), outcome(1, status="failed", cost=None, prompt=5, completion=0, cached=0)),
        ended(intent(2), outcome(2, estimated=True, cost=7, prompt=6, completion=2, cached=3)),
        ended(intent(3, priced_as=None, model="other"), outcome(3, cost=1)),
        ended(intent(4, priced_as=None, model=None), outcome(4, cost=2)),
    ]
    sums = {key[3]: values for key, values in usage(rows).items()}
    assert sums["mistral-small-2506"] == [2, 1, 1, 1, 11, 3, 2, 7, 0]
    assert sums["other"][7] == 1
    assert sums[""][7] == 2


async def test_a_full_journal_lets_nothing_in_and_forgets_nothing(database: Database, tmp_path: Path) -> None:
    log = Lines()
    async with ledger(database, tmp_path / "journal", most_segments=2, log=log) as store:
        await store.flush(PATIENCE)
        with locked(database):
            opened = 0
            while opened < 100_000:
                try:
                    store.open(intent(opened))
                except LedgerFull:
                    if store.backlog.segments == 2:
                        break
                    await asyncio.sleep(0.005)
                else:
                    opened += 1
            for n in range(opened):
                store.close(outcome(n))
            assert store.backlog.full
            assert store.backlog.rows == 2 * opened
            with pytest.raises(LedgerFull):
                store.open(intent(opened))
            with pytest.raises(StoreGone):
                await store.flush(0.05)
        await asyncio.to_thread(until, lambda: not store.backlog.rows, "the rows are written")
        store.open(intent(opened))
        store.close(outcome(opened))
        assert not store.backlog.full
    assert "ledger_full" in log.events()
    assert "ledger_has_room" in log.events()
    rows = await calls(database)
    assert len(rows) == opened + 1
    assert {row["status"] for row in rows} == {"settled"}
    await consistent(database)
