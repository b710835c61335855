"""A database that is locked, full, dead or strange: no request waits for it, and no row is lost or there twice."""

from __future__ import annotations

import asyncio
import resource
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from pathlib import Path

import psycopg
import pytest

from tests.e2e.quotas import (
    LIMITS,
    SLACK,
    Deploy,
    Deployment,
    Holding,
    Link,
    asking,
    good,
    meets,
    port_of,
    rows_of,
    statuses,
)
from tests.e2e.upstream import upstream, url_of
from tests.e2e.wire import Answer, Connection, ask, connect
from tests.postgres_server import PostgresServer
from tests.programs import PATIENCE, until

LONG = "m" * 256
"""The name of a model: the longest there is, so that a journal is full soon."""

SMALL = """\
from proxy.store.ledger import segment

segment.SEGMENT = 1 << 18
"""
"""Imported by Python itself as the proxy starts: for the same reason."""


@pytest.fixture(scope="module")
def place(held: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One for tests that do it no harm."""
    one = Deployment(tmp_path_factory.mktemp("place"), url_of(held), {"free": "[]"}).start()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    one = PostgresServer()
    yield one
    one.remove()


class Load:
    """Requests of one team, one after the other, until it is told to stop."""

    def __init__(self, url: str, team: str) -> None:
        self._url, self._team = url, team
        self.stopped = False
        self.answers: list[tuple[Answer, float]] = []

    async def run(self) -> None:
        while not self.stopped:
            began = time.monotonic()
            found = await ask(self._url, asking(self._team))
            self.answers.append((found, time.monotonic() - began))
            await asyncio.sleep(0.01)

    async def more(self, count: int) -> None:
        """So many from here on."""
        target = len(self.answers) + count

        async def reached() -> bool:
            return len(self.answers) >= target

        await meets(reached, True)


@asynccontextmanager
async def loaded(one: Deployment, team: str) -> AsyncIterator[Load]:
    """Afterwards all have been answered at once, and each has its row."""
    load = Load(one.url, team)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await load.more(5)
        yield load
        load.stopped = True
    assert {found.status for found, _ in load.answers} == {200}
    assert max(took for _, took in load.answers) < SLACK
    rows = await rows_of(one.book, team, len(load.answers))
    assert {row.status for row in rows} == {"settled"}
    assert await asyncio.to_thread(sums, one.book.url, team) == (len(rows), sum(row.cost or 0 for row in rows))
    await one.settled(team, rows)


def sums(url: str, team: str) -> tuple[int, int]:
    """Requests and money of a team, from the sums by quarter of an hour."""
    query = f"SELECT sum(requests), sum(cost) FROM usage WHERE team = '{team}'"
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            found = connection.execute(query).fetchone()
    else:
        with psycopg.connect(url) as server:
            found = server.execute(query.encode()).fetchone() or (0, 0)
    return int(found[0]), int(found[1])


async def logged(one: Deployment, event: str, count: int = 1) -> None:
    await asyncio.to_thread(until, lambda: len(one.program.logged(event)) >= count, f"{event} × {count}")


async def test_j2_nobody_waits_for_a_database_that_somebody_has_locked(deploy: Deploy, held: socket.socket) -> None:
    one = deploy(url_of(held), {"red": LIMITS})
    async with upstream(held, good), loaded(one, "red") as load:
        with closing(sqlite3.connect(one.book.url.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await logged(one, "ledger_gone")
            await load.more(10)
            other.execute("ROLLBACK")
        await logged(one, "ledger_back")


async def test_j5_j6_nobody_waits_for_a_postgresql_that_is_killed_or_whose_answers_are_lost(
    deploy: Deploy, held: socket.socket, postgres: PostgresServer, ends: ExitStack
) -> None:
    url = postgres.fresh()
    link = Link(port_of(url))
    ends.callback(link.close)
    ledger = url.replace(f":{port_of(url)}/", f":{link.relay.port}/")
    one = deploy(url_of(held), {"red": LIMITS}, ledger=ledger)
    one.book.url = url
    async with upstream(held, good), loaded(one, "red") as load:
        link.relay.drop = True
        await logged(one, "ledger_gone")
        await load.more(10)
        link.relay.drop = False
        await logged(one, "ledger_back")
        await asyncio.to_thread(postgres.kill)
        await logged(one, "ledger_gone", 2)
        await load.more(10)
        await asyncio.to_thread(postgres.start)
        await logged(one, "ledger_back", 2)


async def fill(client: Connection, found: Counter[int], enough: int) -> None:
    """Requests with long names, until so many were refused."""
    while found[503] < enough:
        await client.send(asking("free", model=LONG))
        answer = await client.answer()
        assert answer.status in (200, 503), answer.body
        found[answer.status] += 1
        if answer.status == 503:
            assert answer.error()["code"] == "store_unavailable"


async def test_j3_a_full_disk(deploy: Deploy, held: socket.socket, tmp_path: Path) -> None:
    """Nothing is let in that could not be written down; what is under way ends, and all goes on when there is room."""
    (tmp_path / "sitecustomize.py").write_text(SMALL)
    one = deploy(url_of(held), {"red": LIMITS, "free": "[]"}, env={"PYTHONPATH": str(tmp_path)})
    pid, unlimited = one.program.process.pid, resource.RLIM_INFINITY
    found: Counter[int] = Counter()
    async with upstream(held, slots := Holding()), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(one.url)) for _ in range(16)]
        streaming = await stack.enter_async_context(connect(one.url))
        await streaming.send(asking("red", "hold", stream=True))
        await slots.holds(1)
        await rows_of(one.book, "free", 0)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1024, unlimited))
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(fill(client, found, 50) for client in clients))
        assert set(found) == {200, 503}
        slots.released.set()
        assert (await streaming.answer()).body.endswith(b"data: [DONE]\n\n")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))

        async def again() -> int:
            return (await ask(one.url, asking("red"))).status

        await meets(again, 200)
        assert [row.status for row in await rows_of(one.book, "free", found[200])] == ["settled"] * found[200]
        await one.settled("red", await rows_of(one.book, "red", 2))
    with closing(sqlite3.connect(one.book.url.removeprefix("sqlite:///"))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_j7_a_database_of_a_newer_version_is_refused_and_left_alone(deploy: Deploy, held: socket.socket) -> None:
    one = deploy(url_of(held), {"red": LIMITS})
    await asyncio.to_thread(one.stop)
    with closing(sqlite3.connect(one.book.url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET version = 999")
        one.launch()
        assert await asyncio.to_thread(one.program.ended) == 2
        assert "newer" in one.program.everything()
        assert connection.execute("SELECT version FROM meta").fetchone() == (999,)


async def test_j7_two_that_start_at_once_on_an_empty_database(
    tmp_path: Path, held: socket.socket, postgres: PostgresServer, ends: ExitStack
) -> None:
    url = postgres.fresh()
    both = [Deployment(tmp_path / name, url_of(held), {name: LIMITS}, ledger=url) for name in ("red", "blue")]
    for one in both:
        one.launch()
        ends.callback(one.stop)
    async with upstream(held, good):
        for one, team in zip(both, ("red", "blue"), strict=True):
            one.url = await asyncio.to_thread(one.program.url)
            assert await statuses(one.url, [asking(team)] * 2) == [200, 200]
            await one.settled(team, await rows_of(one.book, team, 2))


@pytest.mark.parametrize("name", ["';DROP(TABLE)calls;--", '"x"OR"1"="1"', "%s%(a)s?:b{0}"])
async def test_j10_a_name_is_never_a_part_of_a_statement(place: Deployment, held: socket.socket, name: str) -> None:
    async with upstream(held, good):
        assert (await ask(place.url, asking("free", model=name, mark="of-a-name"))).status == 200

    async def written() -> list[str | None]:
        return [row.model_asked for row in place.book.rows("free") if row.model_asked == name and row.ended]

    await meets(written, [name])


async def test_without_a_ledger_no_folder_is_needed_and_limits_hold(deploy: Deploy, held: socket.socket) -> None:
    nowhere = "/dev/null/nowhere"
    one = deploy(url_of(held), {"red": "[requests: 2/day]"}, ledger="off", env={"XDG_STATE_HOME": nowhere})
    async with upstream(held, good):
        assert sorted(await statuses(one.url, [asking("red")] * 5)) == [200, 200, 429, 429, 429]
