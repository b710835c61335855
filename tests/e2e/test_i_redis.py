"""A Redis that dies, freezes, is slow, or comes back with nothing, under load: nobody waits, and the counters are right
afterwards."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.quotas import (
    LIMITS,
    SLACK,
    WAIT,
    Deploy,
    Deployment,
    Link,
    asking,
    good,
    meets,
    rows_of,
    statuses,
    timed,
)
from tests.e2e.upstream import upstream, url_of
from tests.e2e.wire import Answer, ask
from tests.programs import until
from tests.redis_server import RedisServer

MODES = ("local", "open", "closed")
TROUBLES = ("killed", "frozen")
LIMIT = 60
BACK = 5.0
"""Seconds until a store that is back is used again, as the issue promises."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    one = RedisServer()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def proxies(held: socket.socket, server: RedisServer, tmp_path_factory) -> Iterator[dict[str, Deployment]]:
    """One for each of `store.on_outage`, the first of them with two workers; each in a database of its own."""
    rules: dict[str, str] = {}
    for trouble in TROUBLES:
        rules |= {trouble: f"[requests: {LIMIT}/day]", f"{trouble}-money": "[spend: 1 USD/day]"}
        rules |= {f"{trouble}-free": "[]"}
    found = {}
    for at, mode in enumerate(MODES):
        options: dict[str, Any] = {
            "workers": 1 if at else 2,
            "on_outage": mode,
            "store": server.url.reveal()[:-1] + str(at),
        }
        found[mode] = Deployment(tmp_path_factory.mktemp(mode), url_of(held), rules, **options)
        found[mode].launch()
    for one in found.values():
        one.url = one.program.url()
    yield found
    for one in found.values():
        one.stop()


@dataclass
class Load:
    """Requests of one team, one after the other on connections of their own."""

    proxy: Deployment
    team: str
    answers: list[tuple[Answer, float, float]] = field(default_factory=list)
    """Each with when it began, and how long it took."""
    enough: bool = False

    async def run(self) -> None:
        while not self.enough:
            began = time.monotonic()
            answer = await ask(self.proxy.url, asking(self.team))
            self.answers.append((answer, began, time.monotonic() - began))
            await asyncio.sleep(0.02)

    def since(self, moment: float) -> list[Answer]:
        return [answer for answer, began, _ in self.answers if began >= moment]

    def seen(self, moment: float) -> Counter[int]:
        return Counter(answer.status for answer in self.since(moment))


@asynccontextmanager
async def loaded(proxies: dict[str, Deployment], team: str) -> AsyncIterator[dict[tuple[str, str], Load]]:
    """All proxies are busy for the three teams until the block ends."""
    names = [(mode, name) for mode in MODES for name in (team, f"{team}-money", f"{team}-free")]
    loads = {(mode, name): Load(proxies[mode], name) for mode, name in names}
    async with asyncio.TaskGroup() as group:
        for load in loads.values():
            group.create_task(load.run())
        yield loads
        for load in loads.values():
            load.enough = True


async def every(loads: dict[Any, Load], moment: float, count: int) -> None:
    """Each has had so many answers since."""

    async def least() -> bool:
        return min(len(load.since(moment)) for load in loads.values()) >= count

    await meets(least, True)


@pytest.mark.parametrize("trouble", ["killed", "frozen"])
async def test_i2_i3_i8_nobody_waits_and_nothing_is_lost(
    proxies: dict[str, Deployment], held: socket.socket, server: RedisServer, trouble: str
) -> None:
    async with upstream(held, good):
        async with loaded(proxies, trouble) as loads:
            await every(loads, 0, 5)
            await asyncio.to_thread(server.kill if trouble == "killed" else server.freeze)
            for one in proxies.values():
                await asyncio.to_thread(until, partial(all_gone, one), "all workers have noticed")
            known = time.monotonic()
            await every(loads, known, 12)
            during = {key: load.seen(known) for key, load in loads.items()}
            await asyncio.to_thread(server.restart if trouble == "killed" else server.cont)
            back = time.monotonic()
            for one in proxies.values():
                await asyncio.to_thread(until, partial(none_gone, one), "all workers have it back")
            await every({key: Back(load) for key, load in loads.items() if "money" in key[1]}, back, 5)
            recovered = time.monotonic() - back
        check(loads, during, trouble)
        assert recovered < BACK + SLACK
        for mode, one in proxies.items():
            await right(one, trouble, loads[mode, trouble].seen(0)[200])


class Back(Load):
    """Answers that were let in."""

    def __init__(self, load: Load) -> None:
        super().__init__(load.proxy, load.team, load.answers)

    def since(self, moment: float) -> list[Answer]:
        return [answer for answer in super().since(moment) if answer.status == 200]


def gone(one: Deployment) -> int:
    """How many workers have said that it is, and not that it is back."""
    last: dict[int, tuple[str, str]] = {}
    for line in [*one.program.logged("store_gone"), *one.program.logged("store_back")]:
        worker = line.get("worker", 1)
        last[worker] = max(last.get(worker, ("", "")), (line["time"], line["event"]))
    return sum(event == "store_gone" for _, event in last.values())


def all_gone(one: Deployment) -> bool:
    return gone(one) == one.options["workers"]


def none_gone(one: Deployment) -> bool:
    return gone(one) == 0


def check(loads: dict[tuple[str, str], Load], during: dict[tuple[str, str], Counter[int]], team: str) -> None:
    for (mode, name), load in loads.items():
        assert max(took for _, _, took in load.answers) < WAIT + SLACK, (mode, name)
        assert set(load.seen(0)) <= {200, 429, 503}, (mode, name)
        for answer in load.since(0):
            if answer.status == 503:
                assert answer.error()["code"] == "store_unavailable"
        assert set(load.seen(0)) == {200} or "-free" not in name
    for mode in MODES:
        assert set(during[mode, f"{team}-money"]) == {503}
    assert set(during["closed", team]) == {503}
    assert set(during["open", team]) == {200}
    assert during["local", team][200]


async def right(one: Deployment, team: str, used: int) -> None:
    """As much is let in as the ledger says that is left. What was taken back or is settled late is free again soon."""
    await rows_of(one.book, team, used)
    left, let_in = max(0, LIMIT - used), 0

    async def more() -> bool:
        nonlocal let_in
        let_in += (await statuses(one.url, [asking(team)] * (LIMIT + 10))).count(200)
        return let_in >= left

    await meets(more, True)
    assert let_in <= left, (one.options["on_outage"], let_in, left)
    assert set(await statuses(one.url, [asking(team)] * 20)) == {429}


async def test_i4_i5_g9_a_redis_that_is_slow_and_answers_that_are_lost(
    deploy: Deploy, held: socket.socket, server: RedisServer, ends: ExitStack
) -> None:
    """A little slow is only slow, and counted once; too slow is as good as gone; and so is one that was asked in vain,
    which may have done what it was asked."""
    link = Link(server.port)
    ends.callback(link.close)
    url = f"{link.relay.url.reveal()[:-1]}5"
    rules = {"red": LIMITS, "warm": "[requests: 1000/hour]", "lost": f"[requests: {LIMIT}/day, concurrency: 2]"}
    one = deploy(url_of(held), rules, store=url, on_outage="closed")
    async with upstream(held, good):
        assert await statuses(one.url, [asking("red"), asking("warm"), asking("lost")]) == [200] * 3
        link.relay.delay = 0.02
        assert await statuses(one.url, [asking("warm")] * 5) == [200] * 5
        for _ in range(3):
            assert (await ask(one.url, asking("red"))).status == 200
        await one.settled("red", await rows_of(one.book, "red", 4))
        for way in ("delay", "drop"):
            setattr(link.relay, way, 10.0 if way == "delay" else True)
            found = await asyncio.gather(*(timed(one.url, asking("lost")) for _ in range(20)))
            assert {answer.status for answer, _ in found} == {503}
            assert max(took for _, took in found) < WAIT + SLACK
            setattr(link.relay, way, 0)

            async def again() -> int:
                return (await ask(one.url, asking("warm"))).status

            began = time.monotonic()
            await meets(again, 200)
            assert time.monotonic() - began < BACK + SLACK
        await right(one, "lost", 1)


async def test_i1_a_redis_that_is_not_there_at_the_start(deploy: Deploy, held: socket.socket, ends: ExitStack) -> None:
    later = RedisServer()
    ends.callback(later.stop)
    later.kill()
    rules = {"red": LIMITS, "free": "[]", "requests": "[requests: 10/day]"}
    one = deploy(url_of(held), rules, workers=2, store=later.url.reveal())
    async with upstream(held, good):
        for team, status in (("red", 503), ("requests", 503), ("free", 200)):
            found, took = await timed(one.url, asking(team))
            assert (found.status, took < WAIT + SLACK) == (status, True)
        await asyncio.to_thread(later.restart)
        back = time.monotonic()

        async def both_let_in() -> bool:  # by whichever worker: the other one may still look for it
            return await statuses(one.url, [asking("red"), asking("requests")]) == [200] * 2

        await meets(both_let_in, True)
        assert time.monotonic() - back < BACK + SLACK


def test_i6_a_redis_that_may_throw_counters_away_is_refused(tmp_path: Path, ends: ExitStack) -> None:
    server = RedisServer(maxmemory="50mb", **{"maxmemory-policy": "allkeys-lru"})
    ends.callback(server.stop)
    one = Deployment(tmp_path, "http://127.0.0.1:9", {"red": LIMITS}, store=server.url.reveal(), workers=2)
    one.launch()
    assert one.program.ended() == 2
    assert "allkeys-lru" in one.program.everything()
    assert "noeviction" in one.program.everything()


async def test_i10_two_databases_of_one_redis_are_two(deploy: Deploy, held: socket.socket, server: RedisServer) -> None:
    """Two deployments that share neither ledger nor teams may share a server, each with a number of its own."""
    rules = {"red": "[requests: 1/day]"}
    first = deploy(url_of(held), rules, store=f"{server.url.reveal()[:-1]}6", folder="first")
    second = deploy(url_of(held), rules, store=f"{server.url.reveal()[:-1]}7", folder="second")
    async with upstream(held, good):
        for one in (first, second):
            assert await statuses(one.url, [asking("red")]) == [200]
            assert await statuses(one.url, [asking("red")]) == [429]
