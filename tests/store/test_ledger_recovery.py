from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from proxy.store.database import Database, DatabaseGone
from proxy.store.ledger.batch import encode
from proxy.store.ledger.commit import Committer
from proxy.store.ledger.journal import Journal, owners
from proxy.store.ledger.recovery import ORPHANED, Recovery
from proxy.store.ledger.rows import PROCESS_DIED, opened
from tests.programs import PATIENCE, until
from tests.store.ledgers import (
    NOW,
    Clock,
    Lines,
    calls,
    check_consistent,
    consistent,
    intent,
    ledger,
    locked,
    outcome,
    read_calls,
)

KILLS = 40 if os.environ.get("CI") else 12


def dead(directory: Path, owner: str, *records: bytes, read: int = 0) -> None:
    """The journal of a process that was killed after the database had `read` of its records."""
    journal = Journal(directory, owner, 4)
    for record in records:
        assert journal.append(record)
    if read:
        journal.read(read)
        journal.committed()
    journal.release(empty=False)


def recovery(database: Database, directory: Path, *, now: int = NOW, log: Lines | None = None) -> Recovery:
    clock = Clock()
    clock.now = now
    return Recovery(Committer(database), directory, log or Lines(), clock, ORPHANED)


async def test_a_call_of_a_dead_process_ends_at_the_most_it_can_have_cost(database: Database, tmp_path: Path) -> None:
    await asyncio.to_thread(
        dead, tmp_path, "dead", encode(intent(1, "dead")), encode(intent(2, "dead")), encode(outcome(2, "dead"))
    )
    async with ledger(database, tmp_path) as store:
        await store.flush(PATIENCE)
        first, second = await calls(database)
        assert "dead" not in os.listdir(tmp_path)
    assert (first["status"], first["error"], first["estimated"]) == ("cancelled", PROCESS_DIED, True)
    assert (first["prompt"], first["completion"], first["cost"]) == (100, 1_000, 330_000)
    assert (second["status"], second["cost"]) == ("settled", 21_802)
    await consistent(database)


async def test_calls_that_the_database_has_already(database: Database, tmp_path: Path) -> None:
    """Their intents are in no journal any more: one ends in it, of the other one nothing was heard again."""
    committer = Committer(database)
    await asyncio.to_thread(committer.commit, [opened(intent(n, "dead")) for n in (1, 2)])
    records = [encode(one) for one in (intent(1, "dead"), intent(2, "dead"), outcome(1, "dead"))]
    await asyncio.to_thread(dead, tmp_path, "dead", *records, read=2)
    await asyncio.to_thread(recovery(database, tmp_path).estates)
    assert [(row["status"], row["cost"]) for row in await calls(database)] == [
        ("settled", 21_801),
        ("cancelled", 330_000),
    ]
    await consistent(database)


async def test_the_living_are_let_alone(database: Database, tmp_path: Path) -> None:
    async with ledger(database, tmp_path, "living") as store:
        store.open(intent(1, "living"))
        await store.flush(PATIENCE)
        one = recovery(database, tmp_path, now=NOW + 2 * ORPHANED)
        await asyncio.to_thread(one.estates)
        await asyncio.to_thread(one.orphans)
        assert [row["status"] for row in await calls(database)] == ["open"]
        store.close(outcome(1, "living"))


async def test_many_that_recover_at_once_do_it_once(database: Database, tmp_path: Path) -> None:
    for owner in ("a", "b", "c"):
        records = [encode(one) for n in range(50) for one in (intent(n, owner), outcome(n, owner))]
        await asyncio.to_thread(dead, tmp_path, owner, *records, encode(intent(99, owner)))

    def recover() -> None:
        with ThreadPoolExecutor(6) as threads:
            log = Lines()
            list(threads.map(lambda one: one.estates(), [recovery(database, tmp_path, log=log) for _ in range(6)]))
            assert sorted(fields["owner"] for event, fields in log.lines) == ["a", "b", "c"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recovery, "estates", _patiently(Recovery.estates))
        await asyncio.to_thread(recover)
    assert len(await calls(database)) == 153
    await consistent(database)


def _patiently(estates):
    """Six threads share two connections."""

    def attempt(one: Recovery) -> None:
        for _ in range(100):
            with suppress(DatabaseGone):
                estates(one)
                return
        raise AssertionError

    return attempt


async def test_a_journal_stays_until_the_database_has_it(database: Database, tmp_path: Path) -> None:
    await asyncio.to_thread(dead, tmp_path, "dead", encode(intent(1, "dead")))
    with locked(database):
        with pytest.raises(DatabaseGone):
            await asyncio.to_thread(recovery(database, tmp_path).estates)
    assert "dead" in os.listdir(tmp_path)
    await asyncio.to_thread(recovery(database, tmp_path).estates)
    assert [row["status"] for row in await calls(database)] == ["cancelled"]


async def test_a_journal_of_another_version_is_left_alone(database: Database, tmp_path: Path) -> None:
    await asyncio.to_thread(dead, tmp_path, "dead", encode(intent(1, "dead")))
    segment = tmp_path / "dead/00000001"
    segment.write_bytes(b"mpledger\x00\x00\x00\x09" + segment.read_bytes()[12:])
    log = Lines()
    await asyncio.to_thread(recovery(database, tmp_path, log=log).estates)
    assert log.events() == ["ledger_foreign_journal"]
    assert "dead" in os.listdir(tmp_path)


async def test_damage_is_told_and_the_rest_is_kept(database: Database, tmp_path: Path) -> None:
    await asyncio.to_thread(
        dead, tmp_path, "dead", encode(intent(1, "dead")), b"\xc1 no record", encode(outcome(1, "dead"))
    )
    log = Lines()
    await asyncio.to_thread(recovery(database, tmp_path, log=log).estates)
    assert log.lines == [("ledger_recovered", {"owner": "dead", "rows": 1, "died": 0, "damaged": 1})]
    assert [row["status"] for row in await calls(database)] == ["settled"]


@pytest.mark.parametrize(("age", "status"), [(ORPHANED, "open"), (ORPHANED + 1, "cancelled")])
async def test_calls_of_a_machine_that_is_gone(age: int, status: str, database: Database, tmp_path: Path) -> None:
    await asyncio.to_thread(Committer(database).commit, [opened(intent(1, "elsewhere"))])
    await asyncio.to_thread(recovery(database, tmp_path, now=NOW + age).orphans)
    assert [row["status"] for row in await calls(database)] == [status]
    await consistent(database)


async def test_how_old_they_must_be_is_for_who_knows_how_long_a_call_may_last(
    database: Database, tmp_path: Path
) -> None:
    old = [intent(n, "elsewhere", opened=NOW - age) for n, age in enumerate((2 * ORPHANED, 2 * ORPHANED + 1))]
    await asyncio.to_thread(Committer(database).commit, [opened(one) for one in old])
    async with ledger(database, tmp_path, orphaned=2 * ORPHANED, log=(log := Lines())):
        await asyncio.to_thread(until, lambda: "ledger_orphans" in log.events(), "a round is made")
        assert [row["status"] for row in await calls(database)] == ["open", "cancelled"]


def test_every_row_that_was_acknowledged_outlives_kill_9(database: Database, url: str, tmp_path: Path) -> None:
    """Each process finds what its predecessor has left, and is killed at any moment: while it recovers, while it
    writes, while it has not even begun."""
    dice = random.Random(4)
    said: dict[str, str] = {}
    for n in range(KILLS):
        owner = f"process{n}"
        said |= acknowledged(url, tmp_path / "journal", owner, dice.choice((0, 1, 30, 300, 1_000, 3_000)))
    recovery(database, tmp_path / "journal").estates()
    rows = {row["call"]: row for row in read_calls(database)}
    assert len(said) > 20 * KILLS
    for call, last in said.items():
        row = rows[call]
        assert row["status"] != "open"
        if last == "c":
            assert row["status"] in ("settled", "failed")
            assert row["cost"] == 21_800 + int(call.split("-")[1])
        # The process may have ended one, and died before it said so.
        assert row["error"] in (None, PROCESS_DIED)
    assert not [row for row in rows.values() if row["status"] == "open"]
    assert owners(tmp_path / "journal") == set()
    check_consistent(database)


def acknowledged(url: str, directory: Path, owner: str, after: int) -> dict[str, str]:
    """What a process says of each call, last, that is killed once it has said so much."""
    command = [sys.executable, "-m", "tests.store.ledger_writer", url, str(directory), owner]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(after)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    pairs = [line.split() for line in lines]
    assert len(pairs) >= after
    return {f"{owner}-{n}": what for what, n in pairs}
