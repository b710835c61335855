"""A provider that fails, and comes back: who is let through to it, as it counts itself."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import start_proxy
from tests.e2e.conftest import Stage
from tests.e2e.quotas import Deployment, asking, good, meets, statuses
from tests.e2e.test_f_retries import refusal
from tests.e2e.upstream import listener, upstream, url_of
from tests.e2e.wire import Answer, ask, chat, connect
from tests.programs import until
from tests.redis_server import RedisServer
from tests.upstream.scripted import Peer, Received

OPEN = 1.0
"""Seconds that a circuit is open here."""

QUICK = """
server: {{port: 0, drain: 60s}}
providers:
  mistral:
    base_url: {simulator}
    api_keys: ["${{PROVIDER_KEY}}"]
    transport: {transport}
    timeouts: {{connect: 30s, first_byte: 30s, idle: 30s}}
    retry: {{initial_delay: 50ms}}
    circuit_breaker: {{open_duration: 1s}}
teams:
  research: {{keys: ["${{TEAM_KEY}}", "${{OTHER_KEY}}"]}}
"""


@pytest.fixture
def quick(transport: str, tmp_path: Path) -> Iterator[Stage]:
    with listener() as held:
        proxy = start_proxy(tmp_path, url_of(held), transport, QUICK)
        yield Stage(proxy, held)
        proxy.program.stop()


async def fails(peer: Peer, _: Received) -> None:
    await peer.send(refusal(b"503"))


async def dead(peer: Peer, _: Received) -> None:
    await peer.cut()


async def bad(peer: Peer, _: Received) -> None:
    await peer.send(refusal(b"400"))


def code(answer: Answer) -> str:
    found: str = answer.error()["code"] if answer.status != 200 else "none"
    return found


async def status(stage: Stage) -> int:
    return (await ask(stage.url, chat())).status


async def test_f7_it_is_left_alone_and_tried_again(quick: Stage) -> None:
    async with quick.upstream(fails) as seen:
        found = [await ask(quick.url, chat()) for _ in range(30)]
        assert Counter(map(code, found))["circuit_open"] >= 25
        assert len(seen.requests) == 5  # attempts, not requests
    told = found[-1]
    assert told.status == 503
    assert told.header("x-should-retry") == "false"
    assert 0 < int(told.header("retry-after-ms") or 0) <= 1_000
    assert told.header("retry-after") == "1"
    assert told.header("x-proxy-attempts") is None  # nobody was asked
    async with quick.upstream(good) as seen:
        began = time.monotonic()
        await meets(lambda: status(quick), 200)
        assert time.monotonic() - began < OPEN + 1
        assert [(await ask(quick.url, chat())).status for _ in range(10)] == [200] * 10
        assert len(seen.requests) == 11
    await asyncio.to_thread(quick.proxy.program.line, event="circuit_closed")
    events = [quick.proxy.program.logged(f"circuit_{what}") for what in ("opened", "half_open", "closed")]
    assert [len(lines) for lines in events] == [1, 1, 1]
    assert events[0][0]["circuit"].startswith("mistral/mistral-small-")


async def test_f9_a_team_that_asks_nonsense_moves_nothing(quick: Stage, transport: str) -> None:
    """10,000 times, with the slower transport fewer: half of it is refused here, half by the provider."""
    each = 500 if transport == "http1" else 50

    async def nonsense() -> None:
        async with connect(quick.url) as client:
            for n in range(each):
                await client.send(chat(temperature="hot") if n % 2 else chat())
                assert (await client.answer()).status == 400

    async with quick.upstream(bad) as seen:
        await asyncio.gather(*(nonsense() for _ in range(20)))
    assert len(seen.requests) == 10 * each
    async with quick.upstream(good):
        assert (await ask(quick.url, chat())).status == 200
    assert not quick.proxy.program.logged("circuit_opened")


async def test_f10_one_model_fails_and_another_does_not(quick: Stage) -> None:
    async def one_fails(peer: Peer, received: Received) -> None:
        await (fails if b"mistral-small" in received.body else good)(peer, received)

    async with quick.upstream(one_fails):
        while code(await ask(quick.url, chat())) != "circuit_open":
            pass
        for _ in range(10):
            assert (await ask(quick.url, chat(model="mistral-large-latest"))).status == 200


async def test_a_key_that_is_refused_is_never_the_clients_and_not_asked_with_for_ever(quick: Stage) -> None:
    async def refuses(peer: Peer, _: Received) -> None:
        await peer.send(refusal(b"401"))

    async with quick.upstream(refuses) as seen:
        found = [await ask(quick.url, chat()) for _ in range(20)]
    assert {(answer.status, code(answer)) for answer in found} == {(502, "upstream_auth_failed")}
    assert {answer.header("x-should-retry") for answer in found} == {"false"}
    assert len(seen.requests) == 5
    await asyncio.to_thread(until, lambda: len(quick.proxy.program.logged("alarm")) == 5, "an alarm for each")


async def test_f7_an_upstream_that_dies_under_load_and_comes_back(quick: Stage) -> None:
    """Fifty requests a second all the time: none hangs, and it is used again as soon as it may be."""
    found: list[tuple[float, float, int]] = []
    enough = asyncio.Event()

    async def one() -> None:
        began = time.monotonic()
        answer = await ask(quick.url, chat())
        found.append((began, time.monotonic(), answer.status))

    async def load() -> None:
        async with asyncio.TaskGroup() as group:
            while not enough.is_set():
                group.create_task(one())
                await asyncio.sleep(0.02)

    async def answers(status: int, count: int, since: float) -> None:
        async def so_many() -> bool:
            return sum(began >= since and seen == status for began, _, seen in found) >= count

        await meets(so_many, True)

    loading = asyncio.create_task(load())
    async with quick.upstream(good):
        await answers(200, 20, 0.0)
    async with quick.upstream(dead):
        died = time.monotonic()
        await answers(503, 20, died)
    async with quick.upstream(good):
        back = time.monotonic()
        await answers(200, 50, back)
        enough.set()
        await loading
    first = min(ended for began, ended, status in found if began >= died and status == 200)
    assert first - back < OPEN + 1
    assert max(ended - began for began, ended, _ in found) < 5


async def test_f8_f15_five_hundred_wait_and_one_finds_out(ends: ExitStack, tmp_path: Path) -> None:
    """Four workers that share a Redis; then without it."""
    redis = RedisServer()
    ends.callback(redis.stop)
    held: socket.socket = ends.enter_context(listener())
    breaker = "{open_duration: 4s, failure_threshold: 2}"
    one = Deployment(
        tmp_path, url_of(held), {"red": "[]"}, workers=4, store=redis.url.reveal(), breaker=breaker, first_byte="30s"
    )
    ends.callback(one.stop)
    one.start()

    def workers(event: str) -> int:
        return len({line["worker"] for line in one.program.logged(event)})

    async with upstream(held, fails):

        async def all_open() -> int:
            await statuses(one.url, [asking("red")] * 20)
            return workers("circuit_opened")

        await meets(all_open, 4)

    at_once = most = 0
    go_on = asyncio.Event()

    async def slow(peer: Peer, received: Received) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await go_on.wait()
        at_once -= 1
        await good(peer, received)

    async with upstream(held, slow) as seen:

        async def somebody() -> bool:
            asked.extend(asyncio.create_task(ask(one.url, asking("red"))) for _ in range(4))
            await asyncio.sleep(0.02)
            return bool(seen.requests)

        asked: list[asyncio.Task[Answer]] = []
        await meets(somebody, True)
        crowd = Counter(await statuses(one.url, [asking("red")] * 500))
        assert crowd == {503: 500}
        assert (most, len(seen.requests)) == (1, 1)
        go_on.set()
        await asyncio.gather(*asked)

        async def all_closed() -> int:
            await statuses(one.url, [asking("red")] * 8)
            return workers("circuit_closed")

        await meets(all_closed, 4)
    await asyncio.to_thread(redis.kill)
    async with upstream(held, good):
        assert set(await statuses(one.url, [asking("red")] * 20)) == {200}
