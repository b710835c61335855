"""What was used stays used: through the end of a process, and when the limits themselves are edited."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from proxy.core.money import usd
from tests.e2e.quotas import (
    INPUT,
    LIMITS,
    OUTPUT,
    Deploy,
    Holding,
    asking,
    good,
    rows_of,
    statuses,
)
from tests.e2e.upstream import listener, upstream, url_of
from tests.e2e.wire import ask, connect
from tests.redis_server import RedisServer

COST = 3 * INPUT + 5 * OUTPUT
"""nano-USD of one request."""


@pytest.fixture
def held() -> Iterator[socket.socket]:
    with listener() as one:
        yield one


@pytest.fixture(params=["memory", "redis"])
def options(request: pytest.FixtureRequest, ends: ExitStack) -> dict[str, Any]:
    if request.param == "memory":
        return {}
    server = RedisServer()
    ends.callback(server.stop)
    return {"workers": 2, "store": server.url.reveal()}


async def test_g8_a_limit_outlives_the_process(deploy: Deploy, held: socket.socket) -> None:
    """Its end and its death, and what was under way then counts for all that it may have cost."""
    one = deploy(url_of(held), {"red": LIMITS, "hour": "[requests: 6/hour]"})
    async with upstream(held, slots := Holding()):
        assert await statuses(one.url, [asking("hour"), asking("hour"), asking("red"), asking("red")]) == [200] * 4
        await asyncio.to_thread(one.stop)
        await asyncio.to_thread(one.start)
        await one.settled("red", await rows_of(one.book, "red", 2))
        assert await statuses(one.url, [asking("hour"), asking("red")]) == [200] * 2
        await rows_of(one.book, "red", 3)
        async with connect(one.url) as red, connect(one.url) as hour:
            await red.send(asking("red", "hold", stream=True))
            await hour.send(asking("hour", "hold"))
            await slots.holds(2)
            await asyncio.to_thread(one.kill)
        await asyncio.to_thread(one.start)
        rows = await rows_of(one.book, "red", 4)
        assert sorted(row.status for row in rows) == ["cancelled", "settled", "settled", "settled"]
        assert sum(row.cost or 0 for row in rows) == 3 * COST + rows[-1].most_cost
        await one.settled("red", rows)
        found = [await ask(one.url, asking("hour")) for _ in range(3)]
        assert [answer.status for answer in found] == [200, 200, 429]
        error = found[-1].error()
        assert int(error["used"]) + int(error["reserved"]) == 6


async def test_g12_a_quota_that_is_edited_counts_what_was_used(
    deploy: Deploy, held: socket.socket, options: dict[str, Any]
) -> None:
    rules = {"edited": "[requests: 3/day]", "later": "[]"}
    one = deploy(url_of(held), rules, **options)
    async with upstream(held, good):
        assert await statuses(one.url, [asking("edited")] * 2 + [asking("later")] * 3) == [200] * 5
        rows = await rows_of(one.book, "later", 3)
        one.write({"edited": "[requests: 5/day]", "later": LIMITS})
        await one.reloaded(2)
        assert sorted(await statuses(one.url, [asking("edited")] * 6)) == [200] * 3 + [429] * 3
        await one.settled("later", rows)
        await rows_of(one.book, "edited", 5)
        one.write({"edited": "[requests: 2/day, spend: 1 USD/day]", "later": "[spend: 0.00001 USD/month]"})
        await one.reloaded(3)
        error = (await ask(one.url, asking("edited"))).error()
        assert (error["rule"], error["used"], error["limit"]) == ("requests 2/day", "5", "2")
        error = (await ask(one.url, asking("later"))).error()
        assert (error["rule"], error["used"]) == ("spend 0.00001 USD/month", usd(3 * COST))


async def test_g12_a_quota_that_was_away_for_a_while_counts_what_was_used_meanwhile(
    deploy: Deploy, held: socket.socket, options: dict[str, Any]
) -> None:
    one = deploy(url_of(held), {"red": "[requests: 9/day]"}, **options)
    async with upstream(held, good):
        assert await statuses(one.url, [asking("red")] * 2) == [200] * 2
        one.write({"red": "[]"})
        await one.reloaded(2)
        assert await statuses(one.url, [asking("red")] * 3) == [200] * 3
        await rows_of(one.book, "red", 5)
        one.write({"red": "[requests: 6/day]"})
        await one.reloaded(3)
        assert sorted(await statuses(one.url, [asking("red")] * 4)) == [200] + [429] * 3


async def test_g12_running_streams_finish_when_their_limit_is_lowered(deploy: Deploy, held: socket.socket) -> None:
    one = deploy(url_of(held), {"red": "[requests: 9/day, concurrency: 9]"})
    async with upstream(held, slots := Holding()), connect(one.url) as client:
        await client.send(asking("red", "hold", stream=True))
        await slots.holds(1)
        one.write({"red": "[requests: 0/day, concurrency: 0]"})
        await one.reloaded(2)
        assert (await ask(one.url, asking("red"))).status == 429
        slots.released.set()
        assert (await client.answer()).body.endswith(b"data: [DONE]\n\n")
        assert [row.status for row in await rows_of(one.book, "red", 1)] == ["settled"]


async def test_g13_another_time_zone_keeps_what_was_used_in_the_period(
    deploy: Deploy, held: socket.socket, options: dict[str, Any]
) -> None:
    one = deploy(url_of(held), {"red": LIMITS}, **options)
    async with upstream(held, good):
        assert await statuses(one.url, [asking("red")] * 2) == [200] * 2
        for generation, zone in enumerate(("Asia/Kathmandu", "UTC", "America/St_Johns", "UTC"), 2):
            one.write({"red": LIMITS}, zone=zone)
            await one.reloaded(generation)
            await one.settled("red", await rows_of(one.book, "red", generation))
            assert (await ask(one.url, asking("red"))).status == 200
