"""The soak with little time: that it sees what is left behind and what is wrong, and nothing where nothing is."""

import asyncio
import random
import re
import sys
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bench import crowd, mischief, moody, soak, watch
from bench.load import Route
from bench.settling import Patience, leftovers
from bench.soaked import Log


@pytest.fixture
def anyio_backend():
    return "asyncio", {"use_uvloop": True}


BRIEF = "from proxy.upstream import pool; pool.KEEP_IDLE = 0.5\n"
LEAK = "pool.Pool.leave = lambda self, connection, *, failed=False: self._places.give()\n"
START = "from proxy.cli import main; main()"


def plan(code, **options):
    """A soak of two seconds with a proxy that keeps idle connections only for a moment, and begins with this code."""
    usual: dict[str, Any] = {"minutes": 1 / 30, "every": 0.5, "reload": 0.5, "patience": Patience(all=8.0, idle=8.0)}
    return soak.Plan(**usual | options, command=(sys.executable, "-c", BRIEF + code + START))


async def test_a_short_soak_finds_nothing_and_shows_what_it_saw():
    said: list[str] = []
    code = await soak.soak(plan(""), said.append)
    printed = "\n".join(said)
    assert code == 0, printed
    assert "WRONG" not in printed
    assert all(f"\n{kind.name} " in printed for kind in crowd.KINDS)
    assert "when all have gone" in printed
    assert re.search(r"reloads [1-9], workers killed 0", printed)
    assert re.search(r"log lines [1-9][\d,]*, lost 0", printed)


async def test_a_soak_finds_connections_that_are_not_given_back():
    said: list[str] = []
    options = {"workers": 1, "patience": Patience(all=0.5, idle=0.5)}
    assert await soak.soak(plan(LEAK, **options), said.append) == 1
    [wrong] = [line for line in said if line.startswith("WRONG: left behind: connections")]
    assert int(wrong.rpartition(" ")[2]) > 5


async def test_a_soak_whose_proxy_ends_says_so():
    said: list[str] = []
    dies = "import os; from proxy.app import Application; Application.replace = lambda *_: os._exit(9)\n"  # at a reload
    code = await soak.soak(plan(dies, workers=1), said.append)
    assert code == 1, "\n".join(said)
    [wrong] = [line for line in said if "does not answer any more" in line]
    assert wrong.endswith("exit code is 9")


@asynccontextmanager
async def soaking(upstream):
    """The soak's clients, straight at an upstream in this process."""
    async with await asyncio.start_server(upstream, "127.0.0.1", 0) as server:
        route = Route(server.sockets[0].getsockname()[1], {"authorization": "Bearer x"})
        clients = crowd.Crowd(dict.fromkeys(("soak", "limited", "narrow", "nobody"), route), random.Random(1))
        yield clients
        clients.leave()


def kind(name):
    return next(kind for kind in crowd.KINDS if kind.name == name)


GOOD = ["chat", "chat, big body", "stream", "embedding, new", "embedding, again", "embedding, together"]


@pytest.mark.parametrize("name", GOOD)
async def test_the_soaks_clients_find_their_own_answers(name):
    async with soaking(moody.Upstream(random.Random(1)).serve) as clients:
        for _ in range(2):
            await clients.one(kind(name))
    assert set(clients.seen) == {(name, 200)}
    assert not clients.wrong


@pytest.mark.parametrize("name", GOOD[:-1])
async def test_the_soaks_clients_find_somebody_elses_answer(name, monkeypatch):
    said = moody._said
    monkeypatch.setattr(moody, "_said", lambda body: said(body) + "9")
    monkeypatch.setattr(moody, "vector", lambda text: len(text))
    async with soaking(moody.Upstream(random.Random(1)).serve) as clients:
        await clients.one(kind(name))
    assert clients.wrong == {(name, 200): 1}
    [told] = clients.told()
    assert told.startswith(f"1 × {name}: 200, the first: status 200")


@pytest.mark.parametrize("name", ["leaves", "leaves a stream", "garbage", "drips"])
async def test_every_client_of_the_soak_that_leaves_comes_and_goes(name, monkeypatch):
    monkeypatch.setattr(mischief, "DRIPPING", 0.01)
    async with soaking(moody.Upstream(random.Random(1)).serve) as clients:
        await clients.one(kind(name))
    assert clients.seen == {(name, crowd.LEFT): 1}
    assert not clients.wrong


async def test_an_answer_that_cannot_be_read_is_wrong(monkeypatch):
    monkeypatch.setattr(moody, "completion", lambda text: b"{")
    async with soaking(moody.Upstream(random.Random(1)).serve) as clients:
        await clients.one(kind("chat"))
    assert clients.wrong == {("chat", "DecodeError"): 1}


async def test_an_unexpected_status_is_wrong_but_for_what_a_killed_worker_takes_with_it():
    clients = crowd.Crowd({}, random.Random(1))
    clients.judge(kind("chat"), 503, detail="no worker")
    clients.killed()
    for status in (503, "ConnectionResetError", 404):
        clients.judge(kind("chat"), status, detail="gone")
    assert clients.wrong == {("chat", 503): 1, ("chat", 404): 1}
    assert clients.told() == ["1 × chat: 503, the first: no worker", "1 × chat: 404, the first: gone"]


def looked(second=0.0, told=(), **held):
    """A look at a proxy that is one process."""
    process: dict[str, Any] = {
        "name": "proxy",
        "rss": 50.0,
        "files": 20,
        "threads": 2,
        "clients": 0,
        "upstream": 0,
        "others": 0,
    }
    return watch.Sample(second, {7: watch.Process(**process | held)}, dict.fromkeys(watch.TOLD) | dict(told), 0)


def test_growth_is_told_per_hour():
    assert watch.slope([(second, 50 + second / 60) for second in (0, 60, 120)]) == pytest.approx(60)
    assert watch.slope([(0, 50), (60, 50)]) == watch.slope([(0, 50)]) == watch.slope([]) == 0


@pytest.mark.parametrize(("grows", "count"), [(19, 0), (21, 1)])
def test_a_process_that_grows_in_the_second_half_is_told(grows, count):
    """What it has grown by before is not looked at."""
    rates = [*(second * 9 for second in range(10)), *(80 + grows * second / 60 for second in range(10, 21))]
    during = [looked(second * 60.0, rss=rss) for second, rss in enumerate(rates)]
    assert len(soak.grown(soak.Found(looked(), during))) == count


def test_the_growth_of_a_process_that_was_not_there_all_the_time_is_not_told():
    none = watch.Sample(0.0, {}, {}, 0)
    assert soak.growth(7, [looked(1), looked(2)]) == 0
    assert soak.growth(7, [none, looked(2)]) is None


@pytest.mark.parametrize(
    ("held", "told", "left"),
    [
        ({}, {}, set()),
        ({"others": 30, "files": 50, "threads": 9}, {"idle": 9.0}, set()),  # kept, for Redis and the next call
        ({"files": 25}, {}, {"files"}),
        ({"clients": 1}, {}, {"clients"}),
        ({"upstream": 1}, {}, {"upstream"}),
        ({}, {"tasks": 9.0, "streams": 1.0, "in use": 1.0}, {"tasks", "streams", "in use"}),
    ],
)
def test_what_is_left_behind_is_told(held, told, left):
    before = looked(told={"tasks": 4.0, "streams": 0.0, "in use": 0.0})
    assert set(leftovers(before, looked(told=told, **held))) == left


def test_what_metrics_say_is_added_up_over_their_series():
    text = """# TYPE mistral_proxy_tasks gauge
mistral_proxy_tasks{worker="1"} 4
mistral_proxy_tasks{worker="2"} 5.0
mistral_proxy_upstream_connections{service="mistral",state="in_use"} 3
mistral_proxy_upstream_connections{service="mistral",state="idle"} 2
mistral_proxy_upstream_connections{service="openai",state="idle"} 1e1
"""
    assert watch.told(text) == {"tasks": 9, "streams": None, "in use": 3, "idle": 12}
    assert watch.told(None) == {"tasks": None, "streams": None, "in use": None, "idle": None}


def test_the_lines_of_a_log_are_counted_and_the_lost_ones_with_them():
    log = Log()
    for line in (
        b'{"level":"info","event":"request"}\n',
        b'{"level":"error","event":"log_lost","lines":7}\n',
        b"Ready\n",
    ):
        log.take(line)
    assert (log.events, log.lost, log.wrong) == ({"info request": 1, "error log_lost": 1}, 7, [])
    log.take(b"Traceback (most recent call last):\n")
    assert len(log.wrong) == 1
