"""What a provider would ask money for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from proxy.simulator.bill import Bill
from proxy.simulator.calls import Call

from .conftest import Ask, chunks, tool

SMALL = "mistral-small-2603"
TOOLS = [tool("weather", city={"type": "string"}), tool("clock", zone={"type": "string"})]
USE_ALL = [{"role": "user", "content": "Use all."}]


async def settled(http: httpx2.AsyncClient) -> dict[str, Any]:
    """The bill when no call runs any more."""
    async with asyncio.timeout(5):
        while True:
            bill: dict[str, Any] = (await http.get("/_sim/bill")).json()
            if not bill["running"]:
                return bill


def lines(bill: dict[str, Any]) -> list[tuple[int, int]]:
    return [(line["prompt"], line["completion"]) for line in bill["calls"]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3},
        {"max_tokens": 2},
        {"tools": TOOLS, "messages": USE_ALL},
        {"tools": TOOLS, "messages": USE_ALL, "max_tokens": 4},
        {"tools": TOOLS, "messages": USE_ALL, "model": "zai-glm-5-3"},
        {"reasoning_effort": "high"},
        {"reasoning_effort": "high", "model": "mistral-large-4"},
        {"reasoning_effort": "high", "model": "zai-glm-5-3", "n": 2},
        {"model": "mistral-small-latest+full+words=3", "max_tokens": 100},
        {"model": "mistral-small-latest+coalesce+crlf+comments"},
        {"model": "mistral-small-latest+fragment=7"},
        {"model": "mistral-small-latest+gzip"},
    ],
)
async def test_a_whole_answer_is_billed_as_its_usage_says(
    http: httpx2.AsyncClient, ask: Ask, fields: dict[str, Any], stream: bool
) -> None:
    answer = await ask(stream=stream, **fields)
    text = answer.text.replace(": keep-alive\r\n\r\n", "").replace("\r\n", "\n")
    usage = (chunks(text)[-1] if stream else answer.json())["usage"]
    bill = await settled(http)
    assert lines(bill) == [(usage["prompt_tokens"], usage["completion_tokens"])]
    (total,) = bill["models"].values()
    assert total == {"calls": 1, "prompt": usage["prompt_tokens"], "completion": usage["completion_tokens"]}


async def test_embeddings(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/embeddings", json={"model": "mistral-embed", "input": ["Hello there", "a"]})
    assert lines(await settled(http)) == [(answer.json()["usage"]["prompt_tokens"], 0)] == [(4, 0)]


@pytest.mark.parametrize("fault", ["usage=none", "usage=odd"])
async def test_what_is_billed_is_right_when_the_usage_is_not(http: httpx2.AsyncClient, ask: Ask, fault: str) -> None:
    await ask({"x-sim-fault": f"{fault}+words=9"})
    await ask({"x-sim-fault": f"{fault}+events=9"}, stream=True)
    assert lines(await settled(http)) == [(3, 9), (3, 9)]


@pytest.mark.parametrize(
    ("fault", "completion"),
    [
        ("cut_events=0", 0),
        ("cut_events=1", 0),
        ("cut_events=4", 3),
        ("cut_events=4+coalesce", 3),
        ("eof_events=4", 3),
        ("no_done", 5),
        ("error_events=4", 3),
        ("garbage_events=2", 5),
        ("cut_headers", 0),
    ],
)
async def test_of_a_stream_what_was_written(http: httpx2.AsyncClient, ask: Ask, fault: str, completion: int) -> None:
    with suppress(httpx2.RemoteProtocolError):
        await ask({"x-sim-fault": f"{fault}+events=5"}, stream=True)
    assert lines(await settled(http)) == [(3, completion)]


@pytest.mark.parametrize(
    ("fault", "stream", "expected"),
    [
        ("latency=60", False, (3, 5)),
        ("stall", False, (3, 5)),
        ("latency=60", True, (3, 0)),
        ("first_event=60", True, (3, 0)),
        ("stall_events=3", True, (3, 2)),
    ],
)
async def test_when_the_client_has_left(
    http: httpx2.AsyncClient, ask: Ask, fault: str, stream: bool, expected: tuple[int, int]
) -> None:
    waiting = asyncio.ensure_future(ask({"x-sim-fault": f"{fault}+events=5"}, stream=stream))
    async with asyncio.timeout(5):
        while [(call["prompt"], call["completion"]) for call in (await http.get("/_sim/calls")).json()] != [expected]:
            pass
    assert (await http.get("/_sim/bill")).json() == {"running": 1, "free": 0, "models": {}, "calls": []}
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    assert lines(await settled(http)) == [expected]


@pytest.mark.parametrize("fault", ["status=503", "code=3505", "html", "redirect", "limit=0"])
async def test_errors_are_free(http: httpx2.AsyncClient, ask: Ask, fault: str) -> None:
    await ask({"x-sim-fault": fault})
    await ask(store=True)
    await ask({"authorization": ""})
    bill = await settled(http)
    assert bill == {"running": 0, "free": 3, "models": {}, "calls": []}


async def test_models_are_told_apart_and_calls_can_be_found(http: httpx2.AsyncClient, ask: Ask) -> None:
    await http.get("/v1/models")
    await ask({"x-request-id": "abc"})
    await ask(model="magistral-small-latest")
    await ask(model="ministral-3b-latest+words=1")
    bill = await settled(http)
    assert [(line["n"], line["id"], line["model"]) for line in bill["calls"]] == [
        (2, "abc", SMALL),
        (3, None, SMALL),
        (4, None, "ministral-3b-2512"),
    ]
    assert bill["models"] == {
        SMALL: {"calls": 2, "prompt": 6, "completion": 8},
        "ministral-3b-2512": {"calls": 1, "prompt": 3, "completion": 1},
    }
    assert (await http.delete("/_sim/calls")).status_code == 200
    assert await settled(http) == {"running": 0, "free": 0, "models": {}, "calls": []}


def test_totals_outlast_the_lines() -> None:
    bill = Bill()
    for n in range(200_001):
        bill.add(Call(n, "POST", "/", [], 0.0, billed_as="m", prompt=1, completion=2))
    found = bill.view(0)
    assert (len(found["calls"]), found["calls"][0].n) == (200_000, 1)
    assert (found["models"]["m"].calls, found["models"]["m"].completion) == (200_001, 400_002)


async def test_a_full_answer_has_exactly_the_tokens_that_were_allowed(ask: Ask) -> None:
    fault = {"x-sim-fault": "full"}
    for fields in ({"max_tokens": 1}, {"max_tokens": 300}, {"max_tokens": 20, "reasoning_effort": "high"}):
        answer = (await ask(fault, **fields)).json()
        assert answer["usage"]["completion_tokens"] == fields["max_tokens"]
        assert answer["choices"][0]["finish_reason"] == "length"
    assert (await ask(fault)).json()["usage"]["completion_tokens"] == 16
    assert (await ask(fault, n=3, max_tokens=7)).json()["usage"]["completion_tokens"] == 21
    called = await ask(fault, tools=TOOLS, messages=USE_ALL, max_tokens=7)
    assert called.json()["choices"][0]["message"]["tool_calls"] is None
