"""What happens to the ledger when its database or its disk fails it, for real where that can be done."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from proxy.core.ledger import LedgerFull
from proxy.core.quota import StoreGone
from proxy.store.database import Database
from proxy.store.ledger.batch import MOST_AT_ONCE
from proxy.store.ledger.commit import Committer
from proxy.store.ledger.recovery import Recovery
from proxy.store.ledger.retention import Retention
from proxy.store.ledger.store import LedgerStore
from tests.postgres_server import PostgresServer
from tests.programs import PATIENCE, until
from tests.store.conftest import Connect
from tests.store.ledgers import Lines, calls, consistent, intent, ledger, locked, outcome


async def written(store: LedgerStore) -> None:
    await asyncio.to_thread(until, lambda: not store.backlog.rows and not store.backlog.gone, "the rows are written")


def traffic(store: LedgerStore, first: int, after: int) -> None:
    for n in range(first, after):
        store.open(intent(n))
        if n % 2:
            store.close(outcome(n))


def ends(store: LedgerStore, after: int) -> None:
    for n in range(0, after, 2):
        store.close(outcome(n))


async def all_settled(database: Database, count: int) -> None:
    assert [row["status"] for row in await calls(database)] == ["settled"] * count
    await consistent(database)


async def test_locked_by_another_process_for_a_while(database: Database, tmp_path: Path) -> None:
    log = Lines()
    async with ledger(database, tmp_path / "journal", log=log) as store:
        await store.flush(PATIENCE)
        with locked(database):
            traffic(store, 0, 100)
            with pytest.raises(StoreGone):
                await store.flush(0.05)
            await asyncio.to_thread(until, lambda: store.backlog.gone, "it is noticed")
            traffic(store, 100, 200)
            assert store.backlog.rows == 300
        await written(store)
        ends(store, 200)
        await store.flush(PATIENCE)
    assert log.events() == ["ledger_gone", "ledger_back"]
    await all_settled(database, 200)


@pytest.fixture
def in_a_file(tmp_path: Path, connect: Connect) -> Database:
    return connect(f"sqlite:///{tmp_path}/ledger.db")


def moved(folder: Path, name: str, to: str) -> None:
    for end in ("", "-wal", "-shm"):
        if (folder / f"{name}{end}").exists():
            (folder / f"{name}{end}").rename(folder / f"{to}{end}")


async def test_a_file_that_is_moved_away_and_put_back(in_a_file: Database, tmp_path: Path) -> None:
    log = Lines()
    async with ledger(in_a_file, tmp_path / "journal", log=log) as store:
        traffic(store, 0, 100)
        await store.flush(PATIENCE)
        await asyncio.to_thread(moved, tmp_path, "ledger.db", "backup.db")
        traffic(store, 100, 200)
        with pytest.raises(StoreGone, match="put it back, or restart"):
            await store.flush(PATIENCE)
        assert not await asyncio.to_thread((tmp_path / "ledger.db").exists)
        traffic(store, 200, 300)
        await asyncio.to_thread(moved, tmp_path, "backup.db", "ledger.db")
        await written(store)
        ends(store, 300)
        await store.flush(PATIENCE)
    assert log.events() == ["ledger_gone", "ledger_back"]
    await all_settled(in_a_file, 300)


async def test_another_file_in_its_place_is_the_ledger_from_then_on(in_a_file: Database, tmp_path: Path) -> None:
    """Be it empty: what is open then ends in the new one, and what was written before is in the old one."""
    log = Lines()
    async with ledger(in_a_file, tmp_path / "journal", log=log) as store:
        traffic(store, 0, 100)
        await store.flush(PATIENCE)
        await asyncio.to_thread(moved, tmp_path, "ledger.db", "old.db")
        await asyncio.to_thread((tmp_path / "ledger.db").touch)
        traffic(store, 100, 200)
        await store.flush(PATIENCE)
        ends(store, 200)
        await store.flush(PATIENCE)
    assert log.events() == ["ledger_replaced"]
    await all_settled(in_a_file, 50 + 100)


async def test_what_was_written_last_is_not_read_into_another_ledger(in_a_file: Database, tmp_path: Path) -> None:
    """Who replaces the file alone leaves its write-ahead log behind, which SQLite would write over the new one."""

    def put(name: str, to: str) -> None:
        os.replace(tmp_path / name, tmp_path / to)

    log = Lines()
    async with ledger(in_a_file, tmp_path / "journal", log=log) as store:
        traffic(store, 0, 100)
        await store.flush(PATIENCE)
        await asyncio.to_thread(backup_of, tmp_path / "ledger.db", tmp_path / "backup.db")
        traffic(store, 100, 200)
        await store.flush(PATIENCE)
        await asyncio.to_thread(put, "ledger.db", "old.db")
        await asyncio.to_thread(put, "backup.db", "ledger.db")
        traffic(store, 200, 300)
        with pytest.raises(StoreGone, match=r"ledger\.db-wal belongs to the file that .*: move it along"):
            await store.flush(PATIENCE)
        await asyncio.to_thread(put, "ledger.db-wal", "old.db-wal")
        await asyncio.to_thread((tmp_path / "ledger.db-shm").unlink)
        await written(store)
        assert len(await calls(in_a_file)) == 200
    assert log.events() == ["ledger_gone", "ledger_replaced", "ledger_back"]
    assert await asyncio.to_thread(rows_in, tmp_path / "old.db") == 200


def backup_of(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


def rows_in(file: Path) -> int:
    with closing(sqlite3.connect(file)) as one:
        count: int = one.execute("SELECT count(*) FROM calls").fetchone()[0]
    return count


async def test_a_server_that_is_killed_and_comes_back(
    postgres: PostgresServer, connect: Connect, tmp_path: Path
) -> None:
    database, log = connect(postgres.fresh()), Lines()
    async with ledger(database, tmp_path / "journal", log=log) as store:
        traffic(store, 0, 100)
        await store.flush(PATIENCE)
        await asyncio.to_thread(postgres.kill)
        traffic(store, 100, 200)
        with pytest.raises(StoreGone):
            await store.flush(PATIENCE)
        traffic(store, 200, 300)
        await asyncio.to_thread(postgres.start)
        await written(store)
        ends(store, 300)
        await store.flush(PATIENCE)
    assert log.events() == ["ledger_gone", "ledger_back"]
    await all_settled(database, 300)


async def test_a_server_that_is_down_at_the_start(postgres: PostgresServer, connect: Connect, tmp_path: Path) -> None:
    database = connect(postgres.fresh())
    await asyncio.to_thread(postgres.kill)
    async with ledger(database, tmp_path / "journal") as store:
        traffic(store, 0, 100)
        ends(store, 100)
        with pytest.raises(StoreGone):
            await store.flush(PATIENCE)
        await asyncio.to_thread(postgres.start)
        await written(store)
    await all_settled(database, 100)


async def test_a_server_that_freezes_and_thaws(postgres: PostgresServer, connect: Connect, tmp_path: Path) -> None:
    database = connect(postgres.fresh())
    async with ledger(database, tmp_path / "journal") as store:
        traffic(store, 0, 100)
        await store.flush(PATIENCE)
        with postgres.frozen():
            traffic(store, 100, 200)
            with pytest.raises(StoreGone):
                await store.flush(0.2)
            await asyncio.to_thread(until, lambda: store.backlog.gone, "it is noticed")
            traffic(store, 200, 300)
        await written(store)
        ends(store, 300)
        await store.flush(PATIENCE)
    await all_settled(database, 300)


async def test_sessions_that_are_ended_all_the_time(postgres: PostgresServer, connect: Connect, tmp_path: Path) -> None:
    url = postgres.fresh()
    database = connect(url)
    async with ledger(database, tmp_path / "journal") as store:
        for n in range(0, 600, 20):
            traffic(store, n, n + 20)
            await asyncio.to_thread(postgres.disconnect, url.rpartition("/")[2])
        await written(store)
        ends(store, 600)
        await written(store)
    await all_settled(database, 600)


async def test_a_commit_whose_reply_is_lost_counts_once(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was done, and we are told that it was not: every second time, whatever it was."""
    dialect: Any = database._engine.dialect
    commit, count = dialect.do_commit, 0

    def lose(connection: Any) -> None:
        nonlocal count
        commit(connection)
        count += 1
        if count % 2:
            raise dialect.loaded_dbapi.OperationalError("the reply is lost")

    monkeypatch.setattr(dialect, "do_commit", lose)
    log = Lines()
    async with ledger(database, tmp_path / "journal", log=log) as store:
        for n in range(0, 200, 20):
            traffic(store, n, n + 20)
            await written(store)
        ends(store, 200)
        await written(store)
        monkeypatch.undo()
    assert "ledger_gone" in log.events()
    await all_settled(database, 200)


# What nobody has thought of, and more work than there is time for.


class Fault:
    """In place of a method: raises as a process does that has too many files open, until it is told not to."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        real = getattr(owner, name)
        self.there, self.calls = True, 0

        def method(*arguments: Any) -> Any:
            self.calls += 1
            if self.there:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/a/secret/place")
            return real(*arguments)

        patch.setattr(owner, name, method)


async def test_the_thread_outlives_whatever_is_raised(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, log = Fault(monkeypatch, Recovery, "estates"), Lines()
    async with ledger(database, tmp_path / "journal", log=log) as store:
        traffic(store, 0, 100)
        with pytest.raises(StoreGone, match="OSError in "):
            await store.flush(PATIENCE)
        await asyncio.to_thread(until, lambda: fault.calls > 2, "it is tried again")
        fault.there = False
        await written(store)
        ends(store, 100)
        await store.flush(PATIENCE)
    assert log.events() == ["ledger_gone", "ledger_back"]
    assert "secret" not in str(log.lines)
    await all_settled(database, 100)


async def test_a_round_that_fails_is_not_the_last_one(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.store.ledger.writer.ROUND", 0.01)
    log = Lines()
    async with ledger(database, tmp_path / "journal", log=log) as store:
        await store.flush(PATIENCE)
        fault = Fault(monkeypatch, Retention, "step")
        await asyncio.to_thread(until, lambda: fault.calls > 2, "it is tried again")
        traffic(store, 0, 10)
        await store.flush(PATIENCE)
        fault.there = False
        await asyncio.to_thread(until, lambda: "ledger_round_done" in log.events(), "it has gone well")
        ends(store, 10)
    assert log.events() == ["ledger_round_failed", "ledger_round_done"]
    await all_settled(database, 10)


async def test_a_journal_stays_that_could_not_be_written(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        async with ledger(database, tmp_path / "journal") as store:
            await store.flush(PATIENCE)
            Fault(patch, Committer, "commit")
            traffic(store, 0, 100)
            ends(store, 100)
            assert not await store.close_down()
            assert not await store.close_down()
    assert await calls(database) == []
    async with ledger(database, tmp_path / "journal", "ff00ff00ff00ff00") as store:
        await store.flush(PATIENCE)
    await all_settled(database, 100)


async def test_a_folder_that_somebody_has_removed(database: Database, tmp_path: Path) -> None:
    """What is mapped into memory is there nevertheless."""
    async with ledger(database, tmp_path / "journal") as store:
        await store.flush(PATIENCE)
        for path in (tmp_path / "journal").rglob("*"):
            path.unlink() if path.is_file() else None
        (tmp_path / "journal" / store._owner).rmdir()
        (tmp_path / "journal").rmdir()
        traffic(store, 0, 10)
        ends(store, 10)
        assert await store.close_down()
    await all_settled(database, 10)


@pytest.mark.parametrize("meanwhile", [1, MOST_AT_ONCE])
async def test_under_load_a_flush_ends_and_rounds_are_made(
    meanwhile: int, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction finds what came during the last one."""
    rounds, transactions, real = Fault(monkeypatch, Recovery, "orphans"), 0, Committer.commit
    rounds.there = False
    async with ledger(database, tmp_path / "journal") as store:
        await store.flush(PATIENCE)
        store._writer._next_round = 0.0
        before = rounds.calls

        def commit(committer: Committer, rows: Any) -> int:
            nonlocal transactions
            transactions += 1
            if rows and transactions < 60 and rounds.calls == before:
                for n in range(transactions * MOST_AT_ONCE, transactions * MOST_AT_ONCE + meanwhile):
                    _open(store, n)
            return real(committer, rows)

        monkeypatch.setattr(Committer, "commit", commit)
        for n in range(MOST_AT_ONCE + 1):
            store.open(intent(n, "other"))
        await store.flush(20)
        seen = transactions
        rows = [row for row in await calls(database) if row["call"].startswith("other-")]
        await asyncio.to_thread(until, lambda: rounds.calls > before, "a round is made")
    assert len(rows) == MOST_AT_ONCE + 1
    assert seen < 10
    assert transactions < 60


def _open(store: LedgerStore, n: int) -> None:
    """As the loop does while a transaction lasts."""
    with suppress(LedgerFull):
        store.open(intent(n))


async def test_what_was_tried_before_is_not_all(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is tried again as it was: what came since is another one, and who asks since waits for both."""
    async with ledger(database, tmp_path / "journal") as store:
        await store.flush(PATIENCE)
        fault = Fault(monkeypatch, Committer, "commit")
        traffic(store, 0, 10)
        with pytest.raises(StoreGone):
            await store.flush(PATIENCE)
        traffic(store, 10, 20)
        fault.there = False
        await store.flush(PATIENCE)
        assert len(await calls(database)) == 20
        ends(store, 20)
    await all_settled(database, 20)


# A disk that is full: a file system of our own, which grows when it is told to.


class Disk:
    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True, capture_output=True)

    def grow(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)

    def remove(self) -> None:
        subprocess.run(["umount", "--lazy", self.path], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """3 MB."""
    try:
        disk = Disk(tmp_path / "disk", 3 << 20)
    except (subprocess.CalledProcessError, OSError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"needs to mount a file system: {error}")
    yield disk
    disk.remove()


async def test_a_full_disk_of_the_database(disk: Disk, connect: Connect, tmp_path: Path) -> None:
    database, log = await asyncio.to_thread(connect, f"sqlite:///{disk.path}/ledger.db"), Lines()
    async with ledger(database, tmp_path / "journal", log=log) as store:
        await store.flush(PATIENCE)
        count = 0
        while not store.backlog.gone:
            traffic(store, count, count + 200)
            count += 200
            await asyncio.sleep(0.002)  # a disk gives some 100,000 calls a second their room
        traffic(store, count, count + 200)
        count += 200
        with pytest.raises(StoreGone):
            await store.flush(PATIENCE)
        await asyncio.to_thread(disk.grow, 64 << 20)
        await written(store)
        ends(store, count)
        await store.flush(20)
    assert log.events() == ["ledger_gone", "ledger_back"]
    assert "full" in log.lines[0][1]["reason"]
    await all_settled(database, count)


async def test_a_full_disk_of_the_journal(disk: Disk, database: Database, tmp_path: Path) -> None:
    """There is room for three segments, less what the file system needs for itself."""
    log = Lines()
    async with ledger(database, disk.path / "journal", log=log) as store:
        await store.flush(PATIENCE)
        with locked(database):
            count = 0
            while store._journal.shortage != "No space left on device" or not store.backlog.full:
                try:
                    store.open(intent(count))
                    count += 1
                except LedgerFull:
                    await asyncio.sleep(0.001)
            assert store.backlog.full
            for n in range(count):
                store.close(outcome(n))
        await asyncio.to_thread(until, lambda: not store.backlog.rows, "the database takes what the journal could not")
        await asyncio.to_thread(disk.grow, 64 << 20)
        store.open(intent(count))
        store.close(outcome(count))
        await store.flush(20)
        assert not store.backlog.full
    assert log.events(but=("ledger_gone", "ledger_back"))[:2] == ["ledger_full", "ledger_has_room"]
    await all_settled(database, count + 1)
