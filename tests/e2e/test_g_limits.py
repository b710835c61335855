"""What a limit lets in, and what a client is told: the same whether a process counts alone or shares a Redis."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from proxy.core.money import NANO, usd
from tests.conftest import Simulator
from tests.e2e.quotas import (
    EMBEDDED,
    INPUT,
    OUTPUT,
    Deploy,
    Deployment,
    Holding,
    asking,
    deployed,
    embedding,
    good,
    key_of,
    meets,
    rows_of,
    statuses,
    together,
)
from tests.e2e.sdk import Counted
from tests.e2e.upstream import JSON, upstream, url_of
from tests.e2e.wire import Answer, ask, chat
from tests.programs import Program
from tests.upstream.scripted import Peer, Received, answer

MONEY = NANO // 100
"""0.01 USD."""

RULES = {
    "second": "[requests: 1/second]",
    "exact-1": "[requests: 1/hour]",
    "exact-7": "[requests: 7/hour]",
    "exact-40": "[requests: 40/day]",
    "reserved": "[tokens: 1000/minute]",
    "returned": "[tokens: 100/hour]",
    "surprise": "[tokens: 1000/hour]",
    "capped": "[spend: 0.01 USD/month]",
    "nothing": "[requests: 0/day]",
    "all-or-none": "[requests: 5/day, tokens: 100/day, concurrency: 1]",
    "keys": "[{requests: 2/day, per: key}, requests: 3/day]",
    "model": "[{requests: 1/day, model: mistral-small-latest}]",
    "shadow": "[{requests: 1/day, mode: shadow}, {concurrency: 1, mode: shadow}, {spend: 0.001 USD/day, mode: shadow}]",
    "slots": "[concurrency: 2]",
    "spend": "[spend: 1 USD/day]",
    "free": "[]",
    "sdk-money": "[spend: 0.000001 USD/day]",
    "sdk-second": "[requests: 1/second]",
}


@pytest.fixture(scope="module", params=["memory", "redis"])
def deployment(request: pytest.FixtureRequest, held: socket.socket, tmp_path_factory) -> Iterator[Deployment]:
    with deployed(request.param, tmp_path_factory.mktemp(request.param), url_of(held), RULES) as one:
        yield one


def refused(found: Answer, code: str = "rate_limit_exceeded") -> dict[str, Any]:
    assert found.status == 429, found.body
    error = found.error()
    assert error["code"] == code
    return error


# How many.


@pytest.mark.parametrize("limit", [1, 7, 40])
async def test_g1_g15_exactly_as_many_as_the_limit_are_let_in(
    deployment: Deployment, held: socket.socket, limit: int
) -> None:
    async with upstream(held, good) as seen:
        data = asking(f"exact-{limit}")
        found = await asyncio.gather(*(ask(deployment.url, data) for _ in range(2 * limit + 20)))
    admitted = [one for one in found if one.status == 200]
    assert len(admitted) == len(seen.requests) == limit
    left = sorted(int(one.header("x-ratelimit-remaining-requests") or -1) for one in admitted)
    assert left == list(range(limit))
    for one in found:
        assert one.header("x-ratelimit-limit-requests") == str(limit)
        assert one.header("x-ratelimit-limit-tokens") is None
        if one.status != 200:
            assert one.header("x-ratelimit-remaining-requests") == "0"
            error = refused(one)
            assert int(error["used"]) + int(error["reserved"]) == int(error["limit"]) == limit
    assert len(await rows_of(deployment.book, f"exact-{limit}", limit)) == limit


async def test_g2_tokens_are_reserved_for_the_worst_case(deployment: Deployment, held: socket.socket) -> None:
    async with upstream(held, slots := Holding()):
        holding = asyncio.create_task(ask(deployment.url, asking("reserved", "hold", n=2, max_tokens=400)))
        await slots.holds(1)
        error = refused(found := await ask(deployment.url, asking("reserved", max_tokens=400)))
        assert (error["type"], error["rule"], error["used"]) == ("tokens", "tokens 1000/minute", "0")
        assert 800 < int(error["reserved"]) < 850
        assert found.header("x-ratelimit-remaining-tokens") == str(1000 - int(error["reserved"]))
        slots.released.set()
        assert (await holding).status == 200
        await meets(lambda: tokens_left(deployment, "reserved", 800), 1000 - 8)


async def tokens_left(deployment: Deployment, team: str, most: int) -> int:
    """What is left of a team's tokens with nothing of this: too much is asked for if more than 0."""
    found = await ask(deployment.url, asking(team, max_tokens=most * 10))
    return int(found.header("x-ratelimit-remaining-tokens") or -1)


async def test_g4_what_was_not_used_is_given_back(deployment: Deployment, held: socket.socket) -> None:
    """Eight of at most 92 tokens each time: one after the other there is room for eleven, though for no two at once."""
    async with upstream(held, good):
        for at in range(1, 3):
            assert (await ask(deployment.url, asking("returned", max_tokens=70))).status == 200
            await meets(lambda: tokens_left(deployment, "returned", 100), 100 - 8 * at)


async def test_g3_what_was_used_beyond_the_reservation_is_charged_in_full(
    deployment: Deployment, held: socket.socket
) -> None:
    async def more(peer: Peer, received: Received) -> None:
        usage = {"prompt_tokens": 900, "completion_tokens": 300, "total_tokens": 1200}
        choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        await peer.send(answer(json.dumps(body).encode(), JSON))

    async with upstream(held, more):
        assert (await ask(deployment.url, asking("surprise"))).status == 200
        await rows_of(deployment.book, "surprise", 1)

        async def used() -> str:
            return str(refused(await ask(deployment.url, asking("surprise")))["used"])

        await meets(used, "1200")
    (row,) = deployment.book.rows("surprise")
    assert row.cost == 900 * INPUT + 300 * OUTPUT


async def test_g5_no_nano_dollar_more_than_the_cap(deployment: Deployment, held: socket.socket) -> None:
    """Sixty at once, each of which may cost as much as the others: as many as fit into the cap at that, and no more."""
    async with upstream(held, slots := Holding()):
        data = asking("capped", "hold", max_tokens=1000)
        tasks = [asyncio.create_task(ask(deployment.url, data)) for _ in range(60)]
        await meets(lambda: asyncio.sleep(0, slots.held + sum(task.done() for task in tasks)), 60)
        admitted = slots.held
        slots.released.set()
        found = await asyncio.gather(*tasks)
    rows = await rows_of(deployment.book, "capped", admitted)
    assert len(rows) == MONEY // rows[0].most_cost > 1
    assert Counter(one.status for one in found) == {200: admitted, 429: 60 - admitted}
    for one in found:
        if one.status == 429:
            error = refused(one, "insufficient_quota")
            assert (error["type"], error["limit"]) == ("insufficient_quota", "0.01 USD")
            assert error["asked"] == usd(rows[0].most_cost)
            assert one.header("x-should-retry") == "false"
            assert 0 < int(one.header("retry-after") or 0) <= 31 * 86_400
        else:
            assert one.header("x-proxy-cost-usd") == usd(3 * INPUT + 5 * OUTPUT).removesuffix(" USD")


async def test_g17_a_refused_request_has_consumed_nothing(deployment: Deployment, held: socket.socket) -> None:
    async with upstream(held, good):
        for _ in range(3):
            error = refused(await ask(deployment.url, asking("all-or-none", max_tokens=500)))
            assert error["rule"] == "tokens 100/day"
        found = await ask(deployment.url, asking("all-or-none"))
        assert (found.status, found.header("x-ratelimit-remaining-requests")) == (200, "4")


async def test_g17_each_key_has_its_own_and_all_keys_have_one_together(
    deployment: Deployment, held: socket.socket
) -> None:
    async with upstream(held, good):
        assert [(await ask(deployment.url, asking("keys"))).status for _ in range(2)] == [200, 200]
        for _ in range(2):
            assert refused(await ask(deployment.url, asking("keys")))["rule"] == "requests 2/day per key"
        assert (await ask(deployment.url, asking("keys-2"))).status == 200
        assert refused(await ask(deployment.url, asking("keys-2")))["rule"] == "requests 3/day"


async def test_g17_a_model_is_counted_by_whichever_of_its_names(deployment: Deployment, held: socket.socket) -> None:
    async with upstream(held, good):
        assert (await ask(deployment.url, asking("model", model="gpt-4o-mini"))).status == 200
        for name in ("mistral-small-latest", "mistral-small-2603", "magistral-small-latest", "gpt-4.1-nano"):
            error = refused(await ask(deployment.url, asking("model", model=name)))
            assert error["rule"] == "requests 1/day, model mistral-small-2603"
        assert (await ask(deployment.url, asking("model", model="mistral-large-latest"))).status == 200
        assert (await ask(deployment.url, embedding("model"))).status == 200


async def test_g17_a_shadow_rule_counts_and_never_refuses(deployment: Deployment, held: socket.socket) -> None:
    async with upstream(held, slots := Holding()):
        assert await together(deployment.url, slots, [asking("shadow", "hold")] * 5) == [200] * 5
        found = await ask(deployment.url, asking("shadow"))
        assert found.status == 200
        assert not [name for name, _ in found.headers if name.startswith("x-ratelimit-")]


async def test_g8_slots_are_for_those_under_way(deployment: Deployment, held: socket.socket) -> None:
    async with upstream(held, slots := Holding()):
        for _ in range(3):
            slots.released.clear()
            before = slots.held
            kept = [asyncio.create_task(ask(deployment.url, asking("slots", "hold"))) for _ in range(2)]
            await slots.holds(before + 2)
            for found in await asyncio.gather(*(ask(deployment.url, asking("slots")) for _ in range(5))):
                assert refused(found)["rule"] == "concurrency 2"
                assert found.header("retry-after-ms") == "1000"
            slots.released.set()
            assert [(await one).status for one in kept] == [200, 200]

            async def again() -> int:
                return (await ask(deployment.url, asking("slots"))).status

            await meets(again, 200)


async def test_g14_a_limit_of_nothing_lets_nothing_in_and_no_limit_everything(
    deployment: Deployment, held: socket.socket
) -> None:
    async with upstream(held, good) as seen:
        found = await ask(deployment.url, asking("nothing"))
        refused(found)
        assert (found.header("retry-after"), found.header("x-should-retry")) == (None, "false")
        assert not seen.requests
        assert await statuses(deployment.url, [asking("free")] * 30) == [200] * 30


def test_g14_a_limit_below_nothing_is_refused_with_its_line(tmp_path: Path) -> None:
    one = Deployment(tmp_path, "http://127.0.0.1:9", {"red": "[requests: -1/day]"})
    program = Program("serve", "--config", str(one.file), env=one.env, cwd=tmp_path)
    assert program.ended() == 2
    line = next(n for n, text in enumerate(one.file.read_text().splitlines(), 1) if "red:" in text)
    assert f"proxy.yaml:{line}" in program.everything()


# When, and what clients make of it.


async def test_g7_who_waits_as_long_as_told_gets_in(deployment: Deployment, held: socket.socket) -> None:
    async with upstream(held, good):
        url, data = deployment.url, asking("second")
        assert (await ask(url, data)).status == 200
        found = await ask(url, data)
        refused(found)
        wait = int(found.header("retry-after-ms") or 0)
        assert 0 < wait <= 1010
        assert found.header("retry-after") == str(-(-wait // 1000))
        await asyncio.sleep(wait / 1000)
        assert (await ask(url, data)).status == 200
        assert await statuses(url, [data] * 10) == [429] * 10


async def test_g5_what_has_no_price_is_refused_to_those_whose_spending_is_limited(
    deployment: Deployment, held: socket.socket
) -> None:
    async with upstream(held, good) as seen:
        found = await ask(deployment.url, asking("spend", model="mistral-of-tomorrow"))
        assert (found.status, found.error()["code"], found.error()["param"]) == (403, "model_not_allowed", "model")
        assert not seen.requests
        found = await ask(deployment.url, asking("free", model="mistral-of-tomorrow", mark="unpriced"))
        assert found.status == 200
        assert found.header("x-proxy-cost-usd") is None

    async def cost() -> list[int | None]:
        return [row.cost for row in deployment.book.rows("free") if row.request_id == "unpriced" and row.ended]

    await meets(cost, [None])
    assert await rows_of(deployment.book, "spend", 0) == []


async def said(deployment: Deployment, team: str) -> tuple[Any, int]:
    """What OpenAI's SDK makes of one request of this team, and how often it asks for it."""

    def create() -> tuple[Any, int]:
        with Counted(trust_env=False) as client:
            sdk = OpenAI(base_url=f"{deployment.url}/v1", api_key=key_of(team), http_client=client, max_retries=2)
            try:
                return sdk.chat.completions.create(
                    model="mistral-small-latest", messages=[{"role": "user", "content": "Hello"}], max_tokens=16
                ), client.times
            except openai.APIError as error:
                return error, client.times

    return await asyncio.to_thread(create)


async def test_g15_the_sdk_does_not_ask_again_for_money_that_is_spent(
    deployment: Deployment, held: socket.socket
) -> None:
    async with upstream(held, good):
        error, times = await said(deployment, "sdk-money")
    assert isinstance(error, openai.RateLimitError)
    assert (error.code, error.type, times) == ("insufficient_quota", "insufficient_quota", 1)


async def test_g15_the_sdk_asks_again_when_it_was_told_to_and_gets_in(
    deployment: Deployment, held: socket.socket
) -> None:
    async with upstream(held, good):
        assert (await ask(deployment.url, asking("sdk-second"))).status == 200
        found, times = await said(deployment, "sdk-second")
    assert found.choices[0].message.content == "Hello!"
    assert times == 2


# Money.


async def test_g6_the_ledger_is_what_the_provider_would_ask_money_for(simulator: Simulator, deploy: Deploy) -> None:
    one = deploy(simulator.url, {"red": "[spend: 10 USD/day]"})
    simulator.clear()
    bodies = [
        embedding("red", f"text {n}") if n % 3 == 0 else asking("red", f"say {n}", max_tokens=n + 1, stream=n % 3 == 1)
        for n in range(120)
    ]
    assert await statuses(one.url, bodies) == [200] * 120
    rows = await rows_of(one.book, "red", 120)
    bill = httpx2.get(f"{simulator.url}/_sim/bill").json()["models"]
    price = {name: EMBEDDED if "embed" in name else INPUT for name in bill}
    recount = sum(total["prompt"] * price[name] + total["completion"] * OUTPUT for name, total in bill.items())
    assert sum(row.cost or 0 for row in rows) == recount
    assert not any(row.estimated for row in rows)
    assert usd(recount).removesuffix(" USD") in await asyncio.to_thread(one.run, "usage", "--json")


async def test_g14_who_configures_nothing_has_five_dollars_a_day(tmp_path: Path, ends: ExitStack) -> None:
    program = Program("serve", "--simulate", "--port", "0", env={"XDG_STATE_HOME": str(tmp_path)}, cwd=tmp_path)
    ends.callback(program.stop)
    url = program.url()
    key = (tmp_path / "mistral-proxy/local.key").read_text().strip()
    data = chat(headers={"authorization": f"Bearer {key}"})
    assert (await ask(url, data)).status == 200
    data = chat(headers={"authorization": f"Bearer {key}"}, n=64, max_tokens=250_000)
    error = refused(await ask(url, data), "insufficient_quota")
    assert (error["rule"], error["limit"]) == ("spend 5 USD/day", "5 USD")
    assert "5 USD" in "".join(program.out)
