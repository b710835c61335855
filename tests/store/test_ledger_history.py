from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from proxy.core.calendar import Calendar
from proxy.core.quota import WINDOWS, Counter, HistoryGone, StoreGone, Unit
from proxy.store.database import Database
from proxy.store.ledger.batch import encode
from proxy.store.ledger.commit import Committer
from proxy.store.ledger.history import RECOVERY, LedgerHistory, Recent
from proxy.store.ledger.journal import Journal
from proxy.store.ledger.recovery import Recovery
from proxy.store.ledger.rows import Row, ended, has_ended, opened
from proxy.store.ledger.usage import report
from proxy.store.tables import DAY, QUARTER
from tests.postgres_server import PostgresServer
from tests.programs import PATIENCE, until
from tests.store.conftest import Connect
from tests.store.ledgers import NOW, intent, ledger, locked, outcome

MONTH = WINDOWS["month"]
START = NOW // QUARTER * QUARTER
UNITS = (Unit.REQUESTS, Unit.TOKENS, Unit.SPEND)


async def nothing(_seconds: float) -> None:
    """There are no rows of ours."""


@pytest.fixture
def history(database: Database) -> Iterator[LedgerHistory]:
    history = LedgerHistory(database, nothing, patience=PATIENCE)
    yield history
    history.close()


def call(n: int) -> Row:
    """One of a few teams, keys and models, somewhere around START; every fifth has not ended."""
    one = intent(
        n,
        opened=START + (n % 23 - 11) * QUARTER // 4 + n % 3 - 1 + (n % 7 - 3) * DAY,
        team=f"team{n % 2}",
        key_id=f"k{n % 3}",
        priced_as=(None, "large", "small")[n % 3],
        model=("tuned", "large-latest", "small-latest")[n % 3],
        operation=("chat", "embeddings")[n % 2],
    )
    return opened(one) if n % 5 == 0 else ended(one, outcome(n, cost=None if n % 3 == 0 else 1_000 + n))


CALLS = [call(n) for n in range(400)]


def expected(counter: Counter, start: int, end: int) -> int:
    """The same, counted one by one."""
    used = 0
    for row in CALLS:
        if not start <= row[2] < end or row[3] != counter.team:
            continue
        if counter.key not in (None, row[4]) or counter.model not in (None, row[9] or row[8]):
            continue
        if counter.unit is Unit.REQUESTS:
            used += 1
        elif counter.unit is Unit.TOKENS:
            used += row[22] + row[24] if has_ended(row) else row[13]
        else:
            used += (row[28] or 0) if has_ended(row) else row[14]
    return used


@pytest.fixture
def calls(database: Database) -> None:
    Committer(database).commit(CALLS)


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("unit", UNITS)
async def test_what_a_counter_is_told_is_what_the_calls_add_up_to(unit: Unit, history: LedgerHistory) -> None:
    spans = [
        (START, START + QUARTER),
        (START - 10 * QUARTER, START + 10 * QUARTER),
        (START + 1, START + QUARTER),
        (START - QUARTER - 1, START + 1),
        (START + 5, START + 70),
        (START - QUARTER // 2, START + QUARTER // 2),
        (START, START),
        (START - 40 * DAY, START + 40 * DAY),
        (START - 2 * DAY - 7 * QUARTER, START + DAY + 40 * QUARTER),
        (START - START % DAY - 2 * DAY, START - START % DAY + 3 * DAY),
        (START - DAY + 3, START + 2 * DAY + 5),
    ]
    seen = set()
    for start, end in spans:
        for key in (None, "k1"):
            for model in (None, "small", "tuned"):
                counter = Counter("team1", unit, MONTH, key, model)
                used = await history.used(counter, start, end)
                assert used == expected(counter, start, end), (start - START, end - START, key, model)
                seen.add(used)
    assert len(seen) > 10
    assert await history.used(Counter("nobody", unit, MONTH), START - 10 * QUARTER, START + 10 * QUARTER) == 0


async def test_our_own_rows_are_written_first(database: Database, tmp_path: Path) -> None:
    counter = Counter("research", Unit.SPEND, MONTH)
    async with ledger(database, tmp_path / "journal") as store:
        history = LedgerHistory(database, store.flush, patience=PATIENCE)
        store.open(intent(1))
        assert await history.used(counter, START, START + QUARTER) == 330_000
        store.close(outcome(1))
        assert await history.used(counter, START, START + QUARTER) == 21_801
        history.close()


@pytest.mark.usefixtures("calls")
async def test_the_last_hour_for_counters_that_slide(history: LedgerHistory) -> None:
    recent = await history.recent(START)
    rows = [row for row in CALLS if row[2] >= START]
    assert sum(one.requests for one in recent) == len(rows)
    for team in ("team0", "team1"):
        counter = Counter(team, Unit.TOKENS, MONTH)
        assert sum(one.tokens for one in recent if one.team == team) == expected(counter, START, START + 10**9)
    assert sum(one.cost for one in recent) == sum(
        expected(Counter(team, Unit.SPEND, MONTH), START, START + 10**9) for team in ("team0", "team1")
    )
    first = min(rows, key=lambda row: row[2])
    assert Recent in {type(one) for one in recent}
    assert first[2] // 1000 == min(one.second for one in recent)
    assert all(isinstance(value, int) for one in recent for value in (one.second, one.requests, one.tokens, one.cost))


async def test_a_start_waits_for_a_long_recovery(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A counter that is asked for by a request does not."""
    await asyncio.to_thread(dead, tmp_path / "journal", encode(intent(1, "dead", opened=START)))
    over, recover = threading.Event(), Recovery.estates

    def slowly(recovery: Recovery) -> None:
        over.wait()
        recover(recovery)

    monkeypatch.setattr(Recovery, "estates", slowly)
    async with ledger(database, tmp_path / "journal") as store:
        history = LedgerHistory(database, store.flush, patience=0.05)
        with pytest.raises(StoreGone):
            await history.recent(START, patience=0.05)
        starting = asyncio.create_task(history.recent(START))
        with pytest.raises(HistoryGone):
            await history.used(Counter("research", Unit.SPEND, MONTH), START, START + QUARTER)
        assert not starting.done()
        over.set()
        assert [one.cost for one in await starting] == [330_000]
        history.close()
    assert RECOVERY >= 60


def dead(directory: Path, *records: bytes) -> None:
    """The journal of a process that was killed."""
    journal = Journal(directory, "dead", 4)
    for record in records:
        journal.append(record)
    journal.release(empty=False)


async def test_a_locked_database_cannot_stop_who_reads_sqlite(connect: Connect, tmp_path: Path) -> None:
    database = await asyncio.to_thread(connect, f"sqlite:///{tmp_path}/ledger.db")
    async with ledger(database, tmp_path / "journal") as store:
        await store.flush(PATIENCE)
        history = LedgerHistory(database, nothing, patience=PATIENCE)
        with locked(database):
            assert await history.used(Counter("research", Unit.SPEND, MONTH), START, START + QUARTER) == 0
        history.close()


async def test_a_server_that_does_not_answer(postgres: PostgresServer, connect: Connect, tmp_path: Path) -> None:
    database = connect(postgres.fresh())
    counter = Counter("research", Unit.SPEND, MONTH)
    async with ledger(database, tmp_path / "journal") as store:
        history = LedgerHistory(database, store.flush, patience=PATIENCE)
        assert await history.used(counter, START, START + QUARTER) == 0
        with postgres.frozen():
            with pytest.raises(StoreGone):
                await history.used(counter, START, START + QUARTER)
        await asyncio.to_thread(postgres.kill)
        with pytest.raises(StoreGone):
            await history.used(counter, START, START + QUARTER)
        await asyncio.to_thread(postgres.start)
        await asyncio.to_thread(until, lambda: not store.backlog.gone, "it is noticed")
        assert await history.used(counter, START, START + QUARTER) == 0
        history.close()


@pytest.mark.usefixtures("calls")
async def test_no_query_looks_at_every_row(database: Database, history: LedgerHistory) -> None:
    """Neither of the sums nor of the calls: each finds its rows by an index."""
    counter = Counter("team1", Unit.SPEND, MONTH, "k1", "small")
    plans = await asyncio.to_thread(explained, database, lambda: history._used(counter, START + 1, START + 10**10))
    plans += await asyncio.to_thread(explained, database, lambda: history._recent(START))
    for team in (None, "team1"):
        plans += await asyncio.to_thread(
            explained, database, lambda team=team: report(database, START, START + 10**10, by=["key", "day"], team=team)
        )
    assert len(plans) > 30
    for plan in plans:
        assert not re.search(r"Seq Scan|SCAN (calls|usage|usage_days)(?! USING)", plan), plan
        assert re.search(r"SEARCH (calls|usage|usage_days) USING|Index (Only )?Scan|Bitmap Index Scan", plan), plan


def explained(database: Database, read) -> list[str]:
    """How the database goes about each query of `read`. PostgreSQL would rather look at a few rows than at an index,
    so it is told that it must not."""
    plans = []
    engine = database._engine

    def explain(connection, cursor, statement, parameters, context, many) -> None:
        if statement.startswith("SELECT"):
            if database.dialect == "postgresql":
                cursor.execute("SET LOCAL enable_seqscan = off")
            word = "EXPLAIN QUERY PLAN " if database.dialect == "sqlite" else "EXPLAIN "
            cursor.execute(word + statement, parameters)
            plans.append("\n".join(str(row[-1]) for row in cursor.fetchall()))

    event.listen(engine, "before_cursor_execute", explain)
    try:
        read()
    finally:
        event.remove(engine, "before_cursor_execute", explain)
    return plans


@given(st.sampled_from(["Europe/Paris", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns", "Africa/Monrovia",
                        "Pacific/Chatham", "Pacific/Apia", "Antarctica/Troll", "UTC"]),
       st.sampled_from(["day", "week", "month"]), st.integers(946_684_800_000, 4_102_444_800_000))  # fmt: skip
def test_every_period_begins_with_a_quarter_hour(zone: str, window: str, now: int) -> None:
    """So the sums of a period are whole quarter hours, everywhere and since the year 2000."""
    period = Calendar(ZoneInfo(zone)).period(WINDOWS[window], now)
    assert period.start % QUARTER == period.end % QUARTER == 0
